"""Groups across nodes: one copy of a publish for each node that has members.

A node tells the others when a group gets its first member there and when it loses its last one
(`told_interest`), and sends them what they have members for (`interest`). A node whose interest is
not known yet, in the moment in which its link begins, is sent everything. One that cannot be
reached is sent what it had members for when it was heard last, as far as its log takes it: what
finds that full is counted (`links_full`).

A joiner that asks for it is told when every linked node knows that there are members: it misses
nothing that they publish from then on. Nodes that cannot be reached are not waited for.
"""

from collections.abc import Iterable

from cluster.gateway.counters import Counters
from cluster.gateway.groups import GroupTable
from cluster.gateway.interest import INTEREST, Interest, read_interest
from cluster.gateway.later import Later
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.next_turn import NextTurn
from cluster.gateway.node_fan_outs import NodeFanOuts
from cluster.gateway.node_traffic import NodeTraffic, Topic
from cluster.gateway.session import GatewaySession
from cluster.gateway.told_interest import ToldInterest
from cluster.iocp import IocpCore
from cluster.shared.group_records import read_publish
from cluster.shared.records import RecordError

__all__ = ["NodeGroups"]

PUBLISH = 2
"""The name of a group and complete packets for its members, as in the record of a lane."""
_KIND = bytes([PUBLISH])

RETRY_S = 0.1
"""How often a node whose log is full is tried to be told of groups."""


class NodeGroups(Topic):
    """Gives publishes to the nodes that want them, and carries out theirs.

    For the dispatching thread. It watches the groups here (`GroupWatcher`).
    """

    def __init__(
        self,
        traffic: NodeTraffic,
        fan_outs: NodeFanOuts,
        core: IocpCore,
        groups: GroupTable[GatewaySession],
        counters: Counters,
    ) -> None:
        """Watch `groups`, and carry publishes of other nodes out on their members."""
        self._traffic = traffic
        self._fan_outs = fan_outs
        self._groups = groups
        self._counters = counters
        self._interest = Interest()
        self._told: dict[int, ToldInterest] = {}  # of each node that has been linked
        self._asked: dict[bytes, dict[GatewaySession, int]] = {}  # with the numbers of their joins
        self._next_turn = NextTurn(core, self._tell_all)
        self._retry = Later(core, RETRY_S, self._next_turn.ask)
        groups.watcher = self
        traffic.register([PUBLISH, INTEREST], self)

    def publish(self, name: bytes, payload: bytes) -> None:
        """Send `payload`, that of a lane's record, to each other node with members of `name`."""
        if self._told:
            for node in self._interest.nodes(name):
                self._counters.add("publishes_to_other_nodes")
                self._traffic.send(node, _KIND + payload)

    def ask(self, session: GatewaySession, name: bytes, request: int) -> None:
        """Have the worker of `session`, which has joined, told when the linked nodes know that."""
        if self._is_known(name):
            session.shard.append_joined(session, name, request)
        else:
            self._asked.setdefault(name, {})[session] = request

    def _is_known(self, name: bytes) -> bool:
        is_linked = self._traffic.is_linked
        return all(told.knows(name) for node, told in self._told.items() if is_linked(node))

    def _answer(self, names: Iterable[bytes]) -> None:
        """Tell those that have joined any of these groups, if the linked nodes know."""
        for name in names:
            if name in self._asked and self._is_known(name):
                for session, request in self._asked.pop(name).items():
                    session.shard.append_joined(session, name, request)

    # -- the groups here (`GroupWatcher`) ----------------------------------------------------------

    def began(self, name: bytes) -> None:
        """Tell the others."""
        self._changed(name, True)

    def ended(self, name: bytes) -> None:
        """Tell the others."""
        self._changed(name, False)

    def left(self, session: GatewaySession, name: bytes) -> None:
        """Nobody is to hear any more that it has joined."""
        session.shard.joined.withdraw(session, name)
        asked = self._asked.get(name)
        if asked is not None:
            asked.pop(session, None)
            if not asked:
                del self._asked[name]

    def _changed(self, name: bytes, is_there: bool) -> None:
        if self._told:
            for told in self._told.values():
                told.changed(name, is_there)
            self._next_turn.ask()

    # -- other nodes (`Topic`) ---------------------------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Have a publish of another node carried out, or learn what it has members for."""
        try:
            if payload[0] == PUBLISH:
                self._publish(delivery, payload)
            else:
                unkept = self._interest.learn(delivery.node, *read_interest(payload))
                if unkept:
                    self._counters.add("group_names_not_kept", unkept)
                self._traffic.settle(delivery)
        except (RecordError, ValueError):
            self._counters.add("links_unreadable_records")
            self._traffic.settle(delivery)

    def _publish(self, delivery: Delivery, payload: bytes) -> None:
        name, packets = read_publish(payload[1:])
        self._counters.add("publishes_of_other_nodes")
        self._fan_outs.take(delivery, packets, lambda: self._groups.members(name))

    def settled(self, node: int, payload: bytes) -> None:
        """What was told is known there; there is room for more."""
        told = self._told.get(node)
        if told is not None:
            if payload[0] == INTEREST:
                self._answer(told.settled())
            self._next_turn.ask()

    def linked(self, node: int, is_new_life: bool) -> None:
        """Tell a node that remembers nothing everything; go on telling another."""
        if is_new_life:
            self._interest.begin(node)
            self._told[node] = ToldInterest(self._groups.names)
        self._next_turn.ask()

    def lost(self, node: int) -> None:
        """It may come back, and knows then what it knew; until then nobody waits for it."""
        self._answer(list(self._asked))

    def removed(self, node: int) -> None:
        """Nobody is there any more."""
        self._interest.forget(node)
        self._told.pop(node, None)
        self._answer(list(self._asked))

    # -- telling -----------------------------------------------------------------------------------

    def _tell_all(self) -> None:
        """Tell the linked nodes what has changed: once for all changes of a turn."""
        for node, told in self._told.items():
            # Only while it is linked, so that what is on the way is what is in this life's log.
            if self._traffic.is_linked(node):
                self._tell(node, told)

    def _tell(self, node: int, told: ToldInterest) -> None:
        while (record := told.next_record(self._groups.has)) is not None:
            if not self._traffic.send(node, record):
                self._retry.ask()
                return
            told.sent()
