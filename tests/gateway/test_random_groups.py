"""Groups at random while workers die at random: everybody hears what they must, once and in order.

Clients of two shards join and leave a few groups, publish to them, come and go; the shards' workers
are killed at any moment, with the worker's own dispatcher and outbox. The model is what clients can
know: who has the answer to a join when something is published gets it, who has the answer to a
leave does not, and in between either is right. Each join that lasts is told to the application.
Everything that happens follows from the seed in the test's name; `RANDOM_GROUPS_SEEDS=500` in the
environment tries more of them.
"""

import os
import random
from collections.abc import Iterable

import pytest

from cluster.iocp.driver.memory import MemoryDriver
from cluster.iocp.packet_framing import make_packet
from cluster.shared.group_records import pack_publish
from cluster.shared.local_lane import LocalWorkerLane
from cluster.shared.messages import Grant
from cluster.shared.records import PUBLISH as PUBLISH_RECORD
from cluster.worker import App, Session
from tests.gateway.test_random_logins import DeadError, MortalWorker, Oracle, WrongError
from tests.gateway.world import GatewayWorld, make_faulty_world, packets_in
from tests.iocp.peers import Peer

JOIN, LEAVE, PUBLISH, PUBLISH_TO_OTHERS, FAIL, END, HEARD = range(1, 8)
GROUPS = ("red", "green", "blue")
SEEDS = int(os.environ.get("RANDOM_GROUPS_SEEDS", "6"))
STEPS = 1_200
CLIENTS_MAX = 8
UNDER_WAY_MAX = 24
"""Publishes that are not answered: with more of them little is certain of who has to hear what."""


