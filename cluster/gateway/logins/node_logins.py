"""Binds across nodes: what this node asks owners, and what it decides as one, on its way.

`LoginAsker` asks for the sessions of this node, `LoginOwner` decides about the users that it owns;
here is which nodes there are and whether they can be reached, and how records get to them. Whatever
this node has told an owner, it tells again when the owner begins another life, or when a log was
too full for a change.
"""

import time
from collections.abc import Callable, Mapping

from cluster.gateway.counters import Counters
from cluster.gateway.later import Later
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.local_binds import LocalBinds
from cluster.gateway.logins.login_asker import LoginAsker
from cluster.gateway.logins.login_owner import LoginOwner
from cluster.gateway.logins.login_records import (
    ANSWER,
    ASK,
    CHECK,
    CHECKED,
    LOGIN_KINDS,
    TAKEN,
    TELL,
    LoginNews,
    LoginRecord,
    pack_login_record,
    read_login_record,
)
from cluster.gateway.logins.tellings import Tellings
from cluster.gateway.next_turn import NextTurn
from cluster.gateway.node_traffic import NodeTraffic, Topic
from cluster.gateway.session import GatewaySession
from cluster.iocp import IocpCore
from cluster.shared.records import RecordError
from cluster.shared.rendezvous import owner

__all__ = ["NodeLogins"]

LOOKS_PER_TIMEOUT = 8


