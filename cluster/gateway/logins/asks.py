"""The binds of this node's sessions that an owner has not decided yet. No I/O, no clock.

A session asks for one user at a time. One more bind waits until that is answered, in place of any
that waited before: what the answers say of the last one stands for those in between.
"""

from collections.abc import Callable

from cluster.gateway.logins.login_records import STAMP_MAX
from cluster.shared.user_records import Bind

__all__ = ["Asks", "LoginClock", "PendingAsk"]


class LoginClock:
    """Stamps for logins: microseconds, each above all that were given or seen before, as long as
    there are any."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def next(self, now_s: float) -> int:
        """Return a stamp for a login of the time `now_s`, seconds since the epoch."""
        self._last = min(max(self._last + 1, int(now_s * 1_000_000)), STAMP_MAX)
        return self._last

    def saw(self, stamp: int) -> None:
        """Another node has given this one: what comes here from now on is later."""
        self._last = max(self._last, stamp)


class PendingAsk:
    """One bind that was asked for."""

    __slots__ = ("asked_at", "behind", "bind", "owner", "session", "stamp")

    def __init__(self, session: int, bind: Bind, stamp: int, owner: int, asked_at: float) -> None:
        self.session = session
        self.bind = bind
        self.stamp = stamp
        self.owner = owner
        self.asked_at = asked_at
        self.behind: Bind | None = None
        """What the session is to ask for next."""

    @property
    def last_request(self) -> int:
        """The number of the last bind that is not answered."""
        return self.bind.request if self.behind is None else self.behind.request


class Asks:
    """At most one ask for each session, in the order of asking. For the dispatching thread."""

    __slots__ = ("_pending", "_users")

    def __init__(self) -> None:
        self._pending: dict[int, PendingAsk] = {}
        self._users: dict[str, dict[int, PendingAsk]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def find(self, session: int) -> PendingAsk | None:
        """Return what `session` has asked for."""
        return self._pending.get(session)

    def add(self, ask: PendingAsk) -> None:
        """`ask` waits for an answer; its session has no other."""
        assert ask.session not in self._pending
        self._pending[ask.session] = ask
        self._users.setdefault(ask.bind.user, {})[ask.session] = ask

    def answered(self, session: int, request: int) -> PendingAsk | None:
        """Take out what the answer to `request` is for; None if nobody waits for it any more."""
        ask = self._pending.get(session)
        return self.cancel(session) if ask and ask.bind.request == request else None

    def cancel(self, session: int) -> PendingAsk | None:
        """Take out what `session` has asked for."""
        ask = self._pending.pop(session, None)
        if ask is not None:
            user = ask.bind.user
            del self._users[user][session]
            if not self._users[user]:
                del self._users[user]
        return ask

    def is_asked(self, user: str) -> bool:
        """Whether any session asks for `user`."""
        return user in self._users

    def for_user(self, user: str) -> list[PendingAsk]:
        """Return the asks for `user`, in order."""
        return list(self._users.get(user, {}).values())

    def take_for(self, user: str) -> list[PendingAsk]:
        """Take out all asks for `user`."""
        taken = self.for_user(user)
        for ask in taken:
            self.cancel(ask.session)
        return taken

    def set_owners(self, owner: Callable[[str], int]) -> None:
        """Have what waits be decided by the `owner` of its user from now on."""
        for ask in self._pending.values():
            ask.owner = owner(ask.bind.user)

    def of_owner(self, owner: int) -> list[PendingAsk]:
        """Return what `owner` is to decide."""
        return [ask for ask in self._pending.values() if ask.owner == owner]

    @property
    def pending(self) -> list[PendingAsk]:
        """What waits as of now, in the order of asking."""
        return list(self._pending.values())
