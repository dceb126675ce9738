"""A drain with real processes in which the application lets its sessions go by itself."""

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.applications.matches import ENDING, PLAY, TICK, TICKS
from tests.support import wait_until
from tests.system.cluster_node import ROOT, ClusterNode, run_cluster
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def start(cluster_up: StartNode, tmp_path: Path, timeout_s: float, *arguments: str) -> ClusterNode:
    config = tmp_path / "cluster.toml"
    config.write_text(f"[supervisor]\ndrain_timeout_s = {timeout_s}\n")
    app = ("--app", "tests.applications.matches:app", "--config", str(config))
    return cluster_up(*app, *arguments, cwd=ROOT)


def begin_match(client: PacketClient) -> None:
    assert client.ask(PLAY, b"begin") == (PLAY, b"begin")


def ticks_until_the_end(client: PacketClient) -> tuple[list[int], int]:
    """Receive until the session ends; return the numbers of ticks, and how often a drain was
    told."""
    ticks: list[int] = []
    tellings = 0
    while True:
        try:
            packet_id, payload = client.receive()
        except EOFError:
            return ticks, tellings
        if packet_id == TICK:
            ticks.append(int(payload))
        else:
            assert packet_id == ENDING
            tellings += 1


@pytest.mark.parametrize("lane", ["shm", pytest.param("zmq", marks=pytest.mark.long)])
def test_matches_come_to_their_end_in_a_drain_whoever_dies_meanwhile(
    cluster_up: StartNode, tmp_path: Path, lane: str
) -> None:
    node = start(cluster_up, tmp_path, 60.0, "--workers", "2", "--lane", lane)
    pids = node.worker_pids()
    with ExitStack() as stack:
        idler, *clients = (
            stack.enter_context(PacketClient(node.port, timeout_s=30)) for _ in range(7)
        )
        for client in clients:
            begin_match(client)
        node.signal(signal.SIGTERM)
        idler.receive_end()  # nothing keeps it
        with pytest.raises(ConnectionRefusedError):
            PacketClient(node.port)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            ticks, tellings = ticks_until_the_end(client)
            assert ticks == list(range(1, TICKS + 1))
            assert tellings in (1, 2)  # the successor is told as well, if there is time for it
    assert node.wait_exit() == 0
    assert "sessions cut off" not in node.stderr
    assert node.processes() == []


