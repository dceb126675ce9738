"""A worker that the system kills for want of memory is succeeded, and the log says of what it died.

Needs a control group of its own, which root can make.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

MEMORY_BYTES = 64 << 20
"""More than a worker needs, and less than the packet has it take."""

TAKES_MEMORY = """
from pathlib import Path
from cluster.worker import App

app = App()
mark = Path(__file__).with_name("taken")

@app.on_any
def echo(session, packet_id, payload):
    if not mark.exists():
        mark.touch()
        taken = b"x" * (256 << 20)
    session.send(packet_id, payload)
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory; skips where none can be made."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = root / f"cluster-test-{os.getpid()}"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(MEMORY_BYTES))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
        except OSError:
            group.rmdir()
            continue
        yield group
        _remove(group)
        return
    pytest.skip("no control group for memory can be made")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:  # until its processes have ended
        try:
            group.rmdir()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_worker_that_takes_too_much_memory_is_succeeded_and_that_is_told(
    small_group: Path, cluster_up: StartNode, tmp_path: Path
) -> None:
    (tmp_path / "takes.py").write_text(TAKES_MEMORY)
    node = cluster_up("--app", "takes:app", "--workers", "1", cwd=tmp_path)
    (small_group / "cgroup.procs").write_text(str(node.worker_pids()[0]))
    with PacketClient(node.port) as client:
        assert client.ask(1, b"there") == (1, b"there")
    node.wait_restarts(1)
    assert "signal 9 (SIGKILL), probably for want of memory: the system has killed " in node.stderr
    assert node.drain() == 0
