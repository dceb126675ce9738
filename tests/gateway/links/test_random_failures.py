"""Failures of every kind at random, on three nodes, against what links promise.

Each record is given once and in order while both lives last; what was not settled at the end of a
life is undelivered, and nothing else is; a log never holds more than its bound; and no link stays
down once the network is whole. `SIMULATION_RUNS=N` has N runs, `SIMULATION_SEED=N` one again.
"""

from collections.abc import Callable, Sequence

import pytest

from cluster.iocp.driver.memory import Faults
from tests.gateway.links.conftest import MakeFailingWorld
from tests.gateway.links.failing_host import Host
from tests.gateway.links.failing_world import FailingWorld
from tests.gateway.links.world import TIMEOUT_S
from tests.simulation.conftest import runs


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
