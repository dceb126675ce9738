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
    assert left.traceback.startswith("Traceback")
    assert left.line.startswith(LINE)
    assert left.summary == (
        f"ZeroDivisionError: division by zero ({directory.path.parent / 'broken.py'}, line 1)"
    )
    assert left.text.startswith("Traceback")
    assert left.text.splitlines()[-1] == left.line


@pytest.mark.parametrize(
    ("source", "summary"),
    [
        ("\nx = (\n", "SyntaxError: '(' was never closed ({file}, line 2)"),
        ("\ndef f():\n    import nowhere\n\nf()\n", "No module named 'nowhere' ({file}, line 3)"),
        (
            "app = 1\n",
            "'app' in module 'broken' is int, not a cluster.worker.App; there is no application in "
            "it: make one, app = App()",
        ),
    ],
)
def test_the_summary_of_a_failure_names_file_and_line(
    directory: RunDirectory, source: str, summary: str
):
    file = directory.path.parent / "broken.py"
    file.write_text(source)
    with start(directory, "--parent-pid", str(os.getpid())) as process:
        process.communicate(timeout=30)
    left = read_start_failure(directory, "worker-1", process.pid)
    assert left is not None
    assert left.summary.endswith(summary.replace("{file}", str(file)))
    assert len(left.summary.splitlines()) == 1


def test_a_worker_that_cannot_leave_its_reason_says_it(directory: RunDirectory):
    (directory.path / "worker-1-failure.json").mkdir()
    with start(directory, "--parent-pid", str(os.getpid())) as process:
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert "worker-1-failure.json cannot be written" in said
    assert said.splitlines()[-1].startswith(LINE)
