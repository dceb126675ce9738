"""Spares take over from workers that die; what clients, status and the application see of it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import wait_until
from tests.system.checked_client import CheckedClient
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

NOTES_ITS_LIFE = """
import os
from cluster.worker import App

app = App()
notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(what):
    os.write(notes, b"%d %s\\n" % (os.getpid(), what))

note(b"imported")

@app.on_start
def start():
    note(b"started")
    app.broadcast(9, b"%d" % os.getpid())

@app.on_resumed
def resumed(session):
    note(b"resumed")

@app.on_any
def answer(session, packet_id, payload):
    session.send(packet_id, payload)
"""
FAILS_IN_ON_START = """
import os
from cluster.worker import App

app = App()

@app.on_start
def open_the_database():
    if os.path.exists(os.environ["BROKEN"]):
        raise RuntimeError("no database here")

@app.on_any
def answer(session, packet_id, payload):
    session.send(packet_id, payload)
"""
FAILS_ONCE_IN_ON_START = FAILS_IN_ON_START.replace(
    "        raise", '        os.remove(os.environ["BROKEN"])\n        raise'
)
FAILS_IN_SPARES = """
import os, sys
from cluster.worker import App

app = App()
if "--spare" in sys.argv and os.path.exists(os.environ["BROKEN"]):
    raise RuntimeError("deployed badly")

@app.on_any
def answer(session, packet_id, payload):
    session.send(packet_id, payload)
