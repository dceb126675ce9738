"""A completion port, or a whole world, on each of the drivers."""

from collections.abc import Iterator

import pytest

from cluster.iocp import IocpCore
from tests.iocp.drivers import DRIVERS, WORLDS, open_driver
from tests.iocp.world import World


@pytest.fixture(params=DRIVERS)
def core(request: pytest.FixtureRequest) -> Iterator[IocpCore]:
    """A completion port on each driver."""
    made = IocpCore(driver=open_driver(request.param))
    yield made
    made.close()


@pytest.fixture
def steady_world(core: IocpCore) -> World:
    """A world in which what is sent in one piece comes in one piece, and without delay."""
    return World(core)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A core on each driver, with peers and recorded sessions."""
    core = IocpCore(driver=open_driver(request.param))
    yield World(core)
    core.close()
