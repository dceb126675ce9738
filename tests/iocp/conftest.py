"""The drivers that the tests of the library run on. A new driver is a line in a table."""

from collections.abc import Callable, Iterator

import pytest

from cluster.iocp import IocpCore
from cluster.iocp.driver import Driver, choose_driver
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.driver.readiness import ReadinessDriver
from tests.iocp.world import World

SOCKET_DRIVERS: dict[str, Callable[[], Driver]] = {
    "readiness": lambda: choose_driver("readiness"),
    "selectors": ReadinessDriver,
}
"""Drivers that use the system's sockets."""

DRIVERS: dict[str, Callable[[], Driver]] = {**SOCKET_DRIVERS, "memory": MemoryDriver}
"""Every driver."""


def faulty_driver() -> Driver:
    """Return a memory driver whose network does all that a network may do to a living connection.

    Its time passes when nothing else happens.
    """
    faults = Faults(partial_send=0.4, partial_recv=0.4, late=0.4, accept_error=0.0)
    return MemoryDriver(MemoryNetwork(seed=7, faults=faults, clock=ManualClock()))


WORLDS: dict[str, Callable[[], Driver]] = {**DRIVERS, "faulty-memory": faulty_driver}


@pytest.fixture(params=DRIVERS)
def core(request: pytest.FixtureRequest) -> Iterator[IocpCore]:
    """A completion port on each driver."""
    made = IocpCore(driver=DRIVERS[request.param]())
    yield made
    made.close()


@pytest.fixture
def steady_world(core: IocpCore) -> World:
    """A world in which what is sent in one piece comes in one piece, and without delay."""
    return World(core)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A core on each driver, with peers and recorded sessions."""
    core = IocpCore(driver=WORLDS[request.param]())
    yield World(core)
    core.close()
