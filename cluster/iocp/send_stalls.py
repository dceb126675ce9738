"""Finds sends that make no progress, and ends their sessions.

All sessions of a service are looked at a few times within the timeout, so that a send costs
nothing for it.
"""

import weakref
from collections import deque
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

from cluster.iocp.causes import Cause
from cluster.iocp.timers import Timer

if TYPE_CHECKING:
    from cluster.iocp.iocp_core import IocpCore
    from cluster.iocp.session import Session

__all__ = ["SendStalls"]

_LOOKS = 8
"""Looks at a session within one timeout: a stall is found at most 1/8 late."""

_ABORTS_MAX = 8
"""Sessions that are aborted before others get their turn: about 0.2 ms."""


class SendStalls:
    """Looks at the sessions of one service as long as there are any. Dispatching threads."""

    __slots__ = (
        "__weakref__",
        "_core",
        "_lock",
        "_sessions",
        "_stalled",
        "_stopped",
        "_timeout_s",
        "_timer",
        "is_planned",
        "seen",
    )

    def __init__(
        self, core: "IocpCore", timeout_s: float, sessions: "Mapping[Session, object]"
    ) -> None:
        """`sessions` are the connected ones, kept by their service."""
        self._core = core
        self._timeout_s = timeout_s
        self._sessions = sessions
        self.seen: dict[Session, tuple[int, int]] = {}
        """Of those with a pending send: what it had sent at the last look, and for how many looks
        it has been so."""
        self._stalled: deque[tuple[Session, int]] = deque()
        """Those that are to be aborted, unless they have sent more by then."""
        self._timer: Timer | None = None
        self.is_planned = False
        """Whether there will be another look."""
        self._stopped = False
        self._lock = Lock()  # for what several dispatching threads decide

    def begin(self) -> None:
        """Look at the sessions from now on, unless that is planned already: there is one."""
        with self._lock:
            if not self.is_planned:
                self._plan()

    def forget(self, session: "Session") -> None:
        """The session has ended."""
        self.seen.pop(session, None)

    def stop(self) -> None:
        """Look no more: the service has closed, and its sessions have a time in which to end."""
        with self._lock:
            self._stopped = True
            self.is_planned = False
            self._stalled.clear()
            if self._timer is not None:
                self._timer.cancel()

    def _plan(self) -> None:
        # Not by a bound method: a service that is dropped must not be kept by its timer.
        reference = weakref.ref(self)

        def look() -> None:
            stalls = reference()
            if stalls is not None:
                stalls._look()

        self.is_planned = True
        pause_s = 0.0 if self._stalled else self._timeout_s / _LOOKS
        self._timer = self._core.call_later(pause_s, look)

    def _look(self) -> None:
        """Abort sessions whose pending send has made no progress for too long, a few at a time."""
        if not self._stalled:
            self._look_at_all()
        with self._lock:
            if self._stopped:  # maybe while all were looked at, in another thread
                self._stalled.clear()
            count = min(_ABORTS_MAX, len(self._stalled))
            stalled = [self._stalled.popleft() for _ in range(count)]
        for session, sent in stalled:
            if session.send_registered and session.sent_bytes == sent:
                session.abort(Cause.SEND_STALLED)
        with self._lock:
            self.is_planned = False
            if self._sessions and not self._stopped:
                self._plan()
            else:
                self._stalled.clear()

    def _look_at_all(self) -> None:
        before, self.seen = self.seen, {}
        for session in list(self._sessions):
            if not session.send_registered:
                continue
            sent, looks = before.get(session, (-1, 0))
            looks = looks + 1 if sent == session.sent_bytes else 0
            if looks >= _LOOKS:
                self._stalled.append((session, sent))
            else:
                self.seen[session] = (session.sent_bytes, looks)
                if session not in self._sessions:  # released in another thread meanwhile
                    self.seen.pop(session, None)
