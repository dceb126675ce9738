"""Binds across nodes: this node asks the owner of a user, and decides about those that it owns.

An owner whose link is down is waited for `links.timeout_s`, and one that does not answer twice as
long: then this node decides alone, and tells the owner, who settles it by time stamps when nodes
that were parted meet again. Whatever this node has told an owner, it tells again when the owner
begins another life, or when a log was too full for a change.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.local_binds import LocalBinds
from cluster.gateway.logins.asks import Asks, LoginClock, PendingAsk
from cluster.gateway.logins.login_owner import LoginOwner
from cluster.gateway.logins.records import (
    ANSWER,
    ASK,
    CHECK,
    CHECKED,
    LOGIN_KINDS,
    TAKEN,
    TELL,
    LoginRecord,
    Telling,
    pack_login_record,
    read_login_record,
)
from cluster.gateway.logins.tellings import Tellings
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.session import GatewaySession
from cluster.iocp import IocpCore
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause
from cluster.shared.records import RecordError
from cluster.shared.rendezvous import owner
from cluster.shared.user_records import Bind, BindResult, SecondLogin

__all__ = ["NodeLogins"]

LOOKS_PER_TIMEOUT = 8


class NodeLogins:
    """The logins of one node of a cluster (`Topic`). For the dispatching thread.

    Bounded: a session has one ask on its way and one bind that waits behind it; the directory has
    an entry for each session of the cluster at most.
    """

    def __init__(
        self,
        traffic: NodeTraffic,
        core: IocpCore,
        sessions: Mapping[int, GatewaySession],
        binds: LocalBinds,
        counters: Counters,
        timeout_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Decide which of `sessions` is which user; `wall_clock` gives seconds since the epoch."""
        self.owned = LoginOwner(timeout_s, self._give, self._is_reachable)
        """The users that this node owns."""
        self.on_decided: Callable[[str], None] = lambda user: None
        """Called when no session of this node asks for a user any more."""
        self._node = traffic.node
        self._traffic = traffic
        self._core = core
        self._sessions = sessions
        self._binds = binds
        self._users = binds.users
        self._counters = counters
        self._timeout_s = timeout_s
        self._wall_clock = wall_clock
        self._clock = LoginClock()
        self._asks = Asks()
        self._tellings = Tellings(self._send, self._is_evicted)
        self._nodes: list[int] = []
        self._members = traffic.members
        self._lost_at: dict[int, float] = {}  # nodes without a connection, since when
        self._look_timer: Timer | None = None
        self._more_timer: Timer | None = None
        traffic.register(LOGIN_KINDS, self)
        traffic.on_members(lambda members: self._look_later())

    # -- which nodes there are ---------------------------------------------------------------------

    def look_around(self) -> bool:
        """Take note of changes of who there is; return whether there are other nodes."""
        traffic = self._traffic
        if traffic.links is None:
            return False
        nodes = traffic.nodes
        if nodes != self._nodes or traffic.members is not self._members:
            self._nodes_changed(nodes)
        return bool(nodes)

    def is_asked(self, user: str) -> bool:
        """Whether any session of this node asks for `user`, and is not answered yet."""
        return self._asks.is_asked(user)

    def owner(self, user: str) -> int:
        """Return the node that owns `user`'s key."""
        return owner(user, self._members.nodes or (self._node,))

    def _nodes_changed(self, nodes: list[int]) -> None:
        now = self._core.now()
        joined, left = set(nodes) - set(self._nodes), set(self._nodes) - set(nodes)
        self._nodes = nodes
        self._members = self._traffic.members
        self._users.on_released = self._released
        self._users.on_forgotten = self._forgotten
        for node in joined:
            if not self._traffic.is_linked(node):
                self._lost_at[node] = now
        self.owned.await_nodes(joined, now)
        self.owned.directory.keep(lambda user: self.owner(user) == self._node)
        for node in left:
            self._lost_at.pop(node, None)
            self._tellings.forget(node)
            self.owned.forget(node, now)
        self._asks.set_owners(self.owner)
        for record in self._telling_all(self._node):
            if record is not None:
                self._take(self._node, record)
        for node in nodes:
            if self._traffic.is_linked(node):
                self._tell_all(node)
        self._look_later()

    def _is_reachable(self, node: int) -> bool:
        """Whether `node` is linked, or was a moment ago: then it is worth waiting for."""
        if node == self._node:
            return True
        lost_at = self._lost_at.get(node)
        return lost_at is None or self._core.now() < lost_at + self._timeout_s

    # -- what workers ask --------------------------------------------------------------------------

    def next_stamp(self) -> int:
        """Return the stamp of a login that happens now."""
        return self._clock.next(self._wall_clock())

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
        owner = self.owner(bind.user)
        ask = PendingAsk(session.id, bind, self.next_stamp(), owner, self._core.now())
        self._asks.add(ask)
        self._look_later()
        if owner == self._node:
            self._take(self._node, _question(ask))
        elif not self._is_reachable(owner) or not self._send(owner, _question(ask)):
            self._decide_alone(ask)

    def _decide_alone(self, ask: PendingAsk) -> None:
        """The owner cannot be reached, or does not answer: what is here decides, in order."""
        self._counters.add("binds_decided_alone")
        decided = self._asks.take_for(ask.bind.user)
        for each in decided:
            session = self._sessions[each.session]
            if session.is_present and self._binds.bind(session, each.bind) is BindResult.BOUND:
                session.login_stamp = each.stamp
                self._tell(each.owner, _hold(each.bind.user, session))
            else:
                self._tell_withdrawn(each)
        self._decided(ask.bind.user)
        self._ask_next(decided)

    def _withdraw(self, ask: PendingAsk) -> None:
        """Nobody asks this any more."""
        self._tell_withdrawn(ask)
        self._decided(ask.bind.user)

    def _tell_withdrawn(self, ask: PendingAsk) -> None:
        """Tell the owner, which may have granted it, that nobody asks any more."""
        user = ask.bind.user
        self._tell(ask.owner, _free(user, ask.session))
        # If it was granted, it took the place of these.
        holder = self._users.find(user)
        if holder is not None:
            self._tell(ask.owner, _hold(user, holder))
        for other in self._asks.for_user(user):
            self._tell(ask.owner, _question(other))

    def _decided(self, user: str) -> None:
        if not self._asks.is_asked(user):
            self.on_decided(user)

    def _ask_next(self, decided: Iterable[PendingAsk]) -> None:
        for each in decided:
            session = self._sessions[each.session]
            if each.behind is not None and session.is_present:
                self._ask(session, each.behind)

    def _answered(self, record: LoginRecord) -> None:
        self._clock.saw(record.stamp)
        ask = self._asks.answered(record.session, record.request)
        if ask is None:
            return  # it has given up, and told so
        session = self._sessions[ask.session]
        if not session.is_present:
            self._withdraw(ask)  # its end is the answer
        elif record.what:
            self._binds.bind(session, ask.bind._replace(policy=SecondLogin.REPLACE))
            session.login_stamp = record.stamp
            if self._tellings.is_telling(ask.owner):
                # Which has looked for users already, and does not find it among the asks.
                self._tell(ask.owner, _hold(record.user, session))
        else:
            self._binds.reject(session, ask.bind.request)
        self._decided(ask.bind.user)
        self._ask_next([ask])

    # -- what becomes of this node's sessions ------------------------------------------------------

    def _released(self, user: str, session: GatewaySession) -> None:
        """`session` is `user` no more (`UserTable.on_released`)."""
        self._tell(self.owner(user), _free(user, session.id))

    def _forgotten(self, session: GatewaySession) -> None:
        """The connection of `session` has ended (`UserTable.on_forgotten`)."""
        pending = self._asks.cancel(session.id)
        if pending is not None:
            self._withdraw(pending)

    def _lose(self, record: LoginRecord) -> None:
        """A session's user is another one's now."""
        session = self._sessions.get(record.session)
        if session is None or self._users.find(record.user) is not session:
            return
        if session.login_stamp > record.stamp:
            self._tell(self.owner(record.user), _hold(record.user, session))
            return
        self._counters.add("users_taken_by_other_nodes")
        self._users.take_from(session)
        # The owner may have been told, behind what this is for, that it is the user again.
        self._tell(self.owner(record.user), _free(record.user, session.id))
        if session.is_present:
            session.disconnect(Cause.REPLACED)

    def _is_held(self, record: LoginRecord) -> bool:
        session = self._sessions.get(record.session)
        return (
            session is not None and session.is_present and self._users.find(record.user) is session
        )

    # -- telling owners ----------------------------------------------------------------------------

    def _tell(self, node: int, record: LoginRecord) -> None:
        if node == self._node:
            self._take(node, record)
        elif not self._send(node, record):
            self._tell_all(node)

    def _tell_all(self, node: int) -> None:
        """Tell `node` about all users that it owns, bit by bit."""
        self._tellings.tell(node, self._telling_all(node))
        self._advance(node)

    def _telling_all(self, node: int) -> Iterator[LoginRecord | None]:
        yield LoginRecord(TELL, what=Telling.BEGIN)
        for user in self._users.names():
            session = self._users.find(user)
            is_told = session is not None and self.owner(user) == node
            yield _hold(user, session) if session is not None and is_told else None
        for ask in self._asks.of_owner(node):
            if self._asks.find(ask.session) is ask:
                yield _question(ask)
        yield LoginRecord(TELL, what=Telling.END)

    def _advance(self, node: int) -> None:
        if not self._tellings.advance(node):
            self._look_later()
        elif self._tellings.is_telling(node) and self._more_timer is None:
            self._more_timer = self._core.call_later(0, self._tell_more)

    def _tell_more(self) -> None:
        self._more_timer = None
        for node in self._tellings.nodes:
            self._advance(node)

    def _send(self, node: int, record: LoginRecord) -> bool:
        return self._traffic.send(node, pack_login_record(record))

    # -- records, of other nodes and of this one ---------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record; one that cannot be read is counted, and gone."""
        if self.look_around():
            try:
                record = read_login_record(payload)
            except RecordError:
                self._counters.add("links_unknown_records")
            else:
                self._take(delivery.node, record)
        self._traffic.settle(delivery)

    def _take(self, node: int, record: LoginRecord) -> None:
        kind = record.kind
        if kind == ANSWER:
            self._answered(record)
        elif kind == TAKEN:
            self._lose(record)
        elif kind == CHECK:
            self._check(node, record)
        else:
            if kind == ASK:
                self._clock.saw(record.stamp)
            self.owned.take(node, record, self._core.now())

    def _check(self, node: int, record: LoginRecord) -> None:
        reply = record._replace(kind=CHECKED, what=int(self._is_held(record)))
        if node == self._node:
            self._take(node, reply)
        else:
            self._send(node, reply)  # without room for it the question expires

    def _give(self, node: int, record: LoginRecord) -> None:
        """Give a node what was decided about a user that this one owns."""
        if record.kind == CHECK:
            self._look_later()
        if node == self._node:
            self._take(node, record)
        elif not self._send(node, record) and record.kind == TAKEN:
            self._tellings.evict(node, record)
            self._look_later()

    def _is_evicted(self, node: int, record: LoginRecord) -> bool:
        """Whether a session that was to be ended has not become the user again."""
        login = self.owned.directory.find(record.user)
        return login is None or login[1:] != (node, record.session)

    # -- links -------------------------------------------------------------------------------------

    def settled(self, node: int, payload: bytes) -> None:
        """There is room again for what waits."""
        if node in self._tellings.nodes:
            self._advance(node)

    def undelivered(self, node: int, payload: bytes) -> None:
        """The next life of `node` is told everything again."""

    def linked(self, node: int, is_new_life: bool) -> None:
        """Tell a node that has forgotten everything all that it owns."""
        if not self.look_around():
            return
        self._lost_at.pop(node, None)
        self.owned.linked(node, is_new_life, self._core.now())
        if is_new_life:
            self._tellings.forget(node)
            self._tell_all(node)
            self._look_later()
        elif not self._tellings.is_telling(node):
            self._tell(node, LoginRecord(TELL, what=Telling.END))

    def lost(self, node: int) -> None:
        """Its answers are awaited for a while."""
        if self.look_around() and node in self._nodes:
            self._lost_at.setdefault(node, self._core.now())

    def removed(self, node: int) -> None:
        """Its users are gone with it, and other nodes own what it owned."""
        self.look_around()

    # -- time --------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        if self._look_timer is None:
            pause = self._timeout_s / LOOKS_PER_TIMEOUT
            self._look_timer = self._core.call_later(pause, self._look)

    def _look(self) -> None:
        """Give up what has waited for too long, and try again what found no room."""
        self._look_timer = None
        self.look_around()
        now = self._core.now()
        self.owned.look(now)
        for ask in self._asks.pending:
            if self._is_overdue(ask, now) and self._asks.find(ask.session) is ask:
                self._decide_alone(ask)
        for node in self._tellings.nodes:
            self._advance(node)
        if self.owned.is_waiting or self._tellings.nodes or len(self._asks):
            self._look_later()

    def _is_overdue(self, ask: PendingAsk, now: float) -> bool:
        """Whether the owner is out of reach, or leaves an ask unanswered.

        While a link stands a question may still arrive, and then counts as asked at that time. So
        nothing is decided alone before the link is given up, or the owner has had its time.
        """
        if ask.owner in self._lost_at:
            return now >= ask.asked_at + self._timeout_s or not self._is_reachable(ask.owner)
        return now >= ask.asked_at + 2 * self._timeout_s

    def check_invariants(self) -> None:
        """Raise AssertionError unless every ask is that of a session."""
        self.owned.directory.check_invariants()
        assert all(ask.session in self._sessions for ask in self._asks.pending)


def _question(ask: PendingAsk) -> LoginRecord:
    bind = ask.bind
    return LoginRecord(ASK, ask.session, ask.stamp, bind.request, int(bind.policy), bind.user)


def _hold(user: str, session: GatewaySession) -> LoginRecord:
    return LoginRecord(TELL, session.id, session.login_stamp, what=Telling.HOLD, user=user)


def _free(user: str, session: int) -> LoginRecord:
    return LoginRecord(TELL, session, what=Telling.FREE, user=user)
