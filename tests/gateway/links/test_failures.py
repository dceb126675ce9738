"""Every failure on purpose, one by one and at random, against what links promise.

Each record is given once and in order while both lives last; what was not settled at the end of a
life is undelivered, and nothing else is; a log never holds more than its bound; and no link stays
down once the network is whole. `SIMULATION_RUNS=N` has N runs of the random test.
"""

from collections.abc import Callable, Iterator, Sequence

import pytest

from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.iocp import ClientService
from cluster.iocp.driver.memory import Faults
from tests.gateway.links.failing_world import RECOVERY_S, FailingWorld, Host
from tests.gateway.links.test_links import Raw
from tests.gateway.links.world import SECRET, TIMEOUT_S
from tests.simulation.conftest import runs

LOST_WITHIN_S = 1.5 * TIMEOUT_S
"""A silence is noticed within this."""

MakeFailingWorld = Callable[..., FailingWorld]


@pytest.fixture
def make_failing_world(seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFailingWorld]:
    """Makes worlds by `make_failing_world(nodes, seed=, retained_bytes_max=)`, and closes them.

    Connections are given little at a time, so that most records wait to be sent.
    """
    monkeypatch.setattr("cluster.gateway.links.links.QUEUED_BYTES_MAX", 1_500)
    worlds: list[FailingWorld] = []

    def make(*arguments, **options) -> FailingWorld:
        worlds.append(FailingWorld(*arguments, **{"seed": seed, **options}))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_failing_world: MakeFailingWorld) -> FailingWorld:
    """Three nodes that are linked, with something on the way between any two."""
    made = make_failing_world()
    made.network.faults = Faults(partial_send=0.3, partial_recv=0.3)
    made.run(lambda: made.is_linked, "all links")
    send_everywhere(made)
    return made


def send_everywhere(world: FailingWorld, count: int = 3) -> None:
    for host in world.living():
        for other in host.ledgers:
            for _ in range(count):
                host.send(other, 900)


# -- one by one ------------------------------------------------------------------------------------


def test_a_parted_node_is_lost_at_both_ends_and_nothing_is_when_it_is_back(
    world: FailingWorld,
) -> None:
    world.part(2)
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert world[1].state(3) == world[3].state(1) == "linked"
    assert "linked" not in (world[1].state(2), world[2].state(1), world[2].state(3))
    send_everywhere(world)
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize(("source", "target"), [(1, 2), (2, 1)])
def test_a_way_that_loses_everything_is_noticed_at_both_its_ends(
    world: FailingWorld, source: int, target: int
) -> None:
    world.block(source, target)
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert world[target].state(source) != "linked"
    world.run_for(LOST_WITHIN_S)
    assert world[source].state(target) != "linked"
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize("unheard", [False, True])
def test_a_node_that_is_killed_and_begun_anew_has_its_peers_told(
    world: FailingWorld, unheard: bool
) -> None:
    """Also where nobody heard of its end: as a machine that loses its power."""
    world.run(lambda: len(world[2].held) == 6, "the records")
    for host in (world[1], world[3]):
        host.send(2, 900)
    if unheard:
        world.part(2)
    world[2].kill()
    world.heal()
    world[2].begin()
    world.run(lambda: world.is_linked, "all links")
    for node in (1, 3):
        assert world[node].fates["undelivered"] == 4
    world.check_recovery()
    assert world.count("links_undelivered") == 8


def test_a_node_that_was_taken_for_gone_comes_back_as_another_life(world: FailingWorld) -> None:
    world.run(lambda: len(world[2].held) == 6, "the records")
    world[2].come_back()
    assert world[2].fates["undelivered"] == 6
    send_everywhere(world)
    world.run(lambda: world.is_linked, "all links")
    assert world[1].fates["undelivered"] == world[3].fates["undelivered"] == 6
    world.check_recovery()


def test_a_node_that_is_forgotten_by_another_begins_anew_with_it_alone(
    world: FailingWorld,
) -> None:
    world.run(lambda: len(world[2].held) == len(world[3].held) == 6, "the records")
    world[2].forget(3)
    send_everywhere(world)
    world.run(lambda: world.is_linked, "all links")
    assert [world[node].fates["undelivered"] for node in (1, 2, 3)] == [0, 3, 6]
    world.check_recovery()


def test_a_node_that_was_paused_is_lost_and_goes_on_where_it_was(world: FailingWorld) -> None:
    world.run(lambda: len(world[2].held) == 6, "the records")
    world[2].is_running = False
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert "linked" not in (world[1].state(2), world[3].state(2))
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize("ahead_s", [0.1, TIMEOUT_S, 86_400])
def test_a_clock_that_jumps_costs_a_connection_at_most(world: FailingWorld, ahead_s: float) -> None:
    for host in (world[1], world[2]):
        host.driver.ahead_s += ahead_s
        send_everywhere(world)
        world.run_for(1.0)
    world.check_recovery()
    assert world.count("links_undelivered") == 0
    assert world.count("links_lost") <= 8  # both ends of the two links of who jumped


