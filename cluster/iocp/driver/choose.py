"""Which driver runs here: the only place in the library that asks what system it is on."""

import logging
import sys

from cluster.iocp.driver.contract import Driver
from cluster.iocp.errors import DriverUnavailableError

__all__ = ["choose_driver"]

logger = logging.getLogger("cluster.iocp")


def choose_driver(name: str = "auto", threads: int = 1) -> Driver:
    """Return a new driver: the best that runs here, or the one called `name`.

    Names are auto, iocp, io_uring, readiness and memory; `threads` is how many threads will
    dispatch. Raises DriverUnavailableError for a driver that cannot run on this machine,
    ValueError for any other name. Where the best driver of the system is refused, auto logs the
    reason and takes readiness. The caller owns the driver and closes it.
    """
    if name == "auto":
        return _best(threads)
    if name == "readiness":
        return _readiness(threads)
    if name == "memory":
        from cluster.iocp.driver.memory import MemoryDriver

        return MemoryDriver(threads=threads)
    if name in ("iocp", "io_uring"):
        try:
            return _iocp(threads) if name == "iocp" else _io_uring(threads)
        except DriverUnavailableError as error:
            raise DriverUnavailableError(f"{error}; use 'auto' or 'readiness'") from error
    raise ValueError(f"driver {name!r} is not one of auto, iocp, io_uring, readiness, memory")


def _best(threads: int) -> Driver:
    try:
        return _iocp(threads) if sys.platform == "win32" else _io_uring(threads)
    except DriverUnavailableError as error:
        if sys.platform in ("win32", "linux"):
            logger.warning("%s; the driver is readiness", error)
        return _readiness(threads)


def _iocp(threads: int) -> Driver:
    if sys.platform == "win32":
        from cluster.iocp.driver.windows import WindowsDriver

        return WindowsDriver(threads)
    else:
        raise DriverUnavailableError("driver 'iocp' needs Windows")


def _io_uring(threads: int) -> Driver:
    if sys.platform == "linux":
        from cluster.iocp.driver.uring import UringDriver

        return UringDriver(threads)
    else:
        raise DriverUnavailableError("driver 'io_uring' needs Linux")


def _readiness(threads: int) -> Driver:
    from cluster.iocp.driver.readiness import ReadinessDriver

    if sys.platform == "linux":
        from cluster.iocp.driver.epoll import EpollPoller

        return ReadinessDriver(EpollPoller(), threads)
    else:
        return ReadinessDriver(threads=threads)