class NodeLogins(Topic):
    """The logins of one node of a cluster (`Owners`). For the dispatching thread.

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
        self.owned = LoginOwner(timeout_s, self._give, self.is_reachable)
        """The users that this node owns."""
        self.owned.directory.on_unkept = lambda: counters.add("users_not_kept")
        self.asker = LoginAsker(self, sessions, binds, counters, timeout_s, core.now, wall_clock)
        """What the sessions of this node ask."""
        self._node = traffic.node
        self._traffic = traffic
        self._core = core
        self._users = binds.users
        self._counters = counters
        self._timeout_s = timeout_s
        self._tellings = Tellings(self._send, self._is_evicted)
        self._nodes: list[int] = []
        self._members = traffic.members
        self._lost_at: dict[int, float] = {}  # nodes without a connection, since when
        self._look_later = Later(core, timeout_s / LOOKS_PER_TIMEOUT, self._look)
        self._next_turn = NextTurn(core, self._tell_more)
        traffic.register(LOGIN_KINDS, self)
        traffic.on_members(lambda _: self._look_later.ask())

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

    def _nodes_changed(self, nodes: list[int]) -> None:
        now = self._core.now()
        joined, left = set(nodes) - set(self._nodes), set(self._nodes) - set(nodes)
        self._nodes = nodes
        self._members = self._traffic.members
        self._users.on_released = self.asker.released
        self._users.on_forgotten = self.asker.forgotten
        for node in joined:
            if not self._traffic.is_linked(node):
                self._lost_at[node] = now
        self.owned.await_nodes(joined, now)
        self.owned.directory.keep(lambda user: self.owner(user) == self._node)
        for node in left:
            self._lost_at.pop(node, None)
            self._tellings.forget(node)
            self.owned.forget(node, now)
        self.asker.owners_changed()
        for record in self.asker.everything(self._node):
            if record is not None:
                self._take(self._node, record)
        for node in nodes:
            if self._traffic.is_linked(node):
                self._tell_all(node)
        self._look_later.ask()

    # -- to owners (`Owners`) ----------------------------------------------------------------------

    def owner(self, user: str) -> int:
        """Return the node that owns `user`."""
        return owner(user, self._members.user_owners or (self._node,))

    def ask(self, owner: int, question: LoginRecord) -> bool:
        """Ask `owner`; False if it cannot be reached, or there is no room for it."""
        self._look_later.ask()
        if owner == self._node:
            self._take(owner, question)
            return True
        return self.is_reachable(owner) and self._send(owner, question)

    def tell(self, owner: int, record: LoginRecord) -> None:
        """Tell `owner` of a change; everything again if there is no room for it."""
        if owner == self._node:
            self._take(owner, record)
        elif not self._send(owner, record):
            self._tell_all(owner)

    def is_lost(self, owner: int) -> bool:
        """Whether there is no connection to `owner` now."""
        return owner in self._lost_at

    def is_reachable(self, owner: int) -> bool:
        """Whether `owner` is linked, or was a moment ago: then it is worth waiting for."""
        if owner == self._node:
            return True
        lost_at = self._lost_at.get(owner)
        return lost_at is None or self._core.now() < lost_at + self._timeout_s

    def is_telling(self, owner: int) -> bool:
        """Whether `owner` is in the midst of being told everything."""
        return self._tellings.is_telling(owner)

    def _tell_all(self, node: int) -> None:
        """Tell `node` about all users that it owns, bit by bit."""
        self._tellings.tell(node, self.asker.everything(node))
        self._advance(node)

    def _advance(self, node: int) -> None:
        if not self._tellings.advance(node):
            self._look_later.ask()
        elif self._tellings.is_telling(node):
            self._next_turn.ask()

    def _tell_more(self) -> None:
        for node in self._tellings.nodes:
            self._advance(node)

    def _send(self, node: int, record: LoginRecord) -> bool:
        return self._traffic.send(node, pack_login_record(record))

    # -- as the owner ------------------------------------------------------------------------------

    def _give(self, node: int, record: LoginRecord) -> None:
        """Give a node what was decided about a user that this one owns."""
        if record.kind == CHECK:
            self._look_later.ask()
        if node == self._node:
            self._take(node, record)
        elif not self._send(node, record) and record.kind == TAKEN:
            self._tellings.evict(node, record)
            self._look_later.ask()

    def _is_evicted(self, node: int, record: LoginRecord) -> bool:
        """Whether a session that was to be ended has not become the user again."""
        login = self.owned.directory.find(record.user)
        return login is None or login[1:] != (node, record.session)

    # -- records, of other nodes and of this one ---------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record; one that cannot be read is counted, and gone."""
        if self.look_around():
            try:
                record = read_login_record(payload)
            except RecordError:
                self._counters.add("links_unreadable_records")
            else:
                self._take(delivery.node, record)
        self._traffic.settle(delivery)

    def _take(self, node: int, record: LoginRecord) -> None:
        kind = record.kind
        if kind == ANSWER:
            self.asker.answered(record)
        elif kind == TAKEN:
            self.asker.taken(record)
        elif kind == CHECK:
            self._check(node, record)
        else:
            if kind == ASK:
                self.asker.clock.saw(record.stamp)
            self.owned.take(node, record, self._core.now())

    def _check(self, node: int, record: LoginRecord) -> None:
        reply = record._replace(kind=CHECKED, what=int(self.asker.is_held(record)))
        if node == self._node:
            self._take(node, reply)
        else:
            self._send(node, reply)  # without room for it the question expires

    # -- links -------------------------------------------------------------------------------------

    def settled(self, node: int, payload: bytes) -> None:
        """There is room again for what waits."""
        self._advance(node)

    def linked(self, node: int, is_new_life: bool) -> None:
        """Tell a node that has forgotten everything all that it owns."""
        if not self.look_around():
            return
        self._lost_at.pop(node, None)
        self.owned.linked(node, is_new_life, self._core.now())
        if is_new_life:
            self._tellings.forget(node)
            self._tell_all(node)
            self._look_later.ask()
        elif not self._tellings.is_telling(node):
            self.tell(node, LoginRecord(TELL, what=LoginNews.END))

    def lost(self, node: int) -> None:
        """Its answers are awaited for a while."""
        if self.look_around() and node in self._nodes:
            self._lost_at.setdefault(node, self._core.now())

    def removed(self, node: int) -> None:
        """Its users are gone with it, and other nodes own what it owned."""
        self.look_around()

    # -- time --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Give up what has waited for too long, and try again what found no room."""
        self.look_around()
        now = self._core.now()
        self.owned.look(now)
        self.asker.look(now)
        for node in self._tellings.nodes:
            self._advance(node)
        if self.owned.is_waiting or self._tellings.nodes or self.asker.is_waiting:
            self._look_later.ask()

    def check_invariants(self) -> None:
        """Raise AssertionError unless asks and directory are whole."""
        self.owned.directory.check_invariants()
        self.asker.check_invariants()
