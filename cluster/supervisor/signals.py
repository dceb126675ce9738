"""Signals of the supervisor's process: they set a flag and wake the loop, which then acts.

Rule of the house: no work in a handler. The wake-up is a byte in a socket that the loop polls,
written by the interpreter itself, so a signal between two steps of the loop is not slept over.
"""

import signal
import time
from types import FrameType
from typing import Self

from cluster.iocp.wake_pair import WakePair
from cluster.shared.signal_handling import handle_signal
from cluster.shared.stop_requests import StopRequests

__all__ = ["SignalWatch"]

_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGBREAK")
"""Those that exist here; SIGBREAK is the Ctrl-Break of Windows."""

_TERMINAL_CLOSED = "SIGHUP"
"""It asks for the end as well, but not of a process that was started to ignore it, as by nohup. It
is never the second request: a shell passes it on, and the kernel repeats it when that shell is
gone, whenever that is."""


class SignalWatch:
    """Counts the signals that ask for the end, and wakes for those and for a child's death.

    For the main thread. A context manager: the handlers of before come back at its end.
    """

    def __init__(self) -> None:
        self._stop_requests = StopRequests()
        self.last_stop_signal = 0
        self._previous: dict[int, signal._HANDLER] = {}
        self._wake_pair = WakePair()
        self._previous_wakeup_fd = -1

    @property
    def stop_count(self) -> int:
        """How often the end was asked for; signals that come together count once."""
        return self._stop_requests.count

    @property
    def tells_deaths(self) -> bool:
        """Whether the death of a child wakes: not where there is no SIGCHLD."""
        return hasattr(signal, "SIGCHLD")

    def fileno(self) -> int:
        """Return the descriptor that is readable when there may be something to do."""
        return self._wake_pair.fileno()

    def ignore_what_comes_behind(self) -> None:
        """Have signals that ask for the end ignored when this watch ends.

        For a process that ends then: one that came in its last moments would change its exit code.
        """
        for number in self._previous:
            if number != getattr(signal, "SIGCHLD", None):
                self._previous[number] = signal.SIG_IGN

    def clear(self) -> None:
        """Take the wake-ups that came; do it before looking at what they are about."""
        self._wake_pair.drain()

    def __enter__(self) -> Self:
        self._previous_wakeup_fd = signal.set_wakeup_fd(
            self._wake_pair.wake_fileno(), warn_on_full_buffer=False
        )
        for name in _STOP_SIGNALS:
            if hasattr(signal, name):
                self._handle(getattr(signal, name), self._stop_asked)
        closed = getattr(signal, _TERMINAL_CLOSED, None)
        if closed is not None and signal.getsignal(closed) is not signal.SIG_IGN:
            self._handle(closed, self._terminal_closed)
        if hasattr(signal, "SIGCHLD"):
            # Without a handler of Python's the interpreter would not write the byte.
            self._handle(signal.SIGCHLD, _child_ended)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        self._wake_pair.close()

    def _handle(self, number: int, handler: "signal._HANDLER") -> None:
        self._previous[number] = handle_signal(number, handler)

    def _stop_asked(self, number: int, _frame: FrameType | None) -> None:
        self._stop_requests.add(time.monotonic())
        self.last_stop_signal = number

    def _terminal_closed(self, number: int, frame: FrameType | None) -> None:
        if not self.stop_count:
            self._stop_asked(number, frame)


def _child_ended(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte that woke the loop is all."""
