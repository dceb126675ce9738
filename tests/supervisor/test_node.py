"""The processes of a node as one thing, where no supervisor is needed to show it."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.shared.config import Config, NodeConfig, RemoteConfig, WorkersConfig
from cluster.shared.messages import GatewayReady, WorkerGone
from cluster.shared.process import spawn
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor import gateway_keeper, gateway_link
from cluster.supervisor.child import Child
from cluster.supervisor.gateway_keeper import GatewayKeeper
from cluster.supervisor.node import Node
from cluster.supervisor.node_record import read_node_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the control plane is ipc here")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def node(directory: RunDirectory) -> Iterator[Node]:
    made = Node(Config(node=NodeConfig(listen="127.0.0.1:0")), directory)
    yield made
    made.close()


def ready(pid: int) -> GatewayReady:
    return GatewayReady(
        pid=pid, node=1, epoch=1, listen="127.0.0.1:81", driver="readiness", lane="zmq"
    )


def test_a_port_that_was_given_is_kept_and_one_that_was_asked_for_stays(
    node: Node, directory: RunDirectory
):
    node.keep_listen_address("127.0.0.1:81")
    assert directory.read_config().node.listen == "127.0.0.1:81"
    node.keep_listen_address("127.0.0.1:82")
    assert directory.read_config().node.listen == "127.0.0.1:81"


@pytest.mark.parametrize(
    ("remote", "local", "spares"), [([], [0, 1, 2], 2), ([0, 2], [1], 2), ([2, 0, 1], [], 0)]
)
def test_shards_that_are_served_from_elsewhere_are_not_the_supervisors(
    directory: RunDirectory, remote: list[int], local: list[int], spares: int
):
    config = Config(
        workers=WorkersConfig(count=3, spares=2),
        remote=RemoteConfig(listen="127.0.0.1:0", keys_dir="keys", shards=remote),
    )
    node = Node(config, directory)
    assert [shard.index for shard in node.shards] == local
    assert len(list(node.spares)) == spares
    for index in range(4):
        shard = node.shard(index)
        assert (None if shard is None else shard.index) == (index if index in local else None)
    node.close()


def test_a_record_is_written_when_something_changed(node: Node, directory: RunDirectory):
    node.write_record()
    first = read_node_record(directory)
    assert first is not None
    assert [worker.state for worker in first.workers] == ["starting", "starting"]
    node.shards[1].state = "backoff"
    node.write_record()
    assert read_node_record(directory) == first
    node.report(node.shards[1])
    node.write_record()
    second = read_node_record(directory)
    assert second is not None
    assert [worker.state for worker in second.workers] == ["starting", "backoff"]
    assert msgspec.structs.replace(second, workers=first.workers) == first


def test_a_node_goes_on_without_a_record(
    node: Node, directory: RunDirectory, caplog: pytest.LogCaptureFixture
):
    directory.path.rmdir()
    with caplog.at_level(logging.ERROR):
        node.write_record()
    assert "supervisor.json cannot be written" in caplog.text


def test_a_gateway_that_reads_nothing_is_killed(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    started: list[subprocess.Popen[bytes]] = []

    def launch_gateway(run_directory: RunDirectory) -> Child:
        started.append(spawn([sys.executable, "-c", "import time; time.sleep(600)"], os.environ))
        return Child("gateway", started[-1])

    monkeypatch.setattr(gateway_keeper, "launch_gateway", launch_gateway)
    monkeypatch.setattr(gateway_link, "_QUEUE_MESSAGES_MAX", 3)
    keeper = GatewayKeeper(directory, os.getpid(), 10.0)
    try:
        keeper.start(0.0)
        assert keeper.pid is not None
        keeper.tell(WorkerGone(shard=0, pid=1))  # it is not ready: there is nothing to tell
        assert keeper.became_ready(ready(keeper.pid), 0.0)
        for _ in range(10):
            keeper.tell(WorkerGone(shard=0, pid=1))
        assert started[0].wait(10) == -9
        assert "reads no messages any more" in caplog.text
    finally:
        keeper.close()
        started[0].kill()
        started[0].wait()
