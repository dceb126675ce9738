"""The processes of a node as one thing, where no supervisor is needed to show it."""

import errno
import logging
import os
import shutil
import stat
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
from cluster.supervisor import gateway_keeper, gateway_link, upkeep
from cluster.supervisor import node as node_module
from cluster.supervisor.child import Child
from cluster.supervisor.gateway_keeper import GatewayKeeper
from cluster.supervisor.node import Node
from cluster.supervisor.node_record import read_node_record
from tests.supervisor.fake_child import fake_child

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

    def write() -> int:
        """Return how often it was told that this is not possible."""
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            node.report(node.shards[0])
            node.write_record()
        return caplog.text.count("supervisor.json cannot be written")

    assert [write(), write()] == [1, 0]
    directory.create()
    assert write() == 0
    (directory.path / "supervisor.json").unlink()
    directory.path.rmdir()
    assert [write(), write()] == [1, 0]


def test_a_gateway_that_reads_nothing_is_killed(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    started: list[subprocess.Popen[bytes]] = []

    def launch_gateway(run_directory: RunDirectory) -> Child:
        started.append(spawn([sys.executable, "-c", "import time; time.sleep(600)"], os.environ))
        return Child("gateway", started[-1])

    monkeypatch.setattr(gateway_keeper, "launch_gateway", launch_gateway)
    monkeypatch.setattr(gateway_link, "_QUEUE_MESSAGES_MAX", 3)
    keeper = GatewayKeeper(directory, 10.0)
    try:
        keeper.start(0.0)
        assert keeper.pid is not None
        keeper.tell(WorkerGone(shard=0, pid=1))  # it is not ready: there is nothing to tell
        assert keeper.heard_ready(ready(keeper.pid), 0.0)
        for _ in range(10):
            keeper.tell(WorkerGone(shard=0, pid=1))
        assert started[0].wait(10) == -9
        assert "reads no messages any more" in caplog.text
    finally:
        keeper.close()
        started[0].kill()
        started[0].wait()


def test_what_a_process_needs_is_put_back_before_it_is_started(
    node: Node,
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    found: list[Config] = []

    def launch(run_directory: RunDirectory, *_: object) -> Child:
        found.append(run_directory.read_config())
        return fake_child()

    monkeypatch.setattr(node_module, "launch_spare", launch)
    node.keep_listen_address("127.0.0.1:81")
    shutil.rmtree(directory.path)
    node.start_candidate()
    (directory.path / "config.json").unlink()
    node.start_candidate()
    assert [config.node.listen for config in found] == ["127.0.0.1:81"] * 2
    for path, mode in ((directory.path, 0o700), (directory.path / "config.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [record.getMessage().partition("put back: ")[2] for record in caplog.records] == [
        "the directory, config.json; keep cleaners of temporary files away from it",
        "config.json; keep cleaners of temporary files away from it",
    ]
    # One that others may enter is closed to them, as at the start.
    directory.path.chmod(0o755)
    node.start_candidate()
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700


def test_nothing_is_started_in_a_run_directory_that_is_not_the_nodes(
    node: Node,
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(node_module, "launch_spare", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(upkeep, "LOOK_INTERVAL_S", 0.0)
    shutil.rmtree(directory.path)
    directory.path.write_text("somebody else was here")
    for _ in range(3):
        node.look_after_run_directory()
    node.start_candidate()
    (candidate,) = node.spares.candidates
    assert candidate.child is None
    assert candidate.restart_due is not None
    looked, started = [record.getMessage() for record in caplog.records]
    assert looked.startswith("no process can be started until this is mended: run directory ")
    assert started.startswith("cannot start a spare: run directory ")
    assert "is not a directory" in looked


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_run_directory_that_cannot_be_looked_into_is_told_and_ends_no_node(
    directory: RunDirectory,
    reason: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    stat_path = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.parent == directory.path:
            raise OSError(reason, os.strerror(reason))
        return stat_path(path, **options)

    with directory.lock("supervisor") as lock:
        node = Node(Config(node=NodeConfig(listen="127.0.0.1:0")), directory, lock)
        try:
            monkeypatch.setattr(Path, "stat", refuse)
            node.look_after_run_directory()
            (told,) = caplog.messages
            assert told.startswith("no process can be started until this is mended: ")
        finally:
            node.close()


def test_who_waits_for_a_gateway_is_not_slow_before_that_is_ready(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    class Clock:
        now = 1_000.0

    monkeypatch.setattr("cluster.supervisor.node.time.monotonic", lambda: Clock.now)
    monkeypatch.setattr(gateway_keeper, "launch_gateway", lambda run_directory: fake_child())

    def told_at(now: float) -> list[str]:
        Clock.now = now
        caplog.clear()
        node.tell_slow_starts()
        return [message.partition(" (pid ")[0] for message in caplog.messages]

    after_s = Config().workers.slow_start_s
    node.gateway.start(1_000.0)
    for shard in node.shards:
        shard.started(fake_child(role=f"worker {shard.index}"), 1_000.0)
    assert told_at(1_000.0 + after_s - 0.1) == []
    assert told_at(1_000.0 + after_s) == ["the gateway"]
    assert told_at(1_020.0) == []  # once
    assert node.gateway.pid is not None
    assert node.gateway.heard_ready(ready(node.gateway.pid), 1_020.0)
    assert told_at(1_020.0 + after_s - 0.1) == []
    assert told_at(1_020.0 + after_s) == ["worker 0", "worker 1"]
    assert "it has not come to ask the gateway for a shard" in caplog.text
