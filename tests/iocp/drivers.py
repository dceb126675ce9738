"""The drivers that the tests of the library run on: those of the driver suite, and a hard one."""

from collections.abc import Callable

import pytest

from cluster.iocp.driver import Driver
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.errors import DriverUnavailableError
from tests.contract.conftest import DRIVERS

__all__ = ["DRIVERS", "SOCKET_DRIVERS", "WORLDS", "open_driver"]

SOCKET_DRIVERS = [name for name in DRIVERS if name != "memory"]
"""Those that use the system's sockets."""


def faulty_driver() -> Driver:
    """Return a memory driver whose network does what a network may do to a living connection.

    Its time passes when nothing else happens.
    """
    faults = Faults(partial_send=0.4, partial_recv=0.4, late=0.4)
    return MemoryDriver(MemoryNetwork(seed=7, faults=faults, clock=ManualClock()))


WORLDS: dict[str, Callable[[], Driver]] = {**DRIVERS, "faulty-memory": faulty_driver}


def open_driver(name: str) -> Driver:
    """Return the driver called `name`; skips the test where it cannot run."""
    try:
        return WORLDS[name]()
    except DriverUnavailableError as error:
        pytest.skip(f"driver {name}: {error}")
