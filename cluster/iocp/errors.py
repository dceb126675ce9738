"""Errors of the library, in three families (see `docs/decisions`).

Misuse by the caller raises one of the exceptions below at once. What a peer does wrong ends
that session with a cause. What the machine refuses is reported on the completion, sorted by
`classify_os_error`, which is the only place that reads system error numbers.
"""

import errno

from cluster.iocp.causes import Cause

__all__ = [
    "ACCEPT_EXHAUSTED",
    "DriverClosedError",
    "DriverUnavailableError",
    "EventInFlightError",
    "IocpError",
    "MisuseError",
    "classify_os_error",
]


class IocpError(Exception):
    """Base of every exception that the library raises on purpose."""


class MisuseError(IocpError):
    """The caller broke a rule of the API; the message names the rule."""


class EventInFlightError(MisuseError):
    """An event was registered again before its completion was dispatched."""


class DriverClosedError(MisuseError):
    """An operation was asked of a driver that has been closed."""


class DriverUnavailableError(IocpError):
    """A driver that was asked for by name cannot run on this machine."""


ACCEPT_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Raw codes of an accept that failed because this machine ran out of something: try later."""

_CAUSES = {
    errno.ECONNRESET: Cause.RESET,
    errno.EPIPE: Cause.RESET,
    errno.ECONNABORTED: Cause.RESET,
    errno.ENOTCONN: Cause.RESET,
    errno.ESHUTDOWN: Cause.RESET,
    errno.ECONNREFUSED: Cause.REFUSED,
    errno.ETIMEDOUT: Cause.TIMEOUT,
    errno.ECANCELED: Cause.CANCELLED,
}


def classify_os_error(code: int) -> Cause:
    """Return the cause that stands for the system error number `code`."""
    return _CAUSES.get(code, Cause.OS_ERROR)
