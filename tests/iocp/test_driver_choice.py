"""Which driver `choose_driver` takes, and what it says where the kernel refuses the best one."""

import ctypes
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.iocp import DriverUnavailableError
from cluster.iocp.driver import choose_driver
from tests.contract.driver_harness import resource_count

BEST = {"win32": "iocp", "linux": "io_uring"}.get(sys.platform, "readiness")
FOREIGN = [name for name in ("iocp", "io_uring") if name != BEST]

SETUP, REGISTER = 425, 427


def test_a_name_that_no_driver_has_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'epoll' is not one of auto, iocp, io_uring, readiness"):
        choose_driver("epoll")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_driver_of_another_system_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(DriverUnavailableError, match=rf"'{name}' needs .*; use 'auto' or 'readi"):
        choose_driver(name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["readiness", "memory"])
def test_drivers_that_run_everywhere_are_what_their_name_says(name: str, threads: int) -> None:
    driver = choose_driver(name, threads)
    assert (driver.name, driver.threads) == (name, threads)
    driver.close()


def test_auto_is_the_best_that_runs_here(caplog: pytest.LogCaptureFixture) -> None:
    try:
        expected = choose_driver(BEST)
    except DriverUnavailableError:
        pytest.skip(f"driver {BEST} is refused here")
    driver = choose_driver()
    assert driver.name == expected.name == BEST
    assert caplog.records == []
    driver.close()
    expected.close()


# -- refused by the kernel -------------------------------------------------------------------------

Arrange = Callable[[pytest.MonkeyPatch], Any]


def refuse(call: int, code: int) -> Arrange:
    """Let one system call fail with `code`."""

    def arrange(monkeypatch: pytest.MonkeyPatch) -> None:
        from cluster.iocp.driver import uring_ring

        real = uring_ring._syscall

        def refused(number: int, *arguments: int) -> int:
            if number == call:
                ctypes.set_errno(code)
                return -1
            result: int = real(number, *arguments)
            return result

        monkeypatch.setattr(uring_ring, "_syscall", refused)

    return arrange


def lack_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.iocp.driver import uring_ring

    monkeypatch.setattr(uring_ring, "_FEAT_EXT_ARG", 1 << 31)


def run_on(release: str) -> Arrange:
    def arrange(monkeypatch: pytest.MonkeyPatch) -> None:
        parts = list(os.uname())
        parts[2] = release
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(parts))

    return arrange


def lack_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left for the last thing that the driver opens."""

    def eventfd(value: int, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", eventfd)


REFUSALS: dict[str, tuple[Arrange, str]] = {
    "forbidden": (refuse(SETUP, errno.EPERM), r"\(EPERM\); .*io_uring_disabled or a seccomp"),
    "not there": (refuse(SETUP, errno.ENOSYS), r"\(ENOSYS\); .*seccomp filter or the kernel's"),
    "no memory": (refuse(SETUP, errno.ENOMEM), r"\(ENOMEM\); the limit of locked memory"),
    "no file": (refuse(SETUP, errno.EMFILE), r"\(EMFILE\); the limit of open files"),
    "no idea": (refuse(SETUP, errno.EINVAL), r"Invalid argument \(EINVAL\)"),
    "no buffers": (refuse(REGISTER, errno.ENOMEM), r"\(ENOMEM\); the limit of locked memory"),
    "half allowed": (refuse(REGISTER, errno.EPERM), r"\(EPERM\)"),
    "no last file": (lack_descriptors, r"\(EMFILE\); the limit of open files"),
    "no features": (lack_features, r"lacks features \(0x"),
    "kernel 5.15": (run_on("5.15.0-91-generic"), "needs Linux 6.1, and this is 5.15.0-91-generic"),
    "kernel 6.0": (run_on("6.0.19"), "needs Linux 6.1, and this is 6.0.19"),
}


@pytest.fixture(params=REFUSALS)
def reason(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that refuses a ring; what its refusal says."""
    if sys.platform != "linux":
        pytest.skip("io_uring is a part of Linux")
    arrange, reason = REFUSALS[request.param]
    try:
        choose_driver("io_uring").close()  # without it, another reason may come first
    except DriverUnavailableError as error:
        pytest.skip(f"driver io_uring: {error}")
    arrange(monkeypatch)
    return reason


@contextmanager
def nothing_stays_open() -> Iterator[None]:
    descriptors = resource_count()
    yield
    assert resource_count() == descriptors


def test_a_refused_ring_is_told_with_the_value_and_the_remedy(reason: str) -> None:
    with nothing_stays_open(), pytest.raises(DriverUnavailableError, match=reason) as raised:
        choose_driver("io_uring")
    told = str(raised.value)
    assert told.startswith("driver 'io_uring' ")
    assert told.endswith("; use 'auto' or 'readiness'")
    assert "\n" not in told


@pytest.mark.parametrize("threads", [1, 2])
def test_auto_takes_readiness_instead_and_says_why_once(
    reason: str, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_stays_open():
        driver = choose_driver("auto", threads)
        assert (driver.name, driver.threads) == ("readiness", threads)
        driver.close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "cluster.iocp"
    assert re.search(reason, record.getMessage())
    assert record.getMessage().endswith("; the driver is readiness")


@pytest.mark.parametrize("release", ["6.1.0", "6.10.3-arch1", "7.0-rc1", "kernel"])
def test_a_kernel_that_may_do_is_asked(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("io_uring is a part of Linux")
    run_on(release)(monkeypatch)
    refuse(SETUP, errno.EPERM)(monkeypatch)
    with pytest.raises(DriverUnavailableError, match="EPERM"):
        choose_driver("io_uring")
