"""Who waits for a shard, who is given one, and who is dropped."""

import os

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.waiting_spares import WaitingSpares
from cluster.shared.config import WorkersConfig
from cluster.shared.messages import (
    ControlMessage,
    GatewayAlive,
    Hello,
    Refuse,
    SpareHello,
    SpareReport,
    Stop,
)
from cluster.shared.node_status import SpareStatus
from cluster.shared.process import process_identity

TIMEOUT_S = 5.0
PID, SINCE = process_identity(os.getpid())
OTHER_PID, OTHER_SINCE = process_identity(os.getppid())
DEAD_PID = 1 << 30


class World:
    """Spares, with everything they say noted."""

    def __init__(self, spares_max: int = 2) -> None:
        self.now = 100.0
        self.counters = Counters()
        self.sent: list[tuple[bytes, ControlMessage]] = []
        self.unreachable: set[bytes] = set()
        self.reports: list[SpareReport] = []
        self.grants: list[tuple[bytes, Hello]] = []
        self.spares = WaitingSpares(
            WorkersConfig(spares=spares_max, count=2, worker_timeout_s=TIMEOUT_S),
            self.counters,
            self._send,
            self.reports.append,
            lambda identity, hello: self.grants.append((identity, hello)),
            lambda: self.now,
        )

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        self.sent.append((identity, message))
        return identity not in self.unreachable

    def hello(self, name: bytes = b"spare", pid: int = PID, since: float = SINCE) -> None:
        self.spares.hello(name, SpareHello(pid=pid, create_time=since))

    def waiting(self) -> list[int]:
        return [spare.pid for spare in self.spares.status()]

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


@pytest.fixture
def world() -> World:
    return World()


GRANTED = (b"spare", Hello(shard=1, pid=PID, create_time=SINCE))


def test_a_spare_waits_and_its_supervisor_is_told(world: World):
    world.hello()
    assert world.spares.status() == [SpareStatus(pid=PID)]
    assert world.reports == [SpareReport(pid=PID, state="ready")]
    assert world.sent == []
    world.spares.tell_all()  # a supervisor that comes later
    assert world.reports == [SpareReport(pid=PID, state="ready")] * 2


def test_a_spare_that_waits_is_granted_the_shard_it_is_given(world: World):
    world.hello()
    world.spares.assign(1, PID)
    assert world.grants == [GRANTED]
    assert world.waiting() == []
    assert world.count("spares_used") == 1


def test_what_a_spare_declares_as_public_goes_with_it(world: World):
    world.spares.hello(b"spare", SpareHello(pid=PID, create_time=SINCE, public_ids=[1, 9]))
    world.spares.assign(1, PID)
    hello = Hello(shard=1, pid=PID, create_time=SINCE, public_ids=[1, 9])
    assert world.grants == [(b"spare", hello)]


def test_a_spare_that_was_given_a_shard_before_it_came_is_granted_it_at_its_hello(world: World):
    world.spares.assign(1, PID)
    assert world.grants == []
    world.hello()
    assert world.grants == [GRANTED]
    assert world.waiting() == []
    assert world.reports == []
    world.hello(b"later life", OTHER_PID, OTHER_SINCE)
    assert world.grants == [GRANTED]
    assert world.waiting() == [OTHER_PID]


def test_a_shard_is_for_the_one_it_was_given_to_last(world: World):
    world.spares.assign(1, DEAD_PID)
    world.spares.assign(1, PID)
    world.hello(b"late", DEAD_PID)
    assert world.grants == []
    world.hello()
    assert world.grants == [GRANTED]


@pytest.mark.parametrize("shard", [-1, 2, 1 << 40])
def test_a_shard_that_does_not_exist_is_given_to_nobody(world: World, shard: int):
    world.hello()
    world.spares.assign(shard, PID)
    assert world.grants == []
    assert world.waiting() == [PID]
    assert world.count("control_refused") == 1


def test_a_spare_that_is_gone_waits_no_more_nor_is_it_waited_for(world: World):
    world.hello()
    world.spares.gone(PID)
    world.spares.gone(PID)
    assert world.waiting() == []
    world.spares.assign(0, PID)
    world.spares.gone(PID)
    world.hello()  # another process of the same pid
    assert world.grants == []
    assert world.waiting() == [PID]


def test_more_spares_than_configured_are_refused(world: World):
    world = World(spares_max=1)
    world.hello()
    world.hello(b"other", OTHER_PID, OTHER_SINCE)
    name, answer = world.sent[-1]
    assert name == b"other"
    assert isinstance(answer, Refuse)
    assert "keeps 1 spares (workers.spares)" in answer.reason
    assert world.waiting() == [PID]
    assert world.count("workers_refused") == 1


def test_candidates_may_wait_beside_the_spares_when_the_supervisor_says_so():
    world = World(spares_max=0)
    world.spares.allow_candidates(1)
    world.hello()
    assert world.waiting() == [PID]
    world.hello(b"other", OTHER_PID, OTHER_SINCE)
    assert world.waiting() == [PID]
    assert world.count("workers_refused") == 1


def test_the_dead_take_no_place(world: World):
    world = World(spares_max=1)
    world.hello(b"dead", DEAD_PID)
    world.hello()
    assert world.waiting() == [PID]
    assert world.sent == []


def test_one_that_is_given_a_shard_needs_no_place():
    world = World(spares_max=0)
    world.spares.assign(1, PID)
    world.hello()
    assert world.grants == [GRANTED]


def test_a_spare_that_answers_stays_and_one_that_is_silent_is_dropped(world: World):
    world.hello(b"one", PID, SINCE)
    world.hello(b"two", OTHER_PID, OTHER_SINCE)
    world.reports.clear()
    for _ in range(3):
        world.now += TIMEOUT_S / 2
        world.spares.alive(b"one")
        world.spares.alive(b"a stranger, or one that has a shard by now")
        world.spares.beat()
    assert world.waiting() == [PID]
    assert world.reports == [SpareReport(pid=OTHER_PID, state="stuck")]
    assert world.count("spares_dropped") == 1
    told = [name for name, message in world.sent if message == GatewayAlive()]
    assert told == [b"one", b"two", b"one", b"one"]


def test_a_spare_that_has_ended_unheard_of_is_forgotten(world: World):
    world.hello(b"dead", DEAD_PID)
    world.reports.clear()
    world.spares.beat()
    assert world.waiting() == []
    assert world.reports == []
    assert world.sent == []


def test_all_who_wait_are_told_to_stop(world: World):
    assert not world.spares.stop_all()
    world.hello()
    assert world.spares.stop_all()
    assert world.sent == [(b"spare", Stop())]
    world.unreachable = {b"spare"}
    assert not world.spares.stop_all()