"""


def write_config(tmp_path: Path, text: str) -> tuple[str, str]:
    config = tmp_path / "cluster.toml"
    config.write_text(text)
    return "--config", str(config)


def is_complete(status: Any, spares: int = 1) -> bool:
    states = [worker["state"] for worker in status["workers"]]
    return states == ["ready"] * len(states) and len(status["spares"]) == spares


def complete(node: ClusterNode, spares: int = 1) -> Any:
    """Return the status of a node that has all its workers and spares again."""
    return node.wait_status(lambda status: is_complete(status, spares), "all workers and spares")


def pids(status: Any) -> list[int]:
    return [worker["pid"] for worker in status["workers"]]


def restarts(status: Any) -> list[int]:
    return [worker["restarts"] for worker in status["workers"]]


def spare_pids(status: Any) -> list[int]:
    return [spare["pid"] for spare in status["spares"]]


def all_answered(clients: list[CheckedClient]) -> None:
    """Wait until each client was answered again, or has failed."""
    before = [client.answered for client in clients]
    wait_until(
        lambda: all(
            client.answered > count or client.failure
            for client, count in zip(clients, before, strict=True)
        ),
        timeout_s=30,
        what="an answer for every client",
    )


@contextmanager
def under_load(node: ClusterNode, count: int) -> Iterator[list[CheckedClient]]:
    """Have checked clients, which at the end have lost, doubled and mixed up nothing."""
    clients = [CheckedClient(node.port, number) for number in range(count)]
    for client in clients:
        client.start()
    try:
        all_answered(clients)
        yield clients
        all_answered(clients)
    finally:
        for client in clients:
            client.finish()


# -- taking over -----------------------------------------------------------------------------------


def test_a_spare_serves_the_clients_of_a_worker_that_is_killed(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    with under_load(node, 8) as clients:
        for kills in range(1, 4):
            before = complete(node)
            [spare] = spare_pids(before)
            os.kill(pids(before)[1], signal.SIGKILL)
            after = node.wait_status(
                lambda status, kills=kills: restarts(status) == [0, kills] and is_complete(status),
                "the takeover",
            )
            assert pids(after) == [pids(before)[0], spare]
            assert spare_pids(after) != [spare]
            all_answered(clients)
    assert node.counters()["spares_used"] == 3
    assert node.status()["gateway"]["sessions"] <= 8
    assert node.drain() == 0
    assert node.processes() == []


def test_on_start_runs_once_in_each_worker_and_before_what_is_resumed(
    cluster_up: StartNode, tmp_path: Path
):
    (tmp_path / "the_app.py").write_text(NOTES_ITS_LIFE)
    notes = tmp_path / "notes"
    flags = ("--app", "the_app:app", "--workers", "1")
    node = cluster_up(*flags, cwd=tmp_path, env={"NOTES": str(notes)})
    before = complete(node)
    [worker], [spare] = pids(before), spare_pids(before)

    def noted(pid: int) -> list[str]:
        lines = [line.split() for line in notes.read_text().splitlines()]
        return [what for by, what in lines if int(by) == pid]

    assert noted(worker) == ["imported", "started"]
    assert noted(spare) == ["imported"]
    clients = [PacketClient(node.port) for _ in range(2)]
    for client in clients:
        assert client.ask(1, b"here") == (1, b"here")
    os.kill(worker, signal.SIGKILL)
    for client in clients:
        assert client.receive() == (9, b"%d" % spare)  # what on_start had to say
        assert client.ask(2, b"again") == (2, b"again")
        client.socket.close()
    assert noted(spare) == ["imported", "started", "resumed", "resumed"]
    after = complete(node)
    assert pids(after) == [spare]
    assert noted(spare_pids(after)[0]) == ["imported"]
    assert node.drain() == 0


@pytest.mark.long
def test_two_workers_killed_at_once_are_succeeded_by_one_spare_and_a_new_process(
    cluster_up: StartNode,
):
    node = cluster_up("--workers", "2")
    with under_load(node, 8):
        before = complete(node)
        [spare] = spare_pids(before)
        for pid in pids(before):
            os.kill(pid, signal.SIGKILL)
        after = node.wait_status(
            lambda status: restarts(status) == [1, 1] and is_complete(status), "both successors"
        )
        assert spare in pids(after)
        assert not set(pids(before)) & set(pids(after))
    assert node.drain() == 0


@pytest.mark.long
def test_a_worker_that_is_stopped_dead_is_succeeded_by_a_spare(
    cluster_up: StartNode, tmp_path: Path
):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nworker_timeout_s = 1.0\n"))
    with under_load(node, 4):
        before = complete(node)
        os.kill(pids(before)[0], signal.SIGSTOP)
        after = node.wait_status(
            lambda status: restarts(status) == [1] and is_complete(status), "the takeover"
        )
        assert pids(after) == spare_pids(before)
    assert not psutil.pid_exists(pids(before)[0])
    assert node.drain() == 0


def test_without_spares_a_new_process_succeeds(cluster_up: StartNode, tmp_path: Path):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nspares = 0\n"))
    with under_load(node, 4):
        before = complete(node, spares=0)
        assert len(node.processes()) == 3
        os.kill(pids(before)[0], signal.SIGKILL)
        after = node.wait_status(
            lambda status: restarts(status) == [1] and is_complete(status, 0), "the successor"
        )
        assert pids(after) != pids(before)
    assert "spares_used" not in node.counters()
    assert node.drain() == 0


# -- the deaths of spares --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.long
def test_a_spare_that_dies_is_replaced_and_no_shard_is_touched(
    cluster_up: StartNode, number: signal.Signals
):
    node = cluster_up("--workers", "1")
    with under_load(node, 2):
        before = complete(node)
        [spare] = spare_pids(before)
        os.kill(spare, number)
        after = node.wait_status(
            lambda status: is_complete(status) and spare_pids(status) != [spare], "another spare"
        )
        assert (pids(after), restarts(after)) == (pids(before), [0])
    assert node.drain() == 0


@pytest.mark.long
def test_a_spare_that_is_stopped_dead_is_killed_and_replaced(cluster_up: StartNode, tmp_path: Path):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nworker_timeout_s = 0.5\n"))
    before = complete(node)
    [spare] = spare_pids(before)
    os.kill(spare, signal.SIGSTOP)
    after = node.wait_status(
        lambda status: is_complete(status) and spare_pids(status) != [spare], "another spare"
    )
    assert not psutil.pid_exists(spare)
    assert after["workers"] == before["workers"]
    assert after["counters"]["spares_dropped"] == 1
    assert node.drain() == 0


@pytest.mark.long
def test_a_spare_that_waits_longer_than_the_timeout_is_still_there(
    cluster_up: StartNode, tmp_path: Path
):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nworker_timeout_s = 0.5\n"))
    before = complete(node)
    time.sleep(1.5)  # three times the timeout
    assert node.status()["spares"] == before["spares"]
    with under_load(node, 2):
        os.kill(pids(before)[0], signal.SIGKILL)
        # A gateway that takes half a second to begin has lost its first worker by then.
        takeover = [restarts(before)[0] + 1]
        after = node.wait_status(lambda status: restarts(status) == takeover, "the takeover")
        assert pids(after) == spare_pids(before)
    assert node.drain() == 0


@pytest.mark.parametrize("order", ["spare first", "worker first"])
@pytest.mark.long
def test_a_spare_and_a_worker_killed_together_are_both_succeeded(cluster_up: StartNode, order: str):
    node = cluster_up("--workers", "1")
    with under_load(node, 4) as clients:
        for _ in range(3):
            before = complete(node)
            killed = {*spare_pids(before), *pids(before)}
            for pid in sorted(killed, key=lambda pid: (pid in pids(before)) == (order[0] == "s")):
                os.kill(pid, signal.SIGKILL)
            node.wait_status(
                lambda status, killed=killed: (
                    is_complete(status) and not killed & {*pids(status), *spare_pids(status)}
                ),
                "both successors",
            )
            all_answered(clients)
    assert node.drain() == 0


@pytest.mark.long
def test_a_spare_that_cannot_start_later_harms_nobody_and_is_told_of_once(
    cluster_up: StartNode, tmp_path: Path
):
    (tmp_path / "the_app.py").write_text(FAILS_IN_SPARES)
    broken = tmp_path / "broken"
    node = cluster_up(
        *("--app", "the_app:app", "--workers", "1"),
        cwd=tmp_path,
        env={"BROKEN": str(broken)},
        module="tests.applications.quick_restarts",
    )
    with PacketClient(node.port) as client:
        before = complete(node)
        broken.touch()
        os.kill(spare_pids(before)[0], signal.SIGKILL)
        for failures in range(1, 6):  # once more than a worker is given
            wait_until(
                lambda: node.stderr.count("exit code 2; successor") >= failures,  # noqa: B023
                timeout_s=30,
                what=f"{failures} failures",
            )
            assert client.ask(failures, b"harmed?") == (failures, b"harmed?")
        broken.unlink()
        after = complete(node)
        assert (pids(after), restarts(after)) == (pids(before), [0])
    assert node.stderr.count("deployed badly)") == 1
    assert "gave up" not in node.stderr
    assert list(node.run_dir.glob("spare-*-failure.json")) == []
    assert node.drain() == 0


def test_a_spare_that_cannot_start_at_first_keeps_the_node_from_starting(
    cluster_up_unready: StartNode, tmp_path: Path
):
    (tmp_path / "the_app.py").write_text(FAILS_IN_SPARES)
    (tmp_path / "broken").touch()
    flags = ("--app", "the_app:app", "--workers", "1")
    node = cluster_up_unready(*flags, cwd=tmp_path, env={"BROKEN": str(tmp_path / "broken")})
    assert node.wait_exit() == 2
    assert "deployed badly" in node.told_reason()
    assert node.stdout == ""
    assert node.processes() == []


# -- with the rest of the node ---------------------------------------------------------------------


def test_a_drain_ends_all_spares(cluster_up: StartNode, tmp_path: Path):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nspares = 3\n"))
    complete(node, spares=3)
    assert len(node.processes()) == 6
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
    assert node.drain() == 0
    assert node.processes() == []


@pytest.mark.long
def test_the_spares_of_a_killed_gateway_end_with_it_and_the_next_has_its_own(
    cluster_up: StartNode,
):
    node = cluster_up("--workers", "1")
    before = complete(node)
    os.kill(before["gateway"]["pid"], signal.SIGKILL)
    after = node.wait_status(
        lambda status: status["epoch"] > before["epoch"] and is_complete(status), "the next epoch"
    )
    assert not {*pids(before), *spare_pids(before)} & {*pids(after), *spare_pids(after)}
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        os.kill(pids(after)[0], signal.SIGKILL)
        assert client.ask(2, b"y") == (2, b"y")
    assert pids(complete(node)) == spare_pids(after)
    assert node.drain() == 0


def test_spares_end_with_a_killed_supervisor(cluster_up: StartNode, tmp_path: Path):
    node = cluster_up(*write_config(tmp_path, "[workers]\ncount = 1\nspares = 2\n"))
    assert len(complete(node, spares=2)["spares"]) == 2
    node.signal(signal.SIGKILL)
    node.wait_exit()
    # At once: by its silence they would miss it after `worker_timeout_s`, which is twice as long.
    wait_until(lambda: node.processes() == [], timeout_s=5, what="the end of all processes")


@pytest.mark.long
def test_an_application_that_kills_every_worker_is_given_up_though_there_are_spares(
    cluster_up: StartNode, tmp_path: Path
):
    (tmp_path / "the_app.py").write_text(
        "import os\nfrom cluster.worker import App\napp = App()\n"
        "@app.on_connected\ndef die(session):\n    os._exit(9)\n"
    )
    # Never set aside: that would be the end of the matter.
    workers = "[workers]\ncount = 1\nspares = 2\nmax_redeliveries = 1000\n"
    config = write_config(tmp_path, workers)
    node = cluster_up("--app", "the_app:app", *config, cwd=tmp_path)
    with PacketClient(node.port) as client:
        client.receive_end()
    assert node.wait_exit() == 3
    assert node.told_reason().startswith("cluster: gave up restarting worker 0: 5 lives in ")
    assert 1 <= node.stderr.count("is worker 0 now") <= 4
    assert node.processes() == []


# -- on_start that fails ---------------------------------------------------------------------------


def test_a_node_whose_on_start_raises_cannot_start(cluster_up_unready: StartNode, tmp_path: Path):
    (tmp_path / "the_app.py").write_text(FAILS_IN_ON_START)
    (tmp_path / "broken").touch()
    node = cluster_up_unready(
        "--app", "the_app:app", cwd=tmp_path, env={"BROKEN": str(tmp_path / "broken")}
    )
    assert node.wait_exit() == 2
    assert node.told_reason() == (
        "cluster worker: the application's on_start, open_the_database, raised RuntimeError: "
        "no database here"
    )
    assert node.stderr.count("Traceback") == 1
    assert node.stdout == ""
    assert node.processes() == []


@pytest.mark.long
def test_an_on_start_that_raises_later_is_tried_again(cluster_up: StartNode, tmp_path: Path):
    (tmp_path / "the_app.py").write_text(FAILS_ONCE_IN_ON_START)
    broken = tmp_path / "broken"
    flags = ("--app", "the_app:app", "--workers", "1")
    node = cluster_up(*flags, cwd=tmp_path, env={"BROKEN": str(broken)})
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        broken.touch()
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "exit code 2; successor in" in node.stderr, what="a failure")
        assert client.ask(2, b"y") == (2, b"y")
    assert node.stderr.count("raised RuntimeError: no database here") == 1
    assert node.stderr.count("Traceback") == 1
    assert node.drain() == 0
