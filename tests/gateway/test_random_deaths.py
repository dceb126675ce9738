"""Workers that die at any moment: every client gets every reply once, in order, and so do all.

And each successor knows exactly what it should of every session: what was saved, how far it is,
whether it has ended, and which packets a predecessor was given. So it does of the shard: what that
has saved for a client is never ahead of its packets or behind them. Real sessions on a network that
splits and delays transfers, lanes and queues so small that they are often full, and the worker's
own dispatcher and outbox. Everything that happens follows from the seed in the test's name.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.local_lane import LocalWorkerLane
from cluster.shared.messages import Grant
from cluster.worker.app import App
from cluster.worker.outbox import Outbox
from cluster.worker.packet_stream import Packets
from cluster.worker.saved_state import SavedState
from cluster.worker.session import Session
from tests.gateway.world import GatewayWorld, make_faulty_world, packets_in
from tests.iocp.peers import Peer
from tests.worker.dispatchers import make_dispatcher, make_runtime

ECHO, SAVE, TO_ALL, LEAVE, FAIL = range(1, 6)
"""Answer; answer and save the packet; tell all; leave, saving that; fail, and leave by that."""

STAYING, LEAVING, FAILING, RESET = "staying", "leaving", "failing", "reset"
CLIENTS = [STAYING] * 4 + [LEAVING, FAILING, RESET]
PACKETS_EACH = 120


class DeadError(BaseException):
    """The worker was killed here: no handler's error."""


class WrongError(BaseException):
    """A handler call was not as it must be: this is not the application's error either."""


class Client:
    """Sends its packets in random pieces, and reads or does not."""

    def __init__(self, rng: random.Random, peer: Peer, number: int, session_id: int) -> None:
        self._rng = rng
        self.peer = peer
        self.session_id = session_id
        self.role = CLIENTS[number]
        self.packets: list[bytes] = []
        for count in range(PACKETS_EACH):
            payload = b"%d.%d." % (number, count) + b"x" * rng.choice([0, 10, 100, 700])
            to_all = self.role == STAYING and rng.random() < 0.1
            kind = TO_ALL if to_all else rng.choice([ECHO, ECHO, SAVE])
            self.packets.append(make_packet(kind, payload))
        self.end: int | None = None
        """The number of the packet behind which nothing is handled."""
        if self.role in (LEAVING, FAILING):
            self.end = PACKETS_EACH * 2 // 3
            kind = LEAVE if self.role == LEAVING else FAIL
            self.packets[self.end - 1] = make_packet(kind, b"%d" % number)
        self.to_all = [packet for packet in self.packets[: self.end] if packet[2] == TO_ALL]
        self.lost_from = self.end if self.role == FAILING else None
        """The number of the first packet of the call that fails, of which nothing remains."""
        self.unsent = b"".join(self.packets)

    @property
    def _kept(self) -> list[bytes]:
        """The packets whose calls do not fail."""
        end = self.end if self.lost_from is None else self.lost_from - 1
        return self.packets[:end]

    @property
    def echoes(self) -> list[bytes]:
        """What it is answered in the end."""
        return [packet for packet in self._kept if packet[2] in (ECHO, SAVE)]

    def saved(self, sequence: int) -> bytes | None:
        """Return what was saved once packet `sequence` was handled for good."""
        for packet in reversed(self._kept[:sequence]):
            if packet[2] in (SAVE, LEAVE):
                return packet[4:]
        return None

    def counted(self, sequence: int) -> int:
        """Return how many packets the shard has counted once `sequence` was handled for good."""
        return min(sequence, len(self._kept))

    def step(self) -> None:
        if self.peer.is_closed:
            return
        if self.peer.ended is not None:
            self.peer.close()
            return
        if self.unsent and self._rng.random() < 0.5:
            size = self._rng.choice([1, 3, 50, 2_000])
            self.peer.send(self.unsent[:size])
            self.unsent = self.unsent[size:]
            if self.role == RESET and len(self.unsent) < 2_000:
                self.unsent = b""
                self.peer.reset()
        elif self._rng.random() < 0.2:
            if self.peer.reading:
                self.peer.read_no_more()
            else:
                self.peer.read()


