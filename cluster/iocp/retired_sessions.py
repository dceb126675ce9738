"""Session objects whose connection has ended, and which may serve another one.

A reference that someone kept would speak to another client's connection, so an object is used
again only if nobody can reach it any more.
"""

import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.iocp.session import Session

__all__ = ["RetiredSessions"]

_KEPT_MAX = 1_024


class RetiredSessions:
    """The retired sessions of one service; past 1,024 the oldest go. Dispatching threads."""

    __slots__ = ("_sessions", "add")

    def __init__(self) -> None:
        self._sessions: deque[Session] = deque(maxlen=_KEPT_MAX)
        self.add = self._sessions.append
        """Keeps a closed session whose last callback has returned."""

    def __len__(self) -> int:
        return len(self._sessions)

    def take(self) -> "Session | None":
        """Return one that nothing else refers to, as good as new; the others met are let go."""
        while self._sessions:
            try:
                session = self._sessions.popleft()
            except IndexError:  # another thread has taken it
                return None
            held_elsewhere = sys.getrefcount(session) > _REFERENCES_OF_A_LOCAL
            if not held_elsewhere and weakref.getweakrefcount(session) == 0:
                session._recycle()
                return session
        return None

    def clear(self) -> None:
        """Let all of them go."""
        self._sessions.clear()


def _references_of_a_local() -> int:
    lone = object()
    return sys.getrefcount(lone)


_REFERENCES_OF_A_LOCAL = _references_of_a_local()
"""What `getrefcount` says of an object that one local variable refers to: 2 up to Python 3.13,
1 where arguments are borrowed."""
