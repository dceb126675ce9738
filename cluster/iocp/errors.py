"""Errors of the library, in three families (see `docs/decisions`).

Misuse by the caller raises one of the exceptions below at once. What a peer does wrong ends
that session with a cause. What the machine refuses is reported on the completion, sorted by
`classify_os_error`, which is the only place that reads system error numbers.
"""

import errno

from cluster.iocp.causes import Cause

__all__ = [
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


_IS_WINDOWS = hasattr(errno, "WSAECONNRESET")

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

_WINDOWS_CAUSES = {
    64: Cause.RESET,  # ERROR_NETNAME_DELETED: what a completion port says for a reset
    109: Cause.RESET,  # ERROR_BROKEN_PIPE
    233: Cause.RESET,  # ERROR_PIPE_NOT_CONNECTED
    1236: Cause.RESET,  # ERROR_CONNECTION_ABORTED
    10052: Cause.RESET,  # WSAENETRESET
    10053: Cause.RESET,  # WSAECONNABORTED
    10054: Cause.RESET,  # WSAECONNRESET
    10057: Cause.RESET,  # WSAENOTCONN
    10058: Cause.RESET,  # WSAESHUTDOWN
    10101: Cause.RESET,  # WSAEDISCON
    1225: Cause.REFUSED,  # ERROR_CONNECTION_REFUSED
    10061: Cause.REFUSED,  # WSAECONNREFUSED
    121: Cause.TIMEOUT,  # ERROR_SEM_TIMEOUT: what a completion port says for a timeout
    1460: Cause.TIMEOUT,  # ERROR_TIMEOUT
    10060: Cause.TIMEOUT,  # WSAETIMEDOUT
    995: Cause.CANCELLED,  # ERROR_OPERATION_ABORTED
    676: Cause.CANCELLED,  # the same under Wine, when the socket was closed
    10103: Cause.CANCELLED,  # WSAECANCELLED
    10111: Cause.CANCELLED,  # WSA_E_CANCELLED
}
"""Codes of Win32 and Winsock. Some are numbers of quite other errors elsewhere."""

if _IS_WINDOWS:
    _CAUSES |= _WINDOWS_CAUSES


def classify_os_error(code: int) -> Cause:
    """Return the cause that stands for the system error number `code`."""
    return _CAUSES.get(code, Cause.OS_ERROR)
