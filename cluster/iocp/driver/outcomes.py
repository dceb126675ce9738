"""What becomes of events: noted on them, and queued until a poll hands them out.

No operation completes inside `submit`: whatever its outcome, it takes its place in this queue.
"""

import errno
from collections import deque

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Completion
from cluster.iocp.errors import classify_os_error
from cluster.iocp.iocp_event import IocpEvent

__all__ = ["ReadyQueue", "fail_with", "let_go"]


class ReadyQueue(deque[Completion]):
    """Completions that wait to be handed out, in order. Any thread."""

    __slots__ = ()

    def add_failed(self, event: IocpEvent, code: int) -> None:
        """Complete `event` with an error of the system."""
        event.fail(classify_os_error(code), code)
        self.append((event, 0))

    def add_cancelled(self, event: IocpEvent) -> None:
        """Complete `event` as cancelled."""
        event.fail(Cause.CANCELLED, errno.ECANCELED)
        self.append((event, 0))


def fail_with(event: IocpEvent, error: OSError) -> None:
    """Note on `event` what the system said."""
    code = error.errno or 0
    event.fail(classify_os_error(code), code)


def let_go(event: IocpEvent) -> None:
    """Give up an event whose driver closes: it will not be dispatched."""
    event.in_flight = False
    event.owner = None
    event.release()
