"""How long things wait for their commit, as samples tell it: the object alone, and in a gateway."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from cluster.gateway.commit_times import RECENT_MAX, RECENT_S, SAMPLES_MAX, CommitTimes
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.node_status import COMMIT_BOUNDS_S, CommitWaits
from cluster.shared.records import OPENED
from tests.gateway.world import GatewayWorld, ScriptedWorker
from tests.iocp.peers import Peer


class Timed:
    """A log whose records are flushed and committed at times that the test says."""

    def __init__(self) -> None:
        self.log = InboundLog(1 << 20)
        self.times = CommitTimes()

    def flush(self, at: float, count: int = 1) -> None:
        for _ in range(count):
            self.log.append(OPENED, b"x", 0, None)
        self.log.mark_sent(count)
        self.times.flushed(self.log, at)

    def commit(self, position: int, at: float) -> None:
        self.log.commit(Commit(position, 0))
        if self.times.position and self.times.position < position:
            self.times.committed(position, at)

    def told(self, now: float) -> CommitWaits:
        waits = self.times.told(now)
        assert len(waits.counts) == len(COMMIT_BOUNDS_S) + 1
        return waits


def test_there_is_nothing_to_tell_before_the_first():
    told = Timed().told(1.0)
    assert (told.median_s, told.worst_s, told.sum_s, sum(told.counts)) == (None, None, 0, 0)


def test_a_sample_runs_from_its_flush_to_the_commit_that_covers_it():
    timed = Timed()
    timed.flush(1.0, count=3)
    assert timed.times.position == 3
    timed.commit(3, 1.5)  # of two of them
    assert timed.told(2.0).median_s == 1.0  # as long as it has lasted
    assert sum(timed.told(2.0).counts) == 0
    timed.commit(4, 3.0)
    told = timed.told(3.0)
    assert (told.median_s, told.worst_s, told.sum_s) == (2.0, 2.0, 2.0)
    assert told.counts[COMMIT_BOUNDS_S.index(2.0)] == 1 == sum(told.counts)


def test_a_stall_has_as_many_samples_as_the_time_in_which_packets_come_into_it():
    timed = Timed()
    for number in range(1, 65):  # a second in which each takes 1 ms
        timed.flush(number / 64)
        timed.commit(number + 1, number / 64 + 0.001)
    for number in range(1, 257):  # and one in which a packet comes each 4 ms, and waits
        timed.flush(1.0 + number / 256)
    told = timed.told(2.0)
    assert (sum(told.counts), told.worst_s) == (64, 0.988281)
    timed.commit(65 + 256, 2.0)
    told = timed.told(2.0)
    assert (sum(told.counts), told.worst_s) == (64 + 85, 0.988281)
    assert sum(told.counts[COMMIT_BOUNDS_S.index(0.5) + 1 :]) == 42
    assert told.median_s is not None
    assert 0.001 <= told.median_s < 0.1  # half of the time there was no stall


def test_samples_of_a_long_stall_are_bounded():
    timed = Timed()
    count = 2 * SAMPLES_MAX
    for number in range(count):
        timed.flush(number / 64)
    timed.commit(SAMPLES_MAX // 2 + 1, 100.0)
    assert sum(timed.told(100.0).counts) == SAMPLES_MAX // 2
    timed.commit(count + 1, 101.0)
    assert sum(timed.told(101.0).counts) == SAMPLES_MAX
    timed.flush(102.0)
    timed.commit(count + 2, 102.5)
    assert sum(timed.told(103.0).counts) == SAMPLES_MAX + 1


def test_samples_begin_apart():
    timed = Timed()
    for number, at in enumerate((1.0, 1.004, 1.008, 1.012, 1.016), 1):
        timed.flush(at)
        timed.commit(number + 1, at + 0.001)
    assert sum(timed.told(2.0).counts) == 2


def test_what_is_told_as_recent_is_of_the_last_minute():
    timed = Timed()
    for number, (at, took) in enumerate(((10.0, 0.3), (60.0, 0.1), (61.0, 0.2), (62.0, 0.15)), 1):
        timed.flush(at)
        timed.commit(number + 1, at + took)
    told = timed.told(80.0)
    assert (told.median_s, told.worst_s, told.sum_s) == (0.15, 0.2, 0.75)
    told = timed.told(500.0)
    assert (told.median_s, told.worst_s, told.sum_s) == (None, None, 0.75)


def test_the_last_minute_is_told_of_also_where_it_is_full_of_samples():
    timed = Timed()
    for number in range(1, 55 * 64):
        at = number / 64
        took = 0.009 if number == 64 else 0.004 if at < 35 else 0.001
        timed.flush(at)
        timed.commit(number + 1, at + took)
    told = timed.told(55.0)
    assert (told.median_s, told.worst_s) == (0.004, 0.009)
    told = timed.told(65.0)
    assert (told.median_s, told.worst_s) == (0.004, 0.004)
    assert sum(told.counts) == 55 * 64 - 1
    for now in range(65, 116):
        told = timed.told(now - 0.99)
        assert (told.median_s is None) == (told.worst_s is None)
    assert timed.told(116.0).worst_s is None


def test_samples_do_not_pile_up():
    timed = Timed()
    for number in range(1, RECENT_MAX + 100):
        timed.flush(number * 0.1)
        timed.commit(number + 1, number * 0.1)
    assert len(timed.times._recent) == RECENT_MAX
    assert len(timed.times._worst) <= RECENT_S + 1


def test_each_lies_between_its_bounds():
    timed = Timed()
    for number, took in enumerate((0.0, *COMMIT_BOUNDS_S, 100.0), 1):
        timed.flush(number * 1_000.0)
        timed.commit(number + 1, number * 1_000.0 + took)
    assert sum(timed.told(0.0).counts) == len(COMMIT_BOUNDS_S) + 2
    assert all(low < high for low, high in pairwise(COMMIT_BOUNDS_S))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def world(clock: ManualClock) -> Iterator[GatewayWorld]:
    made = GatewayWorld(MemoryDriver(MemoryNetwork(clock=clock)))
    yield made
    made.close()


def test_in_a_gateway_it_is_the_time_of_packets_that_of_a_dead_worker_included(
    clock: ManualClock, world: GatewayWorld
):
    worker = world.start_worker()
    peer = world.connect()
    world.wait_for(worker, OPENED)
    clock.advance(0.004)
    worker.commit()
    world.settle()
    clock.advance(1.0)
    world.turn()
    peer.send(make_packet(1, b"x"))
    world.settle()
    clock.advance(0.25)
    world.kill()
    worker = world.start_worker()
    world.settle()
    clock.advance(0.5)
    world.turn()
    worker.echo()
    world.settle()
    told = world.shards[0].commit_times.told(clock.now())
    assert told.worst_s is not None
    assert 0.75 <= told.worst_s < 0.8
    assert sum(told.counts) == 2
    assert 0.754 <= told.sum_s < 0.8


def begin(world: GatewayWorld) -> tuple[ScriptedWorker, Peer]:
    """Return the worker of a client whose opening is committed, and that client."""
    worker = world.start_worker()
    peer = world.connect()
    world.wait_for(worker, OPENED)
    worker.commit()
    world.settle()
    return worker, peer


def count_samples(world: GatewayWorld) -> int:
    """Return how many samples are committed."""
    return sum(world.shards[0].commit_times.told(world.core.now()).counts)


def test_in_a_gateway_what_is_flushed_again_is_not_new(clock: ManualClock, world: GatewayWorld):
    worker, peer = begin(world)
    before = count_samples(world)
    clock.advance(1.0)
    world.turn()
    peer.send(make_packet(1, b"x"))
    world.settle()
    for _ in range(3):
        clock.advance(1.0)
        world.shards[0].needs_flush = True
        world.turn()
    worker.echo()
    world.settle()
    assert count_samples(world) - before == 1


def test_in_a_gateway_packets_that_come_into_a_stall_are_samples_of_their_own(
    clock: ManualClock, world: GatewayWorld
):
    worker, peer = begin(world)
    before = count_samples(world)
    for _ in range(10):
        clock.advance(0.25)
        world.turn()
        peer.send(make_packet(1, b"x"))
        world.settle()
    worker.echo()
    world.settle()
    told = world.shards[0].commit_times.told(clock.now())
    assert sum(told.counts) - before == 10
    assert told.sum_s >= 0.25 * sum(range(10))
    assert told.worst_s is not None
    assert told.worst_s >= 0.25 * 9