class Oracle:
    """What every handler call must find, from the clients' packets and what the lane was sent."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self.handled: set[tuple[int, int | str]] = set()
        """What any incarnation has begun to handle."""
        self.sent = 0
        """The last record that a dead incarnation was sent."""
        self.calls: Counter[str] = Counter()

    def check_packet(
        self, session: Session, sequence: int, packet_id: int, payload: bytes, position: int
    ) -> None:
        client = self.clients[session.id]
        assert client.packets[sequence - 1] == make_packet(packet_id, payload)
        assert client.end is None or sequence <= client.end
        if client.lost_from is not None and sequence >= client.lost_from:
            client.lost_from = client.end  # a call that failed was not committed, and comes again
        assert session.saved == client.saved(sequence - 1)
        self._check_redelivered(session, sequence, position)

    def check_event(self, session: Session, event: str, position: int) -> None:
        if event == "opened":
            assert (session.saved, session.sequence) == (None, 0)
        else:
            client = self.clients[session.id]
            # What came behind its end is done without a handler.
            sequence = min(session.sequence, client.end or session.sequence)
            assert session.saved == client.saved(sequence)
        self._check_redelivered(session, event, position)

    def check_resumed(self, session: Session) -> None:
        client = self.clients[session.id]
        self.calls["resumed"] += 1
        assert not session.redelivered
        assert client.end is None or session.sequence < client.end
        assert session.saved == client.saved(session.sequence)

    def _check_redelivered(self, session: Session, what: int | str, position: int) -> None:
        assert session.redelivered == (position <= self.sent), (what, position, self.sent)
        assert session.redelivered or (session.id, what) not in self.handled
        self.handled.add((session.id, what))
        self.calls["redelivered" if session.redelivered else "new"] += 1


class MortalWorker:
    """A worker that publishes, whole or in parts, or dies, wherever chance wants it to."""

    def __init__(
        self,
        rng: random.Random,
        grant: Grant,
        lane: LocalWorkerLane,
        oracle: Oracle,
        *,
        together: bool,
    ) -> None:
        self.app = App()
        if together:
            self.app.on_packets(self._packets)
        else:
            self.app.on_any(self._packet)
        self.app.on_connected(lambda session: self._event(session, "opened"))
        self.app.on_disconnected(lambda session, cause: self._event(session, "closed"))
        self.app.on_resumed(self._resumed)
        self._rng = rng
        self._lane = lane
        self._oracle = oracle
        self._outbox = Outbox(1 << 20)
        saved_state = SavedState(self._outbox, dict(grant.saved), grant.saved_bytes_max)
        self.app._attach(make_runtime(self._outbox, saved_state))
        commit = Commit(grant.position, grant.index)
        self._published = commit
        """What is left of a batch of which a part is published."""
        self._dispatcher = make_dispatcher(
            self.app,
            self._outbox,
            commit,
            self._between_packets,
            redelivered_through=grant.redelivered_through,
        )
        self._check(self._check_counts, {session.id for session in grant.sessions})
        for session in grant.sessions:
            oracle.calls["closing"] += session.closing
            self._dispatcher.resume(session)

    def _maybe_die(self, chance: float) -> None:
        if self._rng.random() < chance:
            raise DeadError

    def _check(self, check: Callable[..., None], *args: Any) -> None:
        try:
            check(*args)
        except AssertionError as error:
            raise WrongError from error

    def _check_counts(self, sessions: set[int]) -> None:
        assert self.app.saved.keys() <= set(map(str, sessions))

    def _counted(self, session: Session) -> int:
        return int(self.app.saved.get(str(session.id), b"0"))

    def _count(self, session: Session, sequence: int) -> None:
        """Count a packet in what the shard saves, which must be as far as the one before it."""
        counted = self._oracle.clients[session.id].counted(sequence - 1)
        self._check(self._same, self._counted(session), counted)
        self.app.save(str(session.id), b"not the last")
        self.app.save(str(session.id), b"%d" % sequence)

    @staticmethod
    def _same(found: int, expected: int) -> None:
        assert found == expected

    def _packets(self, session: Session, packets: Packets) -> None:
        first = session.sequence
        if len(packets) > 1:
            self._oracle.calls["together"] += 1
            if session.redelivered:
                raise WrongError("what may have been in hand before comes one at a time")
        if all(packet_id == ECHO for packet_id, _ in packets):
            for sequence, packet in enumerate(packets, first):
                self._check_packet(session, sequence, *packet)
                self._count(session, sequence)
            session.send_packets(packets)
            return
        for sequence, (packet_id, payload) in enumerate(packets, first):
            self._handle(session, sequence, packet_id, payload)
            if not session.is_open:
                return

    def _packet(self, session: Session, packet_id: int, payload: bytes) -> None:
        self._handle(session, session.sequence, packet_id, payload)

    def _check_packet(
        self, session: Session, sequence: int, packet_id: int, payload: bytes
    ) -> None:
        position = self._dispatcher.commit.position
        self._check(self._oracle.check_packet, session, sequence, packet_id, payload, position)
        self._maybe_die(0.01)

    def _handle(self, session: Session, sequence: int, packet_id: int, payload: bytes) -> None:
        self._check_packet(session, sequence, packet_id, payload)
        self._count(session, sequence)
        if packet_id == TO_ALL:
            self.app.broadcast(TO_ALL, payload)
        elif packet_id in (ECHO, SAVE):
            session.send(packet_id, payload)
        if packet_id in (SAVE, LEAVE):
            session.save(b"not the last")
            session.save(payload)
            assert session.saved == payload
        if packet_id == LEAVE:
            session.disconnect("left")
        if packet_id == FAIL:
            session.save(b"taken back")
            self._oracle.clients[session.id].lost_from = session.sequence
            session.send(FAIL, b"taken back")
            raise ValueError("this handler fails")
        self._maybe_die(0.01)

    def _event(self, session: Session, event: str) -> None:
        self._check(self._oracle.check_event, session, event, self._dispatcher.commit.position)
        if event == "closed":
            client = self._oracle.clients[session.id]
            sequence = min(session.sequence, client.end or session.sequence)
            self._check(self._same, self._counted(session), client.counted(sequence))
            self.app.forget(str(session.id))
        self._maybe_die(0.02)

    def _resumed(self, session: Session) -> None:
        self._check(self._oracle.check_resumed, session)
        counted = self._oracle.clients[session.id].counted(session.sequence)
        self._check(self._same, self._counted(session), counted)
        if session.saved is not None:
            session.save(session.saved)
        self._maybe_die(0.02)

    def _between_packets(self) -> None:
        self._maybe_die(0.02)
        if self._rng.random() < 0.3:
            self.publish()

    def publish(self) -> bool:
        """Publish if there is anything; False when there is no room."""
        commit = self._dispatcher.commit
        assert commit >= self._published
        if commit == self._published and not self._outbox.entries:
            return True
        records = self._outbox.records()
        if not self._lane.publish(commit, records):
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
            self._dispatcher.call(self._save_again)
            self.publish()

    def _save_again(self) -> None:
        for session in self._dispatcher.sessions.values():
            if session.saved is not None:
                session.save(session.saved)


@pytest.mark.parametrize(
    ("together", "seed"),
    [(False, seed) for seed in range(16)] + [(True, seed) for seed in range(8)],
)
def test_no_reply_is_lost_repeated_or_reordered(
    seed: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 2)
    monkeypatch.setattr("cluster.gateway.outbound_steps.RECORDS_MAX", 2)
    monkeypatch.setattr("cluster.gateway.workers.SESSIONS_PER_TURN", 2)
    rng = random.Random(seed)
    world = make_faulty_world(seed, lane_bytes=4_096, send_queue_bytes_max=600_000)
    # Slow from a few packets on, and never so slow that pushes overflow the queue.
    world.shards[0].flow.slow_bytes = 1_500
    try:
        _live_and_die(rng, world, together)
    finally:
        world.close()


def _live_and_die(rng: random.Random, world: GatewayWorld, together: bool) -> None:
    oracle = Oracle()
    worker: MortalWorker | None = _start_worker(rng, world, oracle, together, [])
    clients = [_connect(rng, world, number, oracle) for number in range(len(CLIENTS))]
    deaths = 0
    steps = 0
    while not (
        all(_has_everything(client, clients, oracle) for client in clients)
        and world.shards[0].is_idle
    ):
        steps += 1
        assert steps < 30_000, _what_is_missing(world, clients)
        for client in clients:
            client.step()
        try:
            if worker is None:
                worker = _start_worker(rng, world, oracle, together, clients)
            worker.work()
        except DeadError:
            worker = None
            deaths += 1
            world.runner.drain(world.shards[0])
            oracle.sent = max(oracle.sent, world.lanes[0].log.sent_position)
            world.kill()
        if rng.random() < 0.7:
            world.runner.receive()
        world.turn(0.001)
    for client in clients:
        client.peer.read()
    world.settle()
    for client in clients:
        _check_received(client, clients)
    assert deaths > 0
    assert oracle.calls["redelivered"] > 0
    assert oracle.calls["new"] > 0
    assert oracle.calls["resumed"] > 0
    assert oracle.calls["while it is put together"] > 0
    assert together == (oracle.calls["together"] > 0)
    assert world.violations == []
    committed = world.shards[0].succession.saves
    committed.check_invariants()
    assert committed.replay().keys() == {
        str(client.session_id) for client in clients if client.role == STAYING
    }


def _check_received(client: Client, clients: list[Client]) -> None:
    if client.role == RESET:
        return  # it has thrown away what it got
    received = packets_in(client.peer.received)
    echoes = [packet for packet in received if packet[2] in (ECHO, SAVE)]
    assert echoes == client.echoes
    broadcasts = sorted(packet for packet in received if packet[2] == TO_ALL)
    assert len(received) == len(echoes) + len(broadcasts)
    expected = sorted(packet for other in clients for packet in other.to_all)
    if client.end is None:
        assert broadcasts == expected
    else:
        assert not Counter(broadcasts) - Counter(expected)


def _connect(rng: random.Random, world: GatewayWorld, number: int, oracle: Oracle) -> Client:
    client = Client(rng, world.connect(), number, world.newest().id)
    oracle.clients[client.session_id] = client
    return client


def _start_worker(
    rng: random.Random, world: GatewayWorld, oracle: Oracle, together: bool, clients: list[Client]
) -> MortalWorker:
    def meanwhile() -> None:
        oracle.calls["while it is put together"] += 1
        for client in clients:
            client.step()

    scripted = world.start_worker(meanwhile=meanwhile)
    assert scripted.grant.redelivered_through == oracle.sent
    return MortalWorker(rng, scripted.grant, scripted.lane, oracle, together=together)


def _has_everything(client: Client, clients: list[Client], oracle: Oracle) -> bool:
    if client.role != STAYING:
        return (client.session_id, "closed") in oracle.handled
    expected = sum(map(len, client.echoes))
    expected += sum(len(packet) for other in clients for packet in other.to_all)
    return len(client.peer.received) >= expected


def _what_is_missing(world: GatewayWorld, clients: list[Client]) -> str:
    return str(
        {
            "unsent": [len(client.unsent) for client in clients],
            "received": [len(client.peer.received) for client in clients],
            "ended": [client.peer.ended for client in clients],
            "held": len(world.shards[0].flow.held),
            "uncommitted": world.lanes[0].log.uncommitted_bytes,
            "sessions": [
                (session.is_slow, session.backlog_bytes)
                for session in world.table.sessions.values()
            ],
        }
    )
