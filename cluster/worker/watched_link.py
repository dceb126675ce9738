"""A link that ends its worker when that hangs, where no supervisor would.

A thread of the interpreter's own waits for the next heartbeat. It needs no lock that a handler
could hold, so it ends any worker but one that is stopped as a whole; on the way it writes a
traceback. It reads frames without that lock, too: a process that was stopped, and goes on at just
that moment, may crash over it, which is an end as well.
"""

import contextlib
import faulthandler

import zmq

from cluster.shared.messages import ControlMessage
from cluster.worker.control_link import ZmqControlLink

__all__ = ["WatchedLink"]

_STDERR_FD = 2


class WatchedLink(ZmqControlLink):
    """The link of a worker that must send something every `timeout_s` seconds, or end with 1."""

    def __init__(self, control: "zmq.Socket[bytes]", lane_fd: int, timeout_s: float) -> None:
        """Write a traceback and end the process once nothing was sent for `timeout_s`."""
        super().__init__(control, lane_fd)
        self._timeout_s = timeout_s
        self._arm()

    def send(self, message: ControlMessage) -> None:
        super().send(message)
        self._arm()

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().close()

    def _arm(self) -> None:
        # Each time it is a new thread, which a machine may be out of for a moment.
        with contextlib.suppress(RuntimeError):
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=_STDERR_FD)
