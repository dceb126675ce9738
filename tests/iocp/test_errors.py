"""System error numbers become causes in one place."""

import errno
import sys

import pytest

from cluster.iocp import Cause
from cluster.iocp.errors import (
    DriverClosedError,
    DriverUnavailableError,
    EventInFlightError,
    IocpError,
    MisuseError,
    classify_os_error,
)

CAUSES = [
    (errno.ECONNRESET, Cause.RESET),
    (errno.EPIPE, Cause.RESET),
    (errno.ECONNABORTED, Cause.RESET),
    (errno.ECONNREFUSED, Cause.REFUSED),
    (errno.ETIMEDOUT, Cause.TIMEOUT),
    (errno.ECANCELED, Cause.CANCELLED),
    (errno.EMFILE, Cause.OS_ERROR),
    (0, Cause.OS_ERROR),
]
if sys.platform == "win32":
    CAUSES += [
        (64, Cause.RESET),
        (10053, Cause.RESET),
        (10054, Cause.RESET),
        (10057, Cause.RESET),
        (1225, Cause.REFUSED),
        (10061, Cause.REFUSED),
        (121, Cause.TIMEOUT),
        (10060, Cause.TIMEOUT),
        (995, Cause.CANCELLED),
        (676, Cause.CANCELLED),  # Wine's 995
        (10024, Cause.OS_ERROR),
    ]


@pytest.mark.parametrize(("code", "cause"), CAUSES)
def test_an_error_number_has_its_cause(code: int, cause: Cause):
    assert classify_os_error(code) is cause


def test_misuse_and_unavailable_drivers_are_errors_of_the_library():
    assert issubclass(EventInFlightError, MisuseError)
    assert issubclass(DriverClosedError, MisuseError)
    assert issubclass(MisuseError, IocpError)
    assert issubclass(DriverUnavailableError, IocpError)
    assert not issubclass(DriverUnavailableError, MisuseError)
