"""What the intake does with a batch is what sessions would have done with it, one by one."""

import errno
import random
import struct
from typing import Any

import pytest

from cluster.gateway.intake import Intake
from cluster.gateway.session import GatewaySession
from cluster.iocp import EventType, IocpEvent, IocpObject
from cluster.iocp.driver import Completion
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.iocp_core import deliver_one
from cluster.iocp.packet_framing import make_packet
from cluster.shared.causes import Cause
from cluster.shared.config import LimitsConfig
from cluster.shared.records import CLOSED, OPENED, PACKETS
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, ScriptedWorker, content
from tests.iocp.peers import Peer

STEPS = 500
CLIENTS_MAX = 6

LIMITS = {
    "none": LimitsConfig(),
    "idle": LimitsConfig(idle_timeout_s=2),
    "rates": LimitsConfig(packets_per_s=400, packets_burst=40, bytes_per_s=1 << 20),
    "accept": LimitsConfig(auth_timeout_s=3),
}


class Play:
    """One node and its clients, who do what a seed says; what came of it is in `outcome`."""

    def __init__(self, seed: int, limits: LimitsConfig, *, has_intake: bool) -> None:
        self._rng = random.Random(seed)
        faults = Faults(partial_recv=0.1, partial_send=0.1)
        network = MemoryNetwork(
            seed=seed, buffer_bytes=8_192, clock=ManualClock(1_000.0), faults=faults
        )
        self.world = GatewayWorld(
            MemoryDriver(network),
            shard_count=2,
            lane_bytes=6_000,
            max_packet_bytes=900,
            send_queue_bytes_max=8_000,
            limits=limits,
            has_intake=has_intake,
        )
        self._workers = [self.world.start_worker(shard, public_ids=[1]) for shard in range(2)]
        self._clients: list[Peer] = []

    def run(self) -> None:
        for _ in range(STEPS):
            self._step()
        for peer in self._clients:
            peer.read()
        for _ in range(20):
            for worker in self._workers:
                worker.echo()
            self.world.pass_time(0.05)

    def outcome(self) -> list[Any]:
        """All that anybody could see."""
        return [
            [worker.records for worker in self._workers],
            [(bytes(peer.received), peer.ended) for peer in self._clients],
            self.world.counters.snapshot(),
            [
                (
                    session.id,
                    session.next_sequence,
                    session.uncommitted_bytes,
                    session.received_at,
                    session.is_slow,
                    session.is_recv_paused,
                    session.unconsumed_bytes,
                )
                for session in self.world.table.sessions.values()
            ],
        ]

    def _step(self) -> None:
        rng, world = self._rng, self.world
        what = rng.random()
        if what < 0.05 and sum(not peer.is_closed for peer in self._clients) < CLIENTS_MAX:
            self._clients.append(world.connect(reading=rng.random() < 0.8))
        elif what < 0.6 and self._clients:
            for peer in rng.sample(self._clients, rng.randint(1, len(self._clients))):
                if not (peer.is_shut_down or peer.is_closed or peer.ended):
                    peer.send(self._something())
        elif what < 0.62 and self._clients:
            peer = rng.choice(self._clients)
            if not (peer.unsent_bytes or peer.is_shut_down or peer.is_closed or peer.ended):
                peer.shut_down()
        elif what < 0.63 and self._clients:
            rng.choice(self._clients).reset()
        elif what < 0.8:
            self._work(rng.choice(self._workers))
        elif what < 0.82:
            for session in list(world.table.sessions.values()):
                session.accept()
        else:
            world.pass_time(rng.choice([0.001, 0.01, 0.1]))
        world.turn()

    def _something(self) -> bytes:
        """Mostly one packet; else several, or a part of one, or what cannot be."""
        rng = self._rng
        packets = [
            make_packet(rng.choice([1, 1, 1, 2]), rng.randbytes(rng.choice([0, 1, 60, 890])))
            for _ in range(rng.choice([1, 1, 1, 1, 2, 5]))
        ]
        data = b"".join(packets)
        what = rng.random()
        if what < 0.1:
            return data[: rng.randrange(len(data)) + 1]
        if what < 0.11:
            return data + struct.pack("<H", rng.choice([0, 3, 901]))
        return data

    def _work(self, worker: ScriptedWorker) -> None:
        if self._rng.random() < 0.7:
            worker.echo()
        else:
            worker.read()


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seed", range(12))
def test_nobody_can_tell_whether_there_is_an_intake(seed: int, limits: str):
    outcomes = []
    for has_intake in (False, True):
        play = Play(seed, LIMITS[limits], has_intake=has_intake)
        try:
            play.run()
            outcomes.append(play.outcome())
        finally:
            play.world.close()
    assert outcomes[0] == outcomes[1]
    records = [record for worker in outcomes[1][0] for record in worker]
    assert sum(record.kind == PACKETS for record in records) > STEPS // 50


