"""A worker that cannot start says why, or leaves that to its supervisor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.shared.config import Config, NodeConfig
from cluster.shared.run_directory import RunDirectory
from cluster.shared.start_failure import read_start_failure

ROOT = Path(__file__).parents[2]
LINE = "cluster worker: cannot import 'broken' of --app 'broken:app' (ZeroDivisionError: "


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """The run directory of a node whose application raises when it is imported."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    made = RunDirectory(tmp_path / "run")
    made.create()
    made.write_config(Config(node=NodeConfig(app="broken:app")))
    return made


def start(directory: RunDirectory, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cluster.worker", "--shard", "1"]
    return subprocess.Popen(
        [*command, "--run-dir", str(directory.path), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory.path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_worker_without_a_supervisor_says_why_it_cannot_start(directory: RunDirectory):
    with start(directory) as process:
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith(LINE)
    assert said.count(LINE) == 1
    assert read_start_failure(directory, "worker-1", process.pid) is None


def test_a_worker_with_a_supervisor_leaves_its_reason_and_says_nothing(directory: RunDirectory):
    with start(directory, "--parent-pid", str(os.getpid())) as process:
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert said == ""
    left = read_start_failure(directory, "worker-1", process.pid)
    assert left is not None
    assert left.startswith("Traceback")
    assert left.splitlines()[-1].startswith(LINE)


def test_a_worker_that_cannot_leave_its_reason_says_it(directory: RunDirectory):
    (directory.path / "worker-1-failure.json").mkdir()
    with start(directory, "--parent-pid", str(os.getpid())) as process:
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert "worker-1-failure.json cannot be written" in said
    assert said.splitlines()[-1].startswith(LINE)
