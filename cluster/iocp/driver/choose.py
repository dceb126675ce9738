"""Which driver runs here: the only place in the library that asks what system it is on."""

import sys

from cluster.iocp.driver.contract import Driver
from cluster.iocp.driver.readiness import ReadinessDriver
from cluster.iocp.errors import DriverUnavailableError

__all__ = ["choose_driver"]


def choose_driver(name: str = "auto") -> Driver:
    """Return a new driver: the best that runs here, or the one called `name`.

    Names are auto, iocp, io_uring, readiness and memory. Raises DriverUnavailableError for a
    driver that cannot run on this machine, ValueError for any other name. The caller owns the
    driver and closes it.
    """
    if name in ("auto", "readiness"):
        return _readiness()
    if name == "memory":
        from cluster.iocp.driver.memory import MemoryDriver

        return MemoryDriver()
    if name in ("iocp", "io_uring"):
        raise DriverUnavailableError(
            f"driver {name!r} is not available on this machine; use 'auto' or 'readiness'"
        )
    raise ValueError(f"driver {name!r} is not one of auto, iocp, io_uring, readiness, memory")


def _readiness() -> ReadinessDriver:
    if sys.platform == "linux":
        from cluster.iocp.driver.epoll import EpollPoller

        return ReadinessDriver(EpollPoller())
    else:
        return ReadinessDriver()
