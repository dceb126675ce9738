"""A port on the io_uring driver, for tests of what only that driver can get wrong.

Queues and shared buffers can be made small, so that a few operations exceed them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from cluster.iocp.driver import Driver, choose_driver
from cluster.iocp.errors import DriverUnavailableError
from tests.contract.driver_harness import Port

if sys.platform == "linux":
    from cluster.iocp.driver import (
        uring_accepts,
        uring_buffers,
        uring_memory,
        uring_operations,
        uring_ring,
    )
    from cluster.iocp.driver.uring import UringDriver
else:
    pytest.skip("io_uring is a part of Linux", allow_module_level=True)

__all__ = [
    "MakeUringPort",
    "UringPort",
    "make_uring_ports",
    "small",
    "uring_accepts",
    "uring_buffers",
    "uring_memory",
    "uring_operations",
    "uring_or_skip",
    "uring_ring",
]

MakeUringPort = Callable[..., "UringPort"]


class UringPort(Port):
    """What the driver suite does with a driver, and a look into this one."""

    def __init__(self, driver: Driver) -> None:
        assert isinstance(driver, UringDriver)
        super().__init__(driver)
        self.uring: Any = driver

    def let_kernel_work(self) -> None:
        """Have all done that is due, and take none of the completions."""
        self.uring._ring.settle()


@contextmanager
def small(
    *, entries: int = 1_024, cq_entries: int = 8_192, buffer_count: int = 1_024
) -> Iterator[None]:
    """Let drivers that are made meanwhile have queues and buffers of these sizes."""
    with (
        patch.object(uring_ring, "_ENTRIES", entries),
        patch.object(uring_ring, "_CQ_ENTRIES", cq_entries),
        patch.object(uring_buffers, "BUFFER_COUNT", buffer_count),
    ):
        yield


def uring_or_skip(threads: int = 1) -> UringDriver:
    """Return a driver; skips the test where no ring can be had."""
    try:
        driver = choose_driver("io_uring", threads)
    except DriverUnavailableError as error:
        pytest.skip(f"driver io_uring: {error}")
    assert isinstance(driver, UringDriver)
    return driver


def make_uring_ports() -> Iterator[MakeUringPort]:
    """Yield what makes ports by `make(threads=, entries=, cq_entries=, buffer_count=)`.

    For fixtures; the drivers are closed at the end. `entries` and the like stay in effect for
    the whole test, because they are looked up while a driver runs.
    """
    made: list[UringPort] = []
    with ExitStack() as stack:

        def make(threads: int = 1, **sizes: int) -> UringPort:
            stack.enter_context(small(**sizes))
            made.append(UringPort(uring_or_skip(threads)))
            return made[-1]

        yield make
        for port in made:
            port.driver.close()
