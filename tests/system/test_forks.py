"""An application that forks: what it has forked off is no second worker, whatever way it ends."""

import sys
from pathlib import Path

import pytest

from tests.system.checked_client import CheckedClient, served_again
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

FORKING = """
import asyncio, multiprocessing, os, sys, time
from cluster.worker import App

app = App()

def how_it_ended(pid):
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@app.on_packet(65_500)
def fork(session, payload):
    pid = os.fork()
    if pid:
        session.send(65_500, how_it_ended(pid))
    elif payload == b"returns":
        session.send(65_500, b"twice")
    elif payload == b"raises":
        raise ValueError(payload)
    elif payload == b"exits":
        sys.exit(7)
    elif payload == b"interrupts":
        raise KeyboardInterrupt

@app.on_packet(65_501)
async def fork_later(session, payload):
    await asyncio.sleep(0.01)
    fork(session, payload)

@app.on_packet(65_502)
def terminate(session, payload):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join()
    session.send(65_502, b"%d" % process.exitcode)

@app.on_any
def echo(session, packet_id, payload):
    session.send(packet_id, payload)
"""


def test_what_a_handler_forks_off_is_no_second_worker(
    cluster_up: StartNode, tmp_path: Path, lane: str
) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    node = cluster_up("--app", "forking:app", "--workers", "1", "--lane", lane, cwd=tmp_path)
    others = [CheckedClient(node.port, number) for number in range(2)]
    for other in others:
        other.start()
    served_again(node, others)
    with PacketClient(node.port) as client:
        for handler in (65_500, 65_501):
            for payload, code in (
                (b"returns", b"1"),
                (b"raises", b"1"),
                (b"exits", b"7"),
                (b"interrupts", b"1"),
            ):
                assert client.ask(handler, payload) == (65_500, code)
                served_again(node, others)
        assert client.ask(65_502, b"") == (65_502, b"-15")
    for other in others:
        other.finish()
    (worker,) = node.status()["workers"]
    assert (worker["state"], worker["restarts"]) == ("ready", 0)
    assert node.counters().get("workers_fenced", 0) == 0
    # Those that returned, and those whose handler raised: that was caught, as in a worker.
    assert node.stderr.count("has come back to the code of its worker") == 6
    assert "the application ended its worker" not in node.stderr
    assert node.drain() == 0
