"""Gateways for tests, on the in-process network and on sockets."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.iocp.driver import Driver, choose_driver
from cluster.iocp.driver.memory import MemoryDriver, MemoryNetwork
from tests.gateway.world import GatewayWorld

MakeGateway = Callable[..., GatewayWorld]

DRIVERS: dict[str, Callable[[], Driver]] = {
    "memory": MemoryDriver,
    "readiness": lambda: choose_driver("readiness"),
}


@pytest.fixture(params=DRIVERS)
def gateway(request: pytest.FixtureRequest) -> Iterator[MakeGateway]:
    """Make gateways by `gateway(**options)`, on each driver."""
    yield from _making(DRIVERS[request.param])


@pytest.fixture
def memory_gateway() -> Iterator[MakeGateway]:
    """Make gateways on a network whose connections hold 16 KiB: clients can be slow there."""
    yield from _making(lambda: MemoryDriver(MemoryNetwork(buffer_bytes=16_384)))


def _making(driver: Callable[[], Driver]) -> Iterator[MakeGateway]:
    made: list[GatewayWorld] = []

    def make(**options: Any) -> GatewayWorld:
        made.append(GatewayWorld(driver(), **options))
        return made[-1]

    yield make
    for world in made:
        world.close()
