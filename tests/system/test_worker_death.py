"""Workers are killed under load; their clients notice a pause and nothing else."""

import os
import random
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest

from tests.system.checked_client import DEPTH, CheckedClient, served_again
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

NOTES_EACH_CALL = """
import os
from cluster.worker import App

app = App()
notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@app.on_any
def answer(session, packet_id, payload):
    os.write(notes, b"%d/%d " % (session.id, session.sequence))
    session.send(packet_id, payload)
"""
SMALL_LANE = """
[gateway]
accepts_outstanding_max = 4
max_packet_bytes = 64
[lane]
bytes = 4096
"""
QUICK_TO_FENCE = """
[workers]
worker_timeout_s = 1.0
"""


def test_killed_workers_lose_and_repeat_nothing(cluster_up: StartNode, lane: str) -> None:
    node = cluster_up("--lane", lane, "--workers", "2")
    gateway = node.status()["gateway"]["pid"]
    clients = [CheckedClient(node.port, number) for number in range(10)]
    for client in clients:
        client.start()
    source = random.Random(5)
    try:
        for kill in range(1, 7):
            served_again(node, clients)
            shard = source.randrange(2)
            workers = node.wait_status(
                lambda status: all(worker["state"] == "ready" for worker in status["workers"]),
                "both shards are served",
            )["workers"]
            os.kill(workers[shard]["pid"], signal.SIGKILL)
            node.wait_status(
                lambda status, kills=kill: (
                    sum(worker["restarts"] for worker in status["workers"]) == kills
                    and all(worker["state"] == "ready" for worker in status["workers"])
                ),
                "the worker is replaced",
            )
        served_again(node, clients)
    finally:
        answered = [client.finish() for client in clients]
    assert min(answered) > DEPTH
    status = node.status()
    assert status["gateway"]["pid"] == gateway
    assert status["counters"]["sessions_opened"] == len(clients)
    assert node.drain() == 0


def test_a_worker_that_is_asked_to_end_leaves_nothing_to_be_done_again(
    cluster_up: StartNode, lane: str, tmp_path: Path
) -> None:
    (tmp_path / "the_app.py").write_text(NOTES_EACH_CALL)
    notes = tmp_path / "notes"
    node = cluster_up(
        *("--lane", lane, "--app", "the_app:app", "--workers", "1"),
        cwd=tmp_path,
        env={"NOTES": str(notes)},
    )
    clients = [CheckedClient(node.port, number) for number in range(10)]
    for client in clients:
        client.start()
    try:
        for restarts in range(1, 9):
            served_again(node, clients)
            os.kill(node.worker_pids()[0], signal.SIGTERM)
            node.wait_status(
                lambda status, restarts=restarts: (
                    status["workers"][0]["restarts"] == restarts
                    and status["workers"][0]["state"] == "ready"
                ),
                "the successor",
            )
        served_again(node, clients)
    finally:
        answered = sum(client.finish() for client in clients)
    calls = notes.read_bytes().split()
    assert len(set(calls)) == answered
    assert len(calls) == answered, f"{len(calls) - answered} packets were handled again"
    assert "may be done again" not in node.stderr
    assert node.drain() == 0


def test_a_stopped_worker_is_fenced_and_what_it_says_later_is_not_applied(
    cluster_up: StartNode, lane: str, tmp_path: Path
) -> None:
    config = tmp_path / "quick.toml"
    config.write_text(QUICK_TO_FENCE)
    node = cluster_up("--lane", lane, "--workers", "1", "--config", str(config))
    clients = [CheckedClient(node.port, number) for number in range(4)]
    for client in clients:
        client.start()
    try:
        served_again(node, clients)
        stopped = node.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        node.wait_status(
            lambda status: (
                status["workers"][0]["state"] == "ready"
                and status["workers"][0]["pid"] not in (stopped, None)
            ),
            "the stopped worker is replaced",
        )
        served_again(node, clients)
    finally:
        for client in clients:
            client.finish()
    assert node.counters()["workers_fenced"] == 1


def test_clients_that_come_while_nobody_serves_are_served_by_the_successor(
    cluster_up: StartNode,
    lane: str,
) -> None:
    node = cluster_up("--lane", lane, "--workers", "1")
    (worker,) = node.worker_pids()
    os.kill(worker, signal.SIGSTOP)  # nobody knows yet, so there is no successor
    clients = [PacketClient(node.port) for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(number, b"is anybody there?")
    node.wait_status(lambda status: status["counters"]["packets_received"] == 4, "the packets")
    os.kill(worker, signal.SIGKILL)
    # Nothing more is sent that could push on what has been waiting.
    for number, client in enumerate(clients):
        assert client.receive() == (number, b"is anybody there?")
        client.socket.close()
    # The supervisor tells a moment later than the successor has answered.
    node.wait_status(lambda status: status["workers"][0]["restarts"] == 1, "the restart")


def test_clients_that_come_and_go_while_a_worker_hangs_are_held_off_when_its_lane_is_full(
    cluster_up: StartNode, lane: str, tmp_path: Path
) -> None:
    config = tmp_path / "small.toml"
    config.write_text(SMALL_LANE)
    node = cluster_up("--lane", lane, "--workers", "1", "--config", str(config))
    (worker,) = node.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    for _ in range(500):
        client = PacketClient(node.port)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    counters = node.wait_status(
        lambda status: status["counters"].get("accepting_paused") == 1, "a pause"
    )["counters"]
    assert counters["uncommitted_bytes"] < 4_096 + 2_048
    assert counters["sessions_opened"] < 500
    os.kill(worker, signal.SIGCONT)
    with PacketClient(node.port) as client:
        assert client.ask(1, b"at last") == (1, b"at last")
    node.wait_status(
        lambda status: (
            status["counters"]["uncommitted_bytes"] == 0 and status["gateway"]["sessions"] == 0
        ),
        "everything handled",
    )
    assert node.status()["workers"][0]["pid"] == worker
    assert node.drain() == 0
