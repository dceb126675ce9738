"""What the sessions of this node ask of the owners of users, and what is done as these decide.

An owner that cannot be reached for `links.timeout_s`, or does not answer twice as long, is not
waited for: then this node decides alone by its own table, and tells the owner, which settles it by
time stamps when nodes that were parted meet again. Whatever an owner may believe of a session here
and is so no longer, it is told.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from cluster.gateway.counters import Counters
from cluster.gateway.local_binds import LocalBinds
from cluster.gateway.logins.asks import Asks, LoginClock, PendingAsk
from cluster.gateway.logins.login_records import ASK, TELL, LoginNews, LoginRecord
from cluster.gateway.session import GatewaySession
from cluster.shared.causes import Cause
from cluster.shared.user_records import Bind, BindResult, SecondLogin

__all__ = ["LoginAsker", "Owners"]


class Owners(Protocol):
    """The nodes that own users, as one that asks them sees them; it may be one of them itself."""

    def owner(self, user: str) -> int:
        """Return the node that owns `user`'s key."""
        ...

    def ask(self, owner: int, question: LoginRecord) -> bool:
        """Ask `owner`; False if it cannot be reached, or there is no room for it."""
        ...

    def tell(self, owner: int, record: LoginRecord) -> None:
        """Tell `owner` of a change; all of `LoginAsker.everything` if there is no room for it."""
        ...

    def is_lost(self, owner: int) -> bool:
        """Whether there is no connection to `owner` now."""
        ...

    def is_reachable(self, owner: int) -> bool:
        """Whether `owner` is linked, or was a moment ago: then it is worth waiting for."""
        ...

    def is_telling(self, owner: int) -> bool:
        """Whether `owner` is in the midst of being told everything."""
        ...


