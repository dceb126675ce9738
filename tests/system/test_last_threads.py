"""Threads that an application leaves behind when its worker ends do not hold up its clients."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cluster.worker.last_threads import LAST_THREADS_S
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode, run_cluster
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LEAVES_THREADS = """
import concurrent.futures, sys, threading, time
from cluster.worker import App

app = App()
executor = concurrent.futures.ThreadPoolExecutor()

@app.on_start
def begin():
    executor.submit(int).result()  # a thread that ends when it is told to
    threading.Thread(target=time.sleep, args=(3600,), name="left-behind").start()

@app.on_packet(7)
def end(session, payload):
    sys.exit(7)

@app.on_any
def echo(session, packet_id, payload):
    session.send(packet_id, payload)
"""

CONFIG = "[workers]\ncount = 1\nmax_redeliveries = 1\nworker_timeout_s = 60\n"
LEFT = "threads of the application go on though their worker has ended"


def has_told(node: ClusterNode, times: int) -> bool:
    return node.stderr.count(LEFT) == times


def test_a_worker_whose_application_leaves_a_thread_behind_is_succeeded_at_once(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES_THREADS)
    (tmp_path / "cluster.toml").write_text(CONFIG)
    node = cluster_up(
        "--app", "leaves:app", "--config", str(tmp_path / "cluster.toml"), cwd=tmp_path
    )
    with PacketClient(node.port) as client:
        for told, end in enumerate(("signal", "reload", "exit"), start=1):
            began = time.monotonic()
            if end == "signal":
                os.kill(node.worker_pids()[0], signal.SIGTERM)
            elif end == "reload":
                assert run_cluster("reload", "--run-dir", str(node.run_dir)).returncode == 0
            else:
                with PacketClient(node.port) as other:
                    other.send(7, b"")
                    other.receive_end()
            wait_until(partial(has_told, node, told), what="the line of the log")
            assert client.ask(1, b"there") == (1, b"there")
            assert LAST_THREADS_S <= time.monotonic() - began < 20
        assert client.ask(2, b"still") == (2, b"still")
    assert node.stderr.count("end with its process: left-behind;") == 3
    began = time.monotonic()
    assert node.drain() == 0
    assert time.monotonic() - began < 20