def test_the_node_with_the_greater_id_is_refused_when_both_call_at_once(
    world: FailingWorld,
) -> None:
    world.part(1)
    world.run_for(LOST_WITHIN_S)
    wrong_way = WrongWay()
    service = ClientService(world.addresses[1], world[3].core, lambda: wrong_way, 1)
    service.start()
    world.heal()  # and node 1 calls as well
    world.run(lambda: wrong_way.ended is not None, "its end")
    world.run(lambda: world.is_linked, "all links")
    assert wrong_way.received == b""
    assert world[1].count("links_refused_node") == 1
    world.check_recovery()


class WrongWay(Raw):
    """Node 3, which knows the secret and calls node 1."""

    def on_connected(self) -> None:
        self.send(Handshake(LinkIdentity(3, 3001, "game", SECRET), 1).begin())


def test_two_calls_of_a_node_at_once_leave_one_connection(world: FailingWorld) -> None:
    """The caller has given the first one up, and whom it called has not heard of that."""
    world.run_for(1.0 + 0.01)  # just behind a beat: nothing is said on the first one meanwhile
    world.block(1, 2)
    assert world[1].cut(2)
    world.run(lambda: world[1].state(2) != "linked", "its end")
    world.heal()
    world.run(lambda: world[1].state(2) == "linked", "the second one")
    assert world[2].count("links_replaced") == 1
    world.check_recovery()
    assert world.count("links_undelivered") == 0


def test_a_log_that_is_full_takes_nothing_until_its_peer_is_back(world: FailingWorld) -> None:
    world.part(2)
    while world[1].send(2, 900):
        pass
    world.run_for(RECOVERY_S)
    assert not world[1].send(2, 900)
    assert world[1].count("links_full") == 2
    world.check_recovery()
    assert world[1].send(2, 900)


# -- all of them at random -------------------------------------------------------------------------


class Chaos:
    """Breaks, and mends, whatever its world's chance wants."""

    def __init__(self, world: FailingWorld) -> None:
        self.world = world
        self.rng = world.rng
        self._dealt: list[Callable[[], None]] = []
        self._failures = [
            self._cut,
            self._cut,
            self._part,
            self._block,
            self._kill,
            self._pause,
            self._jump,
            self._come_back,
            self._forget,
            *[world.heal, self._begin, self._go_on] * 2,
        ]

    def step(self, times: Sequence[float]) -> None:
        """Have some records sent and settled, a failure now and then, and some time pass."""
        rng, world = self.rng, self.world
        for host in world.living():
            if host.is_running:
                for _ in range(rng.randrange(4)):
                    host.send(rng.choice(list(host.ledgers)), rng.choice([0, 50, 900, 4_000]))
                host.settle(rng, rng.randrange(6))
        if rng.random() < 0.5:
            self._next_failure()()
        world.run_for(rng.choice(times))

    def _next_failure(self) -> Callable[[], None]:
        """Each comes once before any comes again."""
        if not self._dealt:
            self._dealt = self.rng.sample(self._failures, len(self._failures))
        return self._dealt.pop()

    def _nodes(self) -> tuple[int, int]:
        one, other = self.rng.sample(sorted(self.world.addresses), 2)
        return one, other

    def _host(self) -> Host:
        return self.world[self._nodes()[0]]

    def _cut(self) -> None:
        node, other = self._nodes()
        if self.world[node].is_alive:
            self.world[node].cut(other)

    def _part(self) -> None:
        self.world.part(self._nodes()[0])

    def _block(self) -> None:
        self.world.block(*self._nodes())

    def _kill(self) -> None:
        host = self._host()
        if host.is_alive:
            host.kill()

    def _begin(self) -> None:
        for host in self.world.hosts.values():
            if not host.is_alive:
                host.begin()

    def _come_back(self) -> None:
        host = self._host()
        if host.is_alive and host.is_running:
            host.come_back()

    def _forget(self) -> None:
        node, other = self._nodes()
        if self.world[node].is_alive:
            self.world[node].forget(other)

    def _pause(self) -> None:
        self._host().is_running = False

    def _go_on(self) -> None:
        for host in self.world.hosts.values():
            host.is_running = True

    def _jump(self) -> None:
        self._host().driver.ahead_s += self.rng.choice([0.3, TIMEOUT_S, 1_000.0])


SLOW = (0.001, 0.02, 0.2, TIMEOUT_S)
FAST = (0.0, 0.001, 0.02, 0.2)


def live_through(world: FailingWorld, *paces: Sequence[float], steps: int = 60) -> None:
    chaos = Chaos(world)
    for pace in paces:
        world.network.faults = Faults(
            partial_send=0.3,
            partial_recv=0.3,
            late=0.2,
            late_s_max=0.05,
            reset=0.001,
            refuse_connect=0.1,
            accept_error=0.1,
        )
        for _ in range(steps):
            chaos.step(pace)
        world.check_recovery()


@pytest.mark.parametrize("number", runs(3))
def test_failures_of_every_kind_at_random(
    make_failing_world: MakeFailingWorld, seed: int, number: int
) -> None:
    live_through(make_failing_world(seed=seed + number), SLOW, FAST)


def test_a_run_is_decided_by_its_seed(make_failing_world: MakeFailingWorld) -> None:
    def history() -> list[object]:
        world = make_failing_world()
        live_through(world, SLOW, steps=30)
        counters = [sorted(host.counters.snapshot().items()) for host in world.hosts.values()]
        return [[host.fates for host in world.hosts.values()], world.clock.now(), counters]

    assert history() == history()
