"""Processes of a node stay on the CPUs that its configuration gives them."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from cluster.shared.cpus import format_cpus
from cluster.shared.process import usable_cpus
from cluster.shared.run_directory import RunDirectory
from tests.system.cluster_node import run_cluster
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient
from tests.system.test_spares import complete, write_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a system with affinity")


def places(pids: list[int]) -> list[list[int]]:
    """Return on which CPUs each of the threads of these processes may run."""
    return [
        sorted(os.sched_getaffinity(thread.id))
        for pid in pids
        for thread in psutil.Process(pid).threads()
    ]


def workers_and_spares(status: Any) -> list[int]:
    return [process["pid"] for process in (*status["workers"], *status["spares"])]


def test_gateway_workers_and_spares_stay_where_they_are_put(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    first, last = min(usable_cpus()), max(usable_cpus())
    config = write_config(
        tmp_path, f'[gateway]\ncpus = "{first}"\n[workers]\ncount = 1\ncpus = "{last}"\n'
    )
    node = cluster_up(*config)
    before = complete(node)
    assert {*map(tuple, places([before["gateway"]["pid"]]))} == {(first,)}
    assert {*map(tuple, places(workers_and_spares(before)))} == {(last,)}
    with PacketClient(node.port) as client:
        os.kill(before["workers"][0]["pid"], signal.SIGKILL)
        assert client.ask(1, b"still there") == (1, b"still there")
    after = complete(node)
    assert not {*workers_and_spares(before)[:1]} & {*workers_and_spares(after)}
    assert {*map(tuple, places(workers_and_spares(after)))} == {(last,)}
    # The supervisor, and whatever else is started from where it was, goes where it went.
    assert places([node.pid])[0] == sorted(usable_cpus())


def test_a_node_does_not_start_on_cpus_that_it_has_not(tmp_path: Path) -> None:
    config = write_config(tmp_path, '[workers]\ncpus = "8191"\n')
    done = run_cluster("up", *config, "--listen", "127.0.0.1:0", "--run-dir", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        'cluster.toml: workers.cpus = "8191": expected CPUs that this process may use, which are '
        f"{format_cpus(usable_cpus())}\n"
    )


def test_a_node_is_asked_about_from_other_cpus_than_its_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, '[gateway]\ncpus = "8191"\n[workers]\ncpus = "8191"\n')
    RunDirectory(tmp_path / "run").create()
    asked = [
        run_cluster(command, *config, "--run-dir", str(tmp_path / "run"))
        for command in ("status", "dead-letters")
    ]
    assert [(done.returncode, done.stderr) for done in asked] == [
        (4, f"cluster: nothing runs in {tmp_path / 'run'}\n"),
        (0, f"cluster: no dead letters in {tmp_path / 'run'}\n"),
    ]


def test_a_node_whose_cpus_have_gone_since_serves_on_others(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "[workers]\ncount = 1\nspares = 0\n")
    node = cluster_up(*config)
    # As if the CPUs had been taken away from the node: what is checked is checked at its start.
    run_dir = RunDirectory(node.run_dir)
    resolved = run_dir.read_config()
    workers = msgspec.structs.replace(resolved.workers, cpus="8191")
    run_dir.write_config(msgspec.structs.replace(resolved, workers=workers))
    with PacketClient(node.port) as client:
        os.kill(complete(node, spares=0)["workers"][0]["pid"], signal.SIGKILL)
        assert client.ask(1, b"still there") == (1, b"still there")
    assert "WARNING worker-0[" in node.stderr
    assert 'workers.cpus = "8191": this process cannot run there (' in node.stderr
    assert node.drain() == 0