class LoginAsker:
    """The asking part of one node, beside `LoginOwner`. For the dispatching thread.

    Bounded: a session has one ask on its way and one bind that waits behind it.
    """

    def __init__(
        self,
        owners: Owners,
        sessions: Mapping[int, GatewaySession],
        binds: LocalBinds,
        counters: Counters,
        timeout_s: float,
        now: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Ask `owners` which of `sessions` is which user, and carry it out by `binds`.

        `now` gives seconds of the core's clock, `wall_clock` seconds since the epoch.
        """
        self.clock = LoginClock()
        """Gives the stamps of this node's logins, above all that it has seen."""
        self.on_decided: Callable[[str], None] = lambda user: None
        """Called when no session of this node asks for a user any more."""
        self._owners = owners
        self._sessions = sessions
        self._binds = binds
        self._users = binds.users
        self._counters = counters
        self._timeout_s = timeout_s
        self._now = now
        self._wall_clock = wall_clock
        self._asks = Asks()

    @property
    def is_waiting(self) -> bool:
        """Whether any session waits for an answer."""
        return bool(len(self._asks))

    def is_asked(self, user: str) -> bool:
        """Whether any session of this node asks for `user`, and is not answered yet."""
        return self._asks.is_asked(user)

    def next_stamp(self) -> int:
        """Return the stamp of a login that happens now."""
        return self.clock.next(self._wall_clock())

    # -- what workers ask --------------------------------------------------------------------------

    def bind(self, session: GatewaySession, bind: Bind) -> None:
        """Have the owner decide about a bind of a session that is present; answered in its log."""
        pending = self._asks.find(session.id)
        if pending is None:
            self._ask(session, bind)
        else:
            pending.behind = bind

    def unbind(self, session: GatewaySession) -> None:
        """Let `session` be nobody, and void what it asks for."""
        self._users.release(session)
        pending = self._asks.cancel(session.id)
        if pending is not None:
            self._binds.void(session, pending.last_request)
            self._withdraw(pending)

    def _ask(self, session: GatewaySession, bind: Bind) -> None:
        holder = self._users.find(bind.user)
        is_held = holder is not None and holder.is_present
        if holder is session or (is_held and bind.policy is SecondLogin.REJECT):
            self._binds.bind(session, bind)  # nobody else can say anything else
            return
        owner = self._owners.owner(bind.user)
        ask = PendingAsk(session.id, bind, self.next_stamp(), owner, self._now())
        self._asks.add(ask)
        if not self._owners.ask(owner, _question(ask)):
            self._decide_alone(ask)

    def _ask_next(self, decided: Iterable[PendingAsk]) -> None:
        for each in decided:
            session = self._sessions[each.session]
            if each.behind is not None and session.is_present:
                self._ask(session, each.behind)

    def _withdraw(self, ask: PendingAsk) -> None:
        """Nobody asks this any more."""
        self._tell_withdrawn(ask)
        self._decided(ask.bind.user)

    def _tell_withdrawn(self, ask: PendingAsk) -> None:
        """Tell the owner, which may have granted it, that nobody asks any more."""
        user = ask.bind.user
        self._owners.tell(ask.owner, _free(user, ask.session))
        # If it was granted, it took the place of these.
        holder = self._users.find(user)
        if holder is not None:
            self._owners.tell(ask.owner, _hold(user, holder))
        for other in self._asks.for_user(user):
            self._owners.tell(ask.owner, _question(other))

    # -- what is decided ---------------------------------------------------------------------------

    def answered(self, record: LoginRecord) -> None:
        """An owner has decided what a session asked for."""
        self.clock.saw(record.stamp)
        ask = self._asks.answered(record.session, record.request)
        if ask is None:
            return  # it has given up, and told so
        session = self._sessions[ask.session]
        if not session.is_present:
            self._withdraw(ask)  # its end is the answer
        elif record.what:
            self._binds.bind(session, ask.bind._replace(policy=SecondLogin.REPLACE))
            session.login_stamp = record.stamp
            if self._owners.is_telling(ask.owner):
                # Which has looked for users already, and does not find it among the asks.
                self._owners.tell(ask.owner, _hold(record.user, session))
        else:
            self._binds.reject(session, ask.bind.request)
        self._decided(ask.bind.user)
        self._ask_next([ask])

    def look(self, now: float) -> None:
        """Decide alone what has waited for too long."""
        for ask in self._asks.pending:
            if self._is_overdue(ask, now) and self._asks.find(ask.session) is ask:
                self._decide_alone(ask)

    def _is_overdue(self, ask: PendingAsk, now: float) -> bool:
        """Whether the owner is out of reach, or leaves an ask unanswered.

        While a link stands a question may still arrive, and then counts as asked at that time. So
        nothing is decided alone before the link is given up, or the owner has had its time.
        """
        if self._owners.is_lost(ask.owner):
            return now >= ask.asked_at + self._timeout_s or not self._owners.is_reachable(ask.owner)
        return now >= ask.asked_at + 2 * self._timeout_s

    def _decide_alone(self, ask: PendingAsk) -> None:
        """The owner cannot be reached, or does not answer: what is here decides, in order."""
        self._counters.add("binds_decided_alone")
        decided = self._asks.take_for(ask.bind.user)
        for each in decided:
            session = self._sessions[each.session]
            if session.is_present and self._binds.bind(session, each.bind) is BindResult.BOUND:
                session.login_stamp = each.stamp
                self._owners.tell(each.owner, _hold(each.bind.user, session))
            else:
                self._tell_withdrawn(each)
        self._decided(ask.bind.user)
        self._ask_next(decided)

    def _decided(self, user: str) -> None:
        if not self._asks.is_asked(user):
            self.on_decided(user)

    # -- what becomes of this node's sessions ------------------------------------------------------

    def released(self, user: str, session: GatewaySession) -> None:
        """`session` is `user` no more (`UserTable.on_released`)."""
        self._owners.tell(self._owners.owner(user), _free(user, session.id))

    def forgotten(self, session: GatewaySession) -> None:
        """The connection of `session` has ended (`UserTable.on_forgotten`)."""
        pending = self._asks.cancel(session.id)
        if pending is not None:
            self._withdraw(pending)

    def taken(self, record: LoginRecord) -> None:
        """A session's user is another one's now, says the owner."""
        user = record.user
        session = self._sessions.get(record.session)
        if session is None or self._users.find(user) is not session:
            return
        if session.login_stamp > record.stamp:
            self._owners.tell(self._owners.owner(user), _hold(user, session))
            return
        self._counters.add("users_taken_by_other_nodes")
        self._users.take_from(session)
        # The owner may have been told, behind what this is for, that it is the user again.
        self._owners.tell(self._owners.owner(user), _free(user, record.session))
        if session.is_present:
            session.disconnect(Cause.REPLACED)

    def is_held(self, record: LoginRecord) -> bool:
        """Whether the session of `record` is its user, and is there."""
        session = self._sessions.get(record.session)
        return (
            session is not None and session.is_present and self._users.find(record.user) is session
        )

    # -- other owners ------------------------------------------------------------------------------

    def owners_changed(self) -> None:
        """Have what waits be decided by those who own its users from now on."""
        self._asks.set_owners(self._owners.owner)

    def everything(self, owner: int) -> Iterator[LoginRecord | None]:
        """Look up what `owner` is to know, from the begin to the end; None where there is nothing.

        Each step sees the users and asks of that moment.
        """
        yield LoginRecord(TELL, what=LoginNews.BEGIN)
        for user in self._users.names():
            session = self._users.find(user)
            if session is not None and self._owners.owner(user) == owner:
                yield _hold(user, session)
            else:
                yield None
        for ask in self._asks.of_owner(owner):
            if self._asks.find(ask.session) is ask:
                yield _question(ask)
        yield LoginRecord(TELL, what=LoginNews.END)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every ask is that of a session."""
        assert all(ask.session in self._sessions for ask in self._asks.pending)


def _question(ask: PendingAsk) -> LoginRecord:
    bind = ask.bind
    return LoginRecord(ASK, ask.session, ask.stamp, bind.request, int(bind.policy), bind.user)


def _hold(user: str, session: GatewaySession) -> LoginRecord:
    return LoginRecord(TELL, session.id, session.login_stamp, what=LoginNews.HOLD, user=user)


def _free(user: str, session: int) -> LoginRecord:
    return LoginRecord(TELL, session, what=LoginNews.FREE, user=user)