class Counting(IocpObject):
    """Counts what it is given, and raises if it is told to."""

    def __init__(self) -> None:
        self.handle = None
        self.count = 0
        self.error: Exception | None = None

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


def test_what_came_before_somebody_raises_is_in_the_lane_and_what_came_behind_is_not_lost(
    gateway: MakeGateway,
):
    world = gateway()
    worker = world.start_worker()
    peers = [world.connect() for _ in range(2)]
    sessions = list(world.table.sessions.values())
    world.settle()
    broken = Broken()
    first, second = (received(session, make_packet(1, b"%d" % session.id)) for session in sessions)
    batch = iter([first, (IocpEvent(EventType.POST, broken), 0), second])
    intake = intake_of(world)
    with pytest.raises(KeyError, match="on purpose"):
        intake.deliver(batch)
    assert [event for event, _ in batch] == [second[0]]
    intake.deliver(iter([second]))
    world.wait_for(worker, PACKETS, 2)
    assert packets_of(worker) == [make_packet(1, b"%d" % session.id) for session in sessions]
    for peer in peers:
        peer.send(make_packet(2, b"and they go on"))
    world.wait_for(worker, PACKETS, 4)


def test_one_that_cannot_be_received_from_again_ends_and_no_other(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    world = gateway()
    worker = world.start_worker()
    peers = [world.connect() for _ in range(3)]
    sessions = list(world.table.sessions.values())
    world.settle()
    driver = type(world.core.driver)
    recv_again = driver.recv_again

    def fail_for_one(self: Any, event: IocpEvent) -> None:
        if event.owner is sessions[1]:
            raise MemoryError
        recv_again(self, event)

    monkeypatch.setattr(driver, "recv_again", fail_for_one)
    packets = [make_packet(1, b"%d" % session.id) for session in sessions]
    completions = map(received, sessions, packets)
    intake_of(world).deliver(iter(list(completions)))
    world.wait_for(worker, CLOSED)
    assert packets_of(worker) == packets
    world.wait_ended(peers[1])
    for peer in peers[::2]:
        peer.send(make_packet(2, b"and they go on"))
    world.wait_for(worker, PACKETS, 5)
    assert list(world.table.sessions.values()) == sessions[::2]


def test_one_whose_rate_ends_it_and_whose_socket_refuses_harms_no_other(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    world = gateway(limits=LimitsConfig(packets_per_s=1, packets_burst=1))
    worker = world.start_worker()
    peers = [world.connect() for _ in range(2)]
    fast, slow = world.table.sessions.values()
    world.settle()
    packet = make_packet(1, b"")
    intake_of(world).deliver(iter([received(fast, packet)]))

    def refuse(self: Any) -> None:
        raise OSError(errno.EINVAL, "the peer has reset the connection, says macOS")

    monkeypatch.setattr(type(fast.handle), "reset_on_close", refuse)
    intake_of(world).deliver(iter([received(fast, packet), received(slow, packet)]))
    world.wait_for(worker, PACKETS, 2)
    assert worker.kinds() == [OPENED, OPENED, PACKETS, CLOSED, PACKETS]
    assert worker.records[3].payload == Cause.RATE_LIMITED.encode()
    world.wait_ended(peers[0])
    assert list(world.table.sessions.values()) == [slow]


class Broken(IocpObject):
    """Raises when it is given anything."""

    def __init__(self) -> None:
        self.handle = None

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        raise KeyError("on purpose")


def test_a_packet_is_ahead_of_its_session_s_end_that_came_in_the_same_batch(gateway: MakeGateway):
    world, worker, session = one_client(gateway())
    intake_of(world).deliver(
        iter(
            [
                received(session, make_packet(1, b"last words")),
                (IocpEvent(EventType.POST, Ending(session)), 0),
            ]
        )
    )
    world.wait_for(worker, CLOSED)
    assert worker.kinds() == [OPENED, PACKETS, CLOSED]
    assert worker.records[-1].payload == Cause.HANDLER_ERROR.encode()


class Ending(IocpObject):
    """Ends a session from within the batch."""

    def __init__(self, session: GatewaySession) -> None:
        self.handle = None
        self._session = session

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        self._session.abort(Cause.HANDLER_ERROR)
        self._session.shard.append_closed(self._session, Cause.HANDLER_ERROR)


def test_no_batch_puts_more_into_a_lane_than_the_packet_that_fills_it(gateway: MakeGateway):
    world = gateway(lane_bytes=2_048)
    worker = world.start_worker()
    peers = [world.connect() for _ in range(12)]
    sessions = list(world.table.sessions.values())
    world.settle()
    worker.read()
    assert worker.commit()
    world.run_until(lambda: world.shards[0].log.is_committed, "the sessions")
    packet = make_packet(1, b"x" * 300)
    intake_of(world).deliver(iter([received(session, packet) for session in sessions]))
    log = world.shards[0].log
    assert 2_048 <= log.uncommitted_bytes < 2_048 + len(packet) + 64
    assert world.count("lane_full") == len(world.shards[0].flow.held) == 12 - log.packets_appended
    world.echoing = [worker]
    world.wait_received(peers, len(packet))


def test_a_lane_that_is_full_holds_up_the_sessions_of_no_other(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    world = gateway(shard_count=2, lane_bytes=1_024)
    for shard in range(2):
        world.start_worker(shard)
    for _ in range(8):
        world.connect()
    world.settle()
    packet = make_packet(1, b"x" * 300)
    sessions = list(world.table.sessions.values())
    full, free = ([s for s in sessions if s.shard is shard] for shard in world.shards)
    intake = intake_of(world)
    intake.deliver(iter([received(session, packet) for session in full]))
    assert world.shards[0].log.is_full
    delivered: list[IocpEvent] = []
    monkeypatch.setattr("cluster.gateway.intake.deliver_one", lambda e, n: delivered.append(e))
    before = world.shards[1].log.packets_appended
    intake.deliver(iter([received(session, make_packet(1, b"y")) for session in free]))
    assert world.shards[1].log.packets_appended == before + len(free)
    assert delivered == []


def test_a_session_that_is_paused_has_its_last_recv_and_no_other(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    world.settle()
    event, num_bytes = received(session, make_packet(1, b"in flight"))
    session.pause_recv()
    intake_of(world).deliver(iter([(event, num_bytes)]))
    world.wait_for(worker, PACKETS)
    assert event.owner is None
    peer.send(make_packet(1, b"later"))
    world.settle()
    worker.read()
    assert worker.kinds() == [OPENED, PACKETS]
    session.resume_recv()
    world.wait_for(worker, PACKETS, 2)


def test_nothing_is_kept_of_what_was_passed_on(gateway: MakeGateway):
    world, _, session = one_client(gateway())
    event, num_bytes = received(session, make_packet(1, b"x" * 1_000))
    intake_of(world).deliver(iter([(event, num_bytes)]))
    assert event.data is None
    assert event.owner is session


def test_what_comes_for_a_session_that_is_ending_is_thrown_away(gateway: MakeGateway):
    world, worker, session = one_client(gateway())
    completion = received(session, make_packet(1, b"too late"))
    session.disconnect("enough")
    intake_of(world).deliver(iter([completion]))
    world.settle()
    worker.read()
    assert worker.kinds() == [OPENED]


@pytest.mark.parametrize("size", [0, 3, 101])
def test_a_recv_of_one_packet_that_cannot_be_ends_its_session(gateway: MakeGateway, size: int):
    world, worker, session = one_client(gateway(max_packet_bytes=100))
    data = struct.pack("<H", size).ljust(size, b"x")
    intake_of(world).deliver(iter([received(session, data)]))
    world.wait_for(worker, CLOSED)
    assert worker.kinds() == [OPENED, CLOSED]
    assert worker.records[-1].payload == Cause.BAD_SIZE.encode()


def one_client(world: GatewayWorld) -> tuple[GatewayWorld, ScriptedWorker, GatewaySession]:
    """Return `world`, its worker, and the session of its client, which has sent nothing yet."""
    worker = world.start_worker()
    world.connect()
    world.settle()
    return world, worker, world.newest()


def intake_of(world: GatewayWorld) -> Intake:
    return Intake(world.core, world.shards, world.limits)


def packets_of(worker: ScriptedWorker) -> list[bytes]:
    """Return the packets that have come, in order."""
    records = [record for record in worker.records if record.kind == PACKETS]
    return [packet for record in records for packet in content(record)[1]]


def received(session: GatewaySession, data: bytes) -> Completion:
    """Return what a driver would if `session` had received `data`: its recv, completed."""
    event, driver = session._recv_event, session._driver
    driver.cancel(event)
    for _ in range(100):
        for completion in driver.poll(0.01, 16):
            if completion[0] is event:
                event.init()
                event.data = data
                return event, len(data)
            deliver_one(*completion)
    raise AssertionError("the recv was not cancelled")
