"""Which session is which user: one session a user, one user a session. No I/O, no clock.

A session changes only what it has itself: it can be taken a user from, but what an older one still
asks for, or its end, never reaches the newer one that took its place. A session that is not present
any more, because its client or the gateway has ended it, keeps nobody out and cannot bind.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cluster.shared.user_records import BindResult, SecondLogin

__all__ = ["UserSession", "UserTable"]


class UserSession(Protocol):
    """What the table has to know of a session."""

    user: str | None
    """Who it is; written by the table alone."""

    @property
    def is_present(self) -> bool:
        """Whether its client is still there and nobody has begun to end it."""
        ...


_Session = TypeVar("_Session", bound=UserSession)


class UserTable(Generic[_Session]):
    """The users of a node; never more than it has sessions. For the dispatching thread."""

    __slots__ = ("_sessions", "on_forgotten", "on_released")

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self.on_released: Callable[[str, _Session], None] | None = None
        """Called when a session is a user no more, and no other one has taken it over."""
        self.on_forgotten: Callable[[_Session], None] | None = None
        """Called when the connection of a session has ended."""

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, user: str) -> _Session | None:
        """Return the session that is `user`."""
        return self._sessions.get(user)

    def names(self) -> list[str]:
        """Return the users as of now."""
        return list(self._sessions)

    def bind(
        self, session: _Session, user: str, policy: SecondLogin
    ) -> tuple[BindResult, _Session | None]:
        """Let `session` be `user`, and nobody else that it was before.

        Returns the result, and the session that was replaced by it and is to be ended. What is
        rejected changes nothing. To bind what is bound is no second login.
        """
        if not session.is_present:
            return BindResult.REJECTED, None
        holder = self._sessions.get(user)
        if holder is session:
            return BindResult.BOUND, None
        replaced = None
        if holder is not None:
            if holder.is_present:
                if policy is SecondLogin.REJECT:
                    return BindResult.REJECTED, None
                replaced = holder
            holder.user = None
        self.release(session)
        self._sessions[user] = session
        session.user = user
        return BindResult.BOUND, replaced

    def release(self, session: _Session) -> None:
        """Let `session` be nobody; nothing happens if it is, or if its user was taken from it."""
        user = session.user
        if user is not None:
            del self._sessions[user]
            session.user = None
            if self.on_released is not None:
                self.on_released(user, session)

    def forget(self, session: _Session) -> None:
        """The connection of `session` has ended: release it."""
        self.release(session)
        if self.on_forgotten is not None:
            self.on_forgotten(session)

    def take_from(self, session: _Session) -> None:
        """Let `session` be nobody, because a session of another node is its user now."""
        assert session.user is not None
        del self._sessions[session.user]
        session.user = None

    def check_invariants(self) -> None:
        """Raise AssertionError unless sessions and users know each other."""
        assert all(session.user == user for user, session in self._sessions.items())
