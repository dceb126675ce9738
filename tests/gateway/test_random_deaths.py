"""Workers that die at any moment: every client gets every reply once, in order, and so do all.

Real sessions on a network that splits and delays transfers, lanes and queues so small that they
are often full, and the worker's own dispatcher and outbox. Everything that happens follows from
the seed in the test's name.
"""

import random

import pytest

from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.local_lane import LocalWorkerLane
from cluster.shared.messages import Grant
from cluster.shared.records import BROADCAST
from cluster.worker.app import App
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.outbox import Outbox
from cluster.worker.session import Session
from tests.gateway.world import GatewayWorld, packets_in
from tests.iocp.peers import Peer

ECHO, TO_ALL = 1, 2
CLIENTS = 5
PACKETS_EACH = 150


class DeadError(Exception):
    """The worker was killed here."""


class MortalWorker:
    """A worker that publishes, or dies, wherever chance wants it to."""

    def __init__(self, rng: random.Random, grant: Grant, lane: LocalWorkerLane) -> None:
        self.app = App()
        self.app.on_packet(ECHO)(self._echo)
        self.app.on_packet(TO_ALL)(self._to_all)
        self.app.attach(self)
        self._rng = rng
        self._lane = lane
        self._outbox = Outbox(1 << 20)
        commit = Commit(grant.position, grant.index)
        self._published = commit
        self._dispatcher = Dispatcher(self.app, self._outbox, commit, 65_531, self._between_packets)
        for session in grant.sessions:
            self._dispatcher.resume(session.id, session.address, session.closing)

    def broadcast(self, packet: bytes) -> None:
        self._outbox.add(BROADCAST, 0, packet)

    def wake(self) -> None:
        pass

    def _echo(self, session: Session, payload: bytes) -> None:
        session.send(ECHO, payload)

    def _to_all(self, session: Session, payload: bytes) -> None:
        self.app.broadcast(TO_ALL, payload)

    def _between_packets(self) -> None:
        chance = self._rng.random()
        if chance < 0.04:
            raise DeadError
        if chance < 0.3:
            self.publish()

    def publish(self) -> bool:
        """Publish if there is anything; False when there is no room."""
        commit = self._dispatcher.commit
        assert commit >= self._published
        if commit == self._published:
            return True
        if not self._lane.publish(commit, self._outbox.records()):
            return False
        self._published = commit
        self._outbox.clear()
        return True

    def work(self) -> None:
        """Handle one chunk, if one has come; raises DeadError."""
        chunk = self._lane.receive()
        if chunk is not None:
            self._dispatcher.run(chunk)
        elif self._rng.random() < 0.5:
            self.publish()


class Client:
    """Sends its packets in random pieces, and reads or does not."""

    def __init__(self, rng: random.Random, peer: Peer, number: int) -> None:
        self._rng = rng
        self.peer = peer
        self.echoes: list[bytes] = []
        self.to_all: list[bytes] = []
        for count in range(PACKETS_EACH):
            payload = b"%d.%d." % (number, count) + b"x" * rng.choice([0, 10, 100, 700])
            if rng.random() < 0.1:
                self.to_all.append(make_packet(TO_ALL, payload))
            else:
                self.echoes.append(make_packet(ECHO, payload))
        packets = [*self.echoes, *self.to_all]
        rng.shuffle(packets)
        self.echoes = [packet for packet in packets if packet in self.echoes]
        self.unsent = b"".join(packets)

    def step(self) -> None:
        if self.unsent and self._rng.random() < 0.5:
            size = self._rng.choice([1, 3, 50, 2_000])
            self.peer.send(self.unsent[:size])
            self.unsent = self.unsent[size:]
        if self._rng.random() < 0.2:
            if self.peer.reading:
                self.peer.read_no_more()
            else:
                self.peer.read()


@pytest.mark.parametrize("seed", range(16))
def test_no_reply_is_lost_repeated_or_reordered(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 2)
    rng = random.Random(seed)
    faults = Faults(partial_send=0.3, partial_recv=0.3, late=0.3)
    network = MemoryNetwork(seed=seed, faults=faults, clock=ManualClock(), buffer_bytes=1_000)
    world = GatewayWorld(
        MemoryDriver(network),
        lane_bytes=4_096,
        send_queue_bytes_max=600_000,
        send_stall_timeout_s=3_600.0,
    )
    # Slow from a few packets on, and never so slow that pushes overflow the queue.
    world.shards[0].slow_bytes = 1_500
    try:
        _live_and_die(rng, world)
    finally:
        world.close()


def _live_and_die(rng: random.Random, world: GatewayWorld) -> None:
    worker = _start_worker(rng, world)
    clients = [Client(rng, world.connect(), number) for number in range(CLIENTS)]
    deaths = 0
    steps = 0
    while not all(_has_everything(client, clients) for client in clients):
        steps += 1
        assert steps < 200_000, _what_is_missing(world, clients)
        for client in clients:
            client.step()
        try:
            worker.work()
        except DeadError:
            deaths += 1
            world.kill()
            worker = _start_worker(rng, world)
        if rng.random() < 0.7:
            world.runner._pump()
        world.turn(0.001)
    for client in clients:
        client.peer.read()
    world.settle()
    broadcasts = sorted(packet for client in clients for packet in client.to_all)
    for client in clients:
        received = packets_in(client.peer.received)
        assert [packet for packet in received if packet in client.echoes] == client.echoes
        assert sorted(packet for packet in received if packet[2] == TO_ALL) == broadcasts
        assert len(received) == len(client.echoes) + len(broadcasts)
    assert deaths > 0
    assert world.violations == []


def _start_worker(rng: random.Random, world: GatewayWorld) -> MortalWorker:
    scripted = world.start_worker()
    return MortalWorker(rng, scripted.grant, scripted.lane)


def _has_everything(client: Client, clients: list[Client]) -> bool:
    expected = sum(map(len, client.echoes))
    expected += sum(len(packet) for other in clients for packet in other.to_all)
    return len(client.peer.received) >= expected


def _what_is_missing(world: GatewayWorld, clients: list[Client]) -> str:
    return str(
        {
            "unsent": [len(client.unsent) for client in clients],
            "received": [len(client.peer.received) for client in clients],
            "held": world.shards[0].held_count,
            "uncommitted": world.lanes[0].log.uncommitted_bytes,
            "sessions": [
                (session.is_slow, session.backlog_bytes)
                for session in world.table.sessions.values()
            ],
        }
    )
