"""What simulations share: ports on a network in memory, and a seed that is shown when one fails."""

import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from tests.contract.driver_harness import Port

SEED_VARIABLE = "SIMULATION_SEED"
RUNS_VARIABLE = "SIMULATION_RUNS"

MakePort = Callable[..., Port]


def runs(default: int) -> range:
    """Return the numbers of runs of a random test; `SIMULATION_RUNS=N` asks for N of them."""
    return range(int(os.environ.get(RUNS_VARIABLE, default)))


@pytest.fixture
def seed() -> int:
    """A seed, printed so that a failure shows it; `SIMULATION_SEED=N` runs with N again."""
    chosen = os.environ.get(SEED_VARIABLE)
    value = secrets.randbits(32) if chosen is None else int(chosen)
    print(f"run again with {SEED_VARIABLE}={value}")
    return value


@pytest.fixture
def make_port() -> Iterator[MakePort]:
    """Makes ports on the network given, or on a new one with a manual clock."""
    drivers: list[MemoryDriver] = []

    def make(network: MemoryNetwork | None = None) -> Port:
        driver = MemoryDriver(network or MemoryNetwork(clock=ManualClock()))
        drivers.append(driver)
        return Port(driver)

    yield make
    for driver in drivers:
        driver.close()
