"""Typed packets through a node of real processes, among clients that send what does not decode."""

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.applications import typed
from tests.support import wait_until
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

HOSTILE_CLIENTS = 30
HOSTILE = [b"", b"\xff", b"[" * 60_000, b'{"dx": 1, "dy": "1"}', b'{"dx": 1}', b"9" * 60_000]


def test_what_does_not_decode_ends_its_own_session_and_no_worker(
    cluster_up: StartNode, tmp_path: Path
):
    source = Path(typed.__file__).read_text("utf-8")
    (tmp_path / "typed.py").write_text(source, "utf-8")
    node = cluster_up("--app", "typed:app", "--workers", "1", cwd=tmp_path)
    (pid,) = node.worker_pids()
    with PacketClient(node.port) as good:
        for number in range(HOSTILE_CLIENTS):
            with PacketClient(node.port) as bad:
                expected = b'{"x":3,"y":-4}'
                assert bad.ask(typed.MOVE, b'{"dx": 3, "dy": -4}') == (typed.POSITION, expected)
                bad.send(typed.MOVE, HOSTILE[number % len(HOSTILE)])
                bad.send(typed.MOVE, b'{"dx": 1, "dy": 1}')  # too late: it is ended already
                with pytest.raises(EOFError, match="after 0 of"):
                    bad.receive()
            answer = good.ask(typed.MOVE, b'{"dx": 1, "dy": 0}')
            assert answer == (typed.POSITION, b'{"x":%d,"y":0}' % (number + 1))
        good.send(999, b"for nobody")
    assert node.worker_pids() == [pid]

    def all_told(counters: dict[str, int]) -> bool:
        names = ("decode_errors", "closed_decode_error", "unhandled_packets")
        told = tuple(counters.get(name) for name in names)
        return told == (HOSTILE_CLIENTS, HOSTILE_CLIENTS, 1)

    node.wait_status(lambda status: all_told(status["counters"]), "what workers count")
    lines = [line for line in node.stderr.splitlines() if "does not decode" in line]
    assert 0 < len(lines) < HOSTILE_CLIENTS
    assert max(map(len, lines)) < 500
    assert any("Expected `int`, got `str` - at `$.dy`" in line for line in lines)

    psutil.Process(pid).send_signal(signal.SIGTERM)  # on_stop: when it alone is asked to end
    wait_until((tmp_path / f"stopped-{pid}").exists, what="on_stop of the worker")
    # One that is still starting has not begun anything that `on_stop` would end.
    status = node.wait_status(
        lambda status: (
            [(worker["restarts"], worker["state"]) for worker in status["workers"]]
            == [(1, "ready")]
        ),
        "a successor that serves",
    )
    (successor,) = status["workers"]
    assert node.drain() == 0  # and in a drain, where the spare, which has no shard, stays silent
    stopped = {path.name for path in tmp_path.glob("stopped-*")}
    assert stopped == {f"stopped-{pid}", f"stopped-{successor['pid']}"}