def test_matches_that_take_too_long_end_with_the_time_for_the_drain(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    node = start(cluster_up, tmp_path, 1.0)
    with PacketClient(node.port) as client:
        begin_match(client)
        node.signal(signal.SIGTERM)
        ticks, tellings = ticks_until_the_end(client)
        assert ticks == list(range(1, len(ticks) + 1))
        assert len(ticks) < TICKS
        assert tellings == 1
    assert node.wait_exit() == 0
    assert "sessions cut off" not in node.stderr  # it was ended in good order


DEADLY = """
import os
from cluster.worker import App
app = App()
@app.on_any
def echo(session, packet_id, payload):
    session.send(packet_id, payload)
@app.on_drain
def die(seconds):
    os._exit(9)
"""


DEADLY_LATER = DEADLY.replace("import os", "import asyncio, os").replace(
    "def die(seconds):", "async def die(seconds):\n    await asyncio.sleep(0)"
)


@pytest.mark.parametrize("source", [DEADLY, DEADLY_LATER], ids=["at once", "in a coroutine"])
def test_a_handler_of_drains_that_kills_is_set_aside_and_the_node_ends_in_order(
    cluster_up: StartNode, tmp_path: Path, source: str
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 30\n[workers]\nmax_redeliveries = 2\n")
    (tmp_path / "the_app.py").write_text(source)
    arguments = ("--app", "the_app:app", "--workers", "1", "--config", str(config))
    node = cluster_up(*arguments, cwd=tmp_path)
    with PacketClient(node.port, timeout_s=30) as client:
        assert client.ask(1, b"x") == (1, b"x")
        node.signal(signal.SIGTERM)
        node.wait_status(lambda seen: seen["counters"].get("dead_letters") == 1, "the letter")
        assert client.ask(2, b"still here") == (2, b"still here")
        wait_until(lambda: "the handler of drains is set aside" in node.stderr, what="the log")
        letters = run_cluster("dead-letters", "--run-dir", str(node.run_dir), "--json").stdout
        assert json.loads(letters)["kind"] == "drain"
    assert node.wait_exit() == 0
    assert node.stderr.count("is set aside: 2 workers") == 1


def test_status_shows_the_sessions_that_a_drain_waits_for(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    node = start(cluster_up, tmp_path, 60.0)
    with PacketClient(node.port) as client:
        begin_match(client)
        node.signal(signal.SIGTERM)
        status = node.wait_status(
            lambda seen: {worker["state"] for worker in seen["workers"]} == {"draining"},
            "the drain",
        )
        assert status["gateway"]["sessions"] == 1
        ticks_until_the_end(client)
    wait_until(lambda: node.process.poll() is not None, what="the end")
    assert node.wait_exit() == 0


def test_a_worker_that_hangs_in_a_drain_takes_no_orderly_end_from_clients(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 4\n[workers]\nspares = 0\n")
    node = cluster_up("--config", str(config))
    pids = node.worker_pids()
    with PacketClient(node.port) as hangs, PacketClient(node.port) as served:
        for client in (hangs, served):
            assert client.ask(1, b"x") == (1, b"x")
        os.kill(pids[0], signal.SIGSTOP)
        for client in (hangs, served):
            client.send(2, b"y")
        assert served.receive() == (2, b"y")
        node.signal(signal.SIGTERM)
        for client in (hangs, served):
            with pytest.raises(EOFError, match="after 0 of 4 bytes"):  # and no reset
                client.receive()
            client.socket.close()
    assert node.wait_exit() == 0
    assert "the time to drain is up: sessions cut off: 0, " in node.stderr
    assert node.processes() == []


DIES_LATER = """
import os
from pathlib import Path

from cluster.worker import App

app = App()


@app.on_start
def start():
    if app.shard.shard == 0 and Path("dies").exists():
        os._exit(9)


@app.on_packet(1)
def echo(session, payload):
    session.send(1, payload)


@app.on_packet(2)
def leave(session, payload):
    session.disconnect("left")


@app.on_drain
def keep_them_all(seconds):
    pass
"""


def test_a_shard_that_is_given_up_does_not_hold_the_drain(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 600\n[workers]\nspares = 0\n")
    (tmp_path / "the_app.py").write_text(DIES_LATER)
    node = cluster_up("--app", "the_app:app", "--config", str(config), cwd=tmp_path)
    pids = node.worker_pids()
    with PacketClient(node.port, timeout_s=30) as lost, PacketClient(node.port) as served:
        for client in (lost, served):
            assert client.ask(1, b"x") == (1, b"x")
        node.signal(signal.SIGTERM)
        node.wait_status(
            lambda status: status["workers"][1]["state"] == "draining", "the begin of the drain"
        )
        (tmp_path / "dies").touch()
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(EOFError, match="after 0 of 4 bytes"):
            lost.receive()
        assert "shard 0 gets no worker any more: sessions that are ended for that: 1" in node.stderr
        assert served.ask(1, b"y") == (1, b"y")  # its application keeps it
        served.send(2, b"")
        served.receive_end()
    assert node.wait_exit() == 3
    assert "the time to drain is up" not in node.stderr
    assert "the drain has left undone what was for shards without a worker" in node.stderr
    assert node.processes() == []


FAILED_RELOAD = "raise RuntimeError('no database here')\n"


@pytest.mark.parametrize("dies", ["before the drain", "in the drain"])
def test_a_shard_that_a_failed_reload_left_without_a_worker_does_not_hold_the_drain(
    cluster_up: StartNode, tmp_path: Path, dies: str
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 600\n[workers]\ncount = 1\nspares = 0\n")
    app = tmp_path / "the_app.py"
    app.write_text(DIES_LATER)
    node = cluster_up("--app", "the_app:app", "--config", str(config), cwd=tmp_path)
    [pid] = node.worker_pids()
    with PacketClient(node.port, timeout_s=30) as lost:
        assert lost.ask(1, b"x") == (1, b"x")
        app.write_text(FAILED_RELOAD)
        assert run_cluster("reload", "--run-dir", str(node.run_dir)).returncode == 1
        if dies == "before the drain":
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "worker 0 has no process" in node.stderr, what="the pause")
            node.signal(signal.SIGTERM)
        else:
            node.signal(signal.SIGTERM)
            node.wait_status(
                lambda status: status["workers"][0]["state"] == "draining", "the begin of the drain"
            )
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(EOFError, match="after 0 of 4 bytes"):
            lost.receive()
    assert node.wait_exit() == 3
    assert node.told_reason().startswith("cluster: gave up restarting worker 0: 5 lives in ")
    assert "the time to drain is up" not in node.stderr
    assert node.processes() == []


ENDS_LATE = """
import asyncio
import time

from cluster.worker import App

app = App()


@app.on_stop
"""


@pytest.mark.parametrize(
    ("on_stop", "told"),
    [
        pytest.param("def hang():\n    time.sleep(3600)\n", "in hang\n", id="hangs"),
        pytest.param(
            "async def wait():\n    await asyncio.sleep(3600)\n",
            "TimeoutError: it has not come to its end within 1 s",
            id="awaits",
        ),
        pytest.param("def end():\n    pass\n", "(pid", id="is stopped"),
    ],
)
def test_a_worker_that_does_not_end_holds_the_end_of_a_node_no_longer_than_its_timeout(
    cluster_up: StartNode, tmp_path: Path, on_stop: str, told: str, request: pytest.FixtureRequest
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(
        "[supervisor]\ndrain_timeout_s = 600\n[workers]\ncount = 1\nworker_timeout_s = 1.0\n"
    )
    (tmp_path / "the_app.py").write_text(ENDS_LATE + on_stop)
    node = cluster_up("--app", "the_app:app", "--config", str(config), cwd=tmp_path)
    [pid] = node.worker_pids()
    if request.node.callspec.id == "is stopped":
        os.kill(pid, signal.SIGSTOP)
    node.signal(signal.SIGTERM)
    assert node.wait_exit() == 0
    assert told in node.stderr
    assert "is lost" not in node.stderr
    hung = f"worker 0 (pid {pid}) has not ended, though the node is drained; killed"
    assert (hung in node.stderr) == ("async" not in on_stop)
    assert node.processes() == []