class GroupOracle(Oracle):
    """What was seen in which handler call: the same groups in each life."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[tuple[int, object], frozenset[str]] = {}
        self.ended = 0
        self.told: set[tuple[int, str, int]] = set()
        """Joins that `on_joined` was called for: session, group, and the number of the join."""

    def check(self, session: Session, call: object) -> None:
        super().check(session, call)
        seen = self.groups.setdefault((session.id, call), session.groups)
        if seen != session.groups:
            raise WrongError(session.id, call, seen, session.groups)


class GroupWorker(MortalWorker):
    """A worker whose handlers join, leave and publish as they are told."""

    _oracle: GroupOracle

    def __init__(
        self, rng: random.Random, app: App, grant: Grant, lane: LocalWorkerLane, oracle: GroupOracle
    ) -> None:
        app.on_joined(self._joined)
        super().__init__(rng, app, grant, lane, oracle)

    def _joined(self, session: Session, name: str) -> None:
        self._oracle.check(session, ("joined", self.dispatcher.commit.position))
        assert session._member_of is not None
        self._oracle.told.add((session.id, name, session._member_of[name]))
        self._maybe_die(0.01)

    def _packet(self, session: Session, packet_id: int, payload: bytes) -> None:
        self._oracle.check(session, session.sequence)
        self._maybe_die(0.01)
        name, _, text = payload.decode().partition(" ")
        if packet_id == JOIN:
            session.join(name)
        elif packet_id == LEAVE:
            session.leave(name)
        elif packet_id in (PUBLISH, PUBLISH_TO_OTHERS):
            left_out = session.id if packet_id == PUBLISH_TO_OTHERS else 0
            packet = make_packet(HEARD, text.encode())
            self._outbox.add(PUBLISH_RECORD, left_out, pack_publish(name.encode(), packet))
        elif packet_id == FAIL:
            for group in GROUPS:
                session.leave(group)
            session.join("never")
            packet = make_packet(HEARD, b"never")
            for group in (*GROUPS, "never"):
                self._outbox.add(PUBLISH_RECORD, 0, pack_publish(group.encode(), packet))
            raise ValueError("this handler fails")
        elif packet_id == END:
            session.disconnect("left")
        session.send(packet_id, payload)
        self._maybe_die(0.01)

    def _disconnected(self, session: Session, cause: str) -> None:
        self._oracle.check(session, "end")
        self._oracle.ended += 1
        self._maybe_die(0.02)


class Client:
    """One connection, what it has been told, and what that lets it know of groups."""

    def __init__(self, number: int, peer: Peer) -> None:
        self.number = number
        self.peer = peer
        self.member_of: set[str] = set()
        """Groups whose join was answered, and which it has not asked to leave since."""
        self.maybe_in: set[str] = set()
        """Groups that it has asked to join, and whose leave, if asked for, was not answered."""
        self.asked: set[str] = set()
        """Groups with a join or leave that is not answered."""
        self.heard: list[bytes] = []
        self.is_gone = False
        self._read = 0

    def take_in(self) -> Iterable[tuple[int, bytes]]:
        """Return the packets that have come since the last time: complete ones, in order."""
        data = bytes(self.peer.received[self._read :])
        end = 0
        while len(data) - end >= 4 and len(data) - end >= (size := data[end] | data[end + 1] << 8):
            end += size
        self._read += end
        return [(packet[2] | packet[3] << 8, packet[4:]) for packet in packets_in(data[:end])]


class Publish:
    """One thing that was published: who has to hear it, and who may."""

    def __init__(
        self, group: str, left_out: Client | None, must: set[Client], may: set[Client]
    ) -> None:
        self.group = group
        self.left_out = left_out
        self.must = must
        self.may = may


class Rooms:
    """Two shards, their workers, the clients that come and go, and the model."""

    def __init__(self, rng: random.Random, world: GatewayWorld) -> None:
        self._rng = rng
        driver = world.core.driver
        assert isinstance(driver, MemoryDriver)
        self._network = driver.network
        self.world = world
        self.oracle = GroupOracle()
        self.clients: list[Client] = []
        self.everybody: list[Client] = []
        self.published: dict[bytes, Publish] = {}
        self.under_way: dict[bytes, Publish] = {}
        """Those that are not answered, of clients that are there."""
        self.adrift: dict[bytes, Publish] = {}
        """Those of clients that left before an answer: they may take effect, at any time."""
        self.deaths = 0
        self.workers = [self._start(shard) for shard in range(2)]

    def _start(self, shard: int) -> GroupWorker:
        scripted = self.world.start_worker(shard)
        return GroupWorker(self._rng, App(), scripted.grant, scripted.lane, self.oracle)

    # -- what clients do ---------------------------------------------------------------------------

    def act(self) -> None:
        """One client does something."""
        rng = self._rng
        if len(self.clients) < 3 or (len(self.clients) < CLIENTS_MAX and rng.random() < 0.1):
            client = Client(len(self.everybody), self.world.connect())
            self.clients.append(client)
            self.everybody.append(client)
        client = rng.choice(self.clients)
        chance = rng.random()
        if chance < 0.02:
            client.peer.reset()
            self._leaves(client)
        elif chance < 0.04:
            client.peer.send(make_packet(rng.choice((FAIL, END)), b""))
            self._leaves(client)
        else:
            for _ in range(rng.choice((1, 1, 1, 5))):
                self._say(client, rng.choice(GROUPS))

    def _say(self, client: Client, group: str) -> None:
        kind = self._rng.choice((JOIN, JOIN, LEAVE, PUBLISH, PUBLISH, PUBLISH_TO_OTHERS))
        if kind in (PUBLISH, PUBLISH_TO_OTHERS):
            text = b"%d.%d" % (client.number, len(self.published))
            others = [each for each in self.everybody if kind == PUBLISH or each is not client]
            self.published[text] = self.under_way[text] = Publish(
                group,
                client if kind == PUBLISH_TO_OTHERS else None,
                {each for each in others if group in each.member_of and not each.is_gone},
                {each for each in others if group in each.maybe_in},
            )
            client.peer.send(make_packet(kind, f"{group} {text.decode()}".encode()))
            return
        if group in client.asked:
            return
        client.asked.add(group)
        if kind == JOIN:
            client.maybe_in.add(group)
            # What is under way to all may come after that.
            for each in self._under_way(group):
                if each.left_out is not client:
                    each.may.add(client)
        else:
            client.member_of.discard(group)
            for each in self._under_way(group):
                each.must.discard(client)
        client.peer.send(make_packet(kind, group.encode()))

    def _under_way(self, group: str) -> list[Publish]:
        not_known = [*self.under_way.values(), *self.adrift.values()]
        return [each for each in not_known if each.group == group]

    def _leaves(self, client: Client) -> None:
        """What it has not heard yet, and what it has published without an answer, may get lost."""
        client.is_gone = True
        self.clients.remove(client)
        heard = set(client.heard)
        for text, publish in self.published.items():
            if text not in heard:
                publish.must.discard(client)
        for text in [each for each in self.under_way if each.startswith(b"%d." % client.number)]:
            self.adrift[text] = lost = self.under_way.pop(text)
            lost.must = {each for each in lost.must if text in each.heard}

    def _hear(self) -> None:
        for client in self.everybody:
            for kind, payload in client.take_in():
                if kind == HEARD:
                    client.heard.append(payload)
                elif kind in (PUBLISH, PUBLISH_TO_OTHERS):
                    self.under_way.pop(payload.partition(b" ")[2], None)
                elif kind in (JOIN, LEAVE):
                    self._answered(client, kind, payload.decode())

    @staticmethod
    def _answered(client: Client, kind: int, group: str) -> None:
        client.asked.discard(group)
        if kind == JOIN:
            client.member_of.add(group)
        else:
            client.maybe_in.discard(group)

    # -- the world ---------------------------------------------------------------------------------

    def step(self, *, act: bool = True) -> None:
        if act and len(self.under_way) < UNDER_WAY_MAX and self._rng.random() < 0.5:
            self.act()
        for shard in range(2):
            try:
                self.workers[shard].work()
            except DeadError:
                self.deaths += 1
                self.world.runner.drain(self.world.shards[shard])
                self.world.kill(shard)
                self.workers[shard] = self._start(shard)
        if self._rng.random() < 0.7:
            self.world.runner.receive()
        self.world.turn(0.001)
        self._hear()
        for client in self.everybody:
            if client.peer.ended is not None:
                client.peer.close()

    def settle(self) -> None:
        """Let all that was sent be done and heard, and all that is ending end."""
        quiet = steps = 0
        while quiet < 3:
            steps += 1
            assert steps < 20_000
            self.step(act=False)
            quiet = quiet + 1 if self._is_settled() else 0

    def _is_settled(self) -> bool:
        if self.under_way or any(client.asked for client in self.clients):
            return False
        sessions = self.world.table.sessions.values()
        is_sent = not any(session.queued_bytes for session in sessions)
        is_idle = all(shard.is_idle for shard in self.world.shards)
        network = self._network
        with network.lock:
            is_heard = network.is_quiet() and network.next_late() is None
        return is_sent and is_idle and is_heard and len(sessions) == len(self.clients)

    def check(self) -> None:
        """Everybody has heard what they must and may, once, in the order of each sender."""
        for client in self.everybody:
            assert len(client.heard) == len(set(client.heard)), "something came twice"
            for text in client.heard:
                assert client in self.published[text].may
            order: dict[bytes, int] = {}
            for sender, _, number in (text.partition(b".") for text in client.heard):
                assert order.get(sender, -1) < int(number)
                order[sender] = int(number)
        for text, publish in self.published.items():
            for client in publish.must:
                assert text in client.heard, (text, client.number)
        known: dict[int, frozenset[str]] = {}
        for worker in self.workers:
            for session in worker.dispatcher.sessions.values():
                known[session.id] = session.groups
                for name, request in (session._member_of or {}).items():
                    assert (session.id, name, request) in self.oracle.told
        members = {name: self.world.table.groups.members(name.encode()) for name in GROUPS}
        for session_id, member in self.world.table.sessions.items():
            groups = {name for name in GROUPS if member in members[name]}
            assert known.pop(session_id) == groups
        assert not known
        assert self.world.table.groups.members(b"never") == []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_members_hear_everything_once_and_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 2)
    rng = random.Random(seed)
    world = make_faulty_world(seed, shard_count=2)
    try:
        rooms = Rooms(rng, world)
        for _ in range(STEPS):
            rooms.step()
        rooms.settle()
        rooms.check()
        assert rooms.deaths > 0
        assert rooms.oracle.repeated > 0
        assert rooms.oracle.ended > 0
        assert sum(len(publish.must) for publish in rooms.published.values()) > 100
        assert world.violations == []
    finally:
        world.close()
