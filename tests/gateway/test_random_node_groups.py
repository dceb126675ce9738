"""Groups over three nodes at random, while links are cut: nobody misses anything once it is told.

Workers are scripted: they join, leave and publish as chance has it. A member that has been told of
its join has to hear what is published from then on at each node that was linked with its own in
that moment. Nobody hears anything twice, or that of one sender in another order, or of a group
that it never asked for. Everything follows from the seed; `RANDOM_GROUPS_SEEDS` as in
`test_random_groups`.
"""

import os
import random

import pytest

from cluster.iocp.driver.memory import Faults
from cluster.shared.group_records import read_join
from cluster.shared.records import JOINED
from tests.gateway.test_groups_across_shards import join, leave, publish
from tests.gateway.test_node_groups import Cluster
from tests.iocp.peers import Peer

SEEDS = int(os.environ.get("RANDOM_GROUPS_SEEDS", "4"))
STEPS = 400
NODES = (1, 2, 3)
GROUPS = ("red", "green")
CLIENTS = 9


class Member:
    """One client, and what it is in."""

    def __init__(self, node: int, session: int, peer: Peer) -> None:
        self.node = node
        self.session = session
        self.peer = peer
        self.requests = 0
        self.joins: dict[str, int] = {}
        """The groups that it has asked to join and not left, with the numbers of the joins."""
        self.hears: dict[str, set[int]] = {}
        """Whose publishes it has to hear, as it has been told of its join."""
        self.may: set[bytes] = set()
        """What it may have heard: published while it was in the group, or was under way."""


class Rooms:
    """Three nodes, their clients, and what each of these must and may hear."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.cluster = Cluster(3, seed=seed, faults=Faults(late=0.2, partial_send=0.2))
        self.members: list[Member] = []
        self.must: list[tuple[bytes, Member]] = []
        self.published: list[tuple[bytes, str]] = []
        self.told = 0
        self.cuts = 0
        self._linked: set[tuple[int, int]] = set()
        for number in range(CLIENTS):
            node = NODES[number % len(NODES)]
            self.members.append(Member(node, *self.cluster.connect(node)))

    def step(self) -> None:
        rng, nodes = self._rng, self.cluster.nodes
        linked_before = self._linked
        self._linked = {
            (node, other)
            for node in NODES
            for other in nodes.links(node).nodes
            if nodes.links(node).is_linked(other)
        }
        if rng.random() < 0.03:
            self.cuts += 1
            nodes.cut(*rng.sample(NODES, 2))
        for node in NODES:
            self._hear(node, linked_before & self._linked)
            if rng.random() < 0.5:
                self._act(node)
        nodes.turn(rng.choice((0.0, 0.001, 0.02)))

    def _hear(self, node: int, linked: set[tuple[int, int]]) -> None:
        for record in self.cluster.workers[node].read():
            if record.kind == JOINED:
                request, name = read_join(record.payload)
                (member,) = [each for each in self.members if each.session == record.session]
                if member.joins.get(name.decode()) == request:
                    self.told += 1
                    others = {other for one, other in linked if one == node}
                    member.hears[name.decode()] = {node, *others}

    def _act(self, node: int) -> None:
        rng = self._rng
        name = rng.choice(GROUPS)
        chance = rng.random()
        if chance < 0.5:
            text = b"%d.%04d " % (node, len(self.published))
            self.published.append((text, name))
            self._commit(node, publish(text, name))
            for member in self.members:
                if name in member.joins:
                    member.may.add(text)
                if node in member.hears.get(name, ()):
                    self.must.append((text, member))
            return
        member = rng.choice([each for each in self.members if each.node == node])
        if name in member.joins:
            if chance < 0.8:
                return
            del member.joins[name]
            # What has been published and is on its way here does not have to come.
            if member.hears.pop(name, None):
                of_group = {text for text, group in self.published if group == name}
                self.must = [
                    (text, each)
                    for text, each in self.must
                    if each is not member or text not in of_group or text in each.peer.received
                ]
            self._commit(node, leave(member.session, name))
        else:
            member.requests += 1
            member.joins[name] = member.requests
            # What is on its way to the group may come after all.
            member.may |= {text for text, group in self.published if group == name}
            self._commit(node, join(member.session, name, member.requests))

    def _commit(self, node: int, record: bytes) -> None:
        """Have a record carried out in this moment, so that everybody knows what came first."""
        cluster = self.cluster
        assert cluster.workers[node].commit(record)
        world = cluster.nodes[node]
        world.runner.drain(world.shards[0])

    def settle(self) -> None:
        self.cluster.nodes.run_linked()
        self.cluster.nodes.run_for(1.0)

    def check(self) -> None:
        for member in self.members:
            received = bytes(member.peer.received)
            heard = [received[start : start + 7] for start in range(0, len(received), 7)]
            assert len(heard) == len(set(heard)), "something came twice"
            assert set(heard) <= member.may
            for node in NODES:
                of_node = [text for text in heard if text.startswith(b"%d." % node)]
                assert of_node == sorted(of_node)
        for text, member in self.must:
            assert text in member.peer.received, (text, member.node, member.session)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whoever_is_told_of_a_join_misses_nothing(seed: int) -> None:
    rooms = Rooms(seed)
    try:
        for _ in range(STEPS):
            rooms.step()
        rooms.settle()
        rooms.check()
        assert rooms.cuts > 0
        assert rooms.told > 10
        assert len(rooms.must) > 100
    finally:
        rooms.cluster.nodes.close()
