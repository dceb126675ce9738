"""Gateways for tests, on the in-process network and on sockets."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.iocp.driver import Driver, choose_driver
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.errors import DriverUnavailableError
from tests.gateway.world import GatewayWorld

MakeGateway = Callable[..., GatewayWorld]

SOCKET_DRIVERS = [*{"win32": ["iocp"], "linux": ["io_uring"]}.get(sys.platform, []), "readiness"]
"""The best driver of this system, and the one that takes its place where it is refused."""


def open_driver(name: str) -> Driver:
    """Return the driver called `name`; skips the test where it cannot run."""
    try:
        return choose_driver(name)
    except DriverUnavailableError as error:
        pytest.skip(f"driver {name}: {error}")


@pytest.fixture(params=["memory", *SOCKET_DRIVERS])
def gateway(request: pytest.FixtureRequest) -> Iterator[MakeGateway]:
    """Make gateways by `gateway(**options)`, on each driver."""
    yield from _making(lambda: open_driver(request.param))


@pytest.fixture(params=SOCKET_DRIVERS)
def socket_driver(request: pytest.FixtureRequest) -> str:
    """The name of each driver that a gateway serves clients on; skips what cannot run."""
    name: str = request.param
    open_driver(name).close()
    return name


@pytest.fixture
def memory_gateway() -> Iterator[MakeGateway]:
    """Make gateways on a network whose connections hold 16 KiB: clients can be slow there."""
    yield from _making(lambda: MemoryDriver(MemoryNetwork(buffer_bytes=16_384)))


@pytest.fixture
def timed_gateway() -> Iterator[MakeGateway]:
    """Make gateways in process, whose time passes only where a test waits (`pass_time`)."""
    yield from _making(
        lambda: MemoryDriver(MemoryNetwork(buffer_bytes=16_384, clock=ManualClock(1_000.0)))
    )


def _making(driver: Callable[[], Driver]) -> Iterator[MakeGateway]:
    made: list[GatewayWorld] = []

    def make(**options: Any) -> GatewayWorld:
        made.append(GatewayWorld(driver(), **options))
        return made[-1]

    yield make
    for world in made:
        world.close()
