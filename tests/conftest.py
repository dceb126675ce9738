"""Fixtures and settings of all tests. Imports on every platform with the test packages alone."""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from tests.support import wait_until

with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    # No deadline, and no limit to how long it takes to make up examples: a machine that runs other
    # tests at the same time is slow now and then. Under CI=true hypothesis itself also makes its
    # choices repeatable. A test that suppresses a health check of its own has to name both.
    settings.register_profile(
        "cluster",
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("cluster")

# A node is up to five processes that import the same code. Tests, and what they start, keep
# bytecode even where Python was told not to: else each process compiles it, a third of its start,
# and each run rewrites every test module.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests of control plane and lanes have Unix sockets below the temporary directory, and the path of
# one has 103 to 107 bytes.
if os.name == "posix" and len(os.fsencode(tempfile.gettempdir())) > 64:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as processors: a third of their time, tests wait for what takes time."""
    asked = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    if asked:
        return int(asked)
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        processors = os.cpu_count() or 1
    return processors + processors // 2


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the long tests, unless `-m` or a test's own name asks for them."""
    is_named = any("::" in argument for argument in config.args)
    if not config.option.markexpr and not is_named:
        config.option.markexpr = "not long"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let processes that have no tests left take those of others: a test here takes up to 10 s."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_collection_finish() -> None:
    """Keep modules and tests out of later collections, which many tests ask for by name."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    """Fail at the end if a child of this test process still runs, and end it."""
    yield
    try:
        wait_until(lambda: not _living_children(), timeout_s=5, what="the end of all children")
    except AssertionError:
        left_behind = _living_children()
        described = [_describe(process) for process in left_behind]
        for process in left_behind:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if described:
            pytest.fail(f"the tests left processes behind: {described}")


def _living_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _is_alive(child)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"{process.pid}: {' '.join(process.cmdline())}"
    return f"{process.pid}: already gone"
