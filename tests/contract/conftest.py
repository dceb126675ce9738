"""The drivers that the driver suite runs on. A new driver is a line in `DRIVERS`.

Needs no more than the test packages and what the library itself needs, on every platform.
"""

import errno
import sys
from collections.abc import Callable, Iterator

import pytest

from cluster.iocp.driver import Driver, choose_driver
from cluster.iocp.driver.memory import MemoryDriver, MemoryNetwork
from cluster.iocp.driver.readiness import ReadinessDriver
from cluster.iocp.errors import DriverUnavailableError
from tests.contract.driver_harness import Owner, Port, is_wine

# Drivers of one machine reach each other, so those in memory share a network.
_NETWORK = MemoryNetwork()

DRIVERS: dict[str, Callable[[], Driver]] = {
    "readiness": lambda: choose_driver("readiness"),
    "selectors": ReadinessDriver,
    "memory": lambda: MemoryDriver(_NETWORK),
}
if sys.platform == "win32":
    DRIVERS["iocp"] = lambda: choose_driver("iocp")
    del DRIVERS["selectors"]  # readiness is nothing else here
    if is_wine():
        # It has no operation waiting in the system when a reset comes, see `RESETS`.
        del DRIVERS["readiness"]
if sys.platform == "linux":
    DRIVERS["io_uring"] = lambda: choose_driver("io_uring")


@pytest.fixture(params=DRIVERS)
def make_driver(request: pytest.FixtureRequest) -> Iterator[Callable[[], Driver]]:
    """Makes drivers of one kind, which are closed at the end; skips where that cannot run."""
    made: list[Driver] = []

    def make() -> Driver:
        try:
            driver = DRIVERS[request.param]()
        except DriverUnavailableError as error:
            pytest.skip(f"driver {request.param}: {error}")
        made.append(driver)
        return driver

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def port(make_driver: Callable[[], Driver]) -> Port:
    """A driver with what tests do on it; the test's thread is the one that dispatches."""
    return Port(make_driver())


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest, port: Port) -> str:
    """A loopback address of each family."""
    address: str = request.param
    try:
        port.listen(address).close()
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip(f"this machine has no {address}")
    return address


@pytest.fixture
def listener(port: Port) -> Owner:
    """A listener on IPv4."""
    return port.listen()


@pytest.fixture
def pair(port: Port) -> tuple[Owner, Owner]:
    """Both ends of a connection over IPv4: the client's and the server's."""
    return port.pair()
