"""What a front tells Prometheus: each client and each refusal once, by its cause."""

import ctypes
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from cluster.iocp import NetAddress, make_packet
from cluster.websocket.front_counters import ENDS, REFUSALS, FrontCounters
from cluster.websocket.front_metrics import PREFIX, FrontCollector
from tests.certificates import self_signed
from tests.support import wait_until
from tests.system.cluster_node import run_cluster
from tests.system.linked_nodes import free_ports
from tests.websocket.front import FakeNode, Front, front_of, read_to_end, reset
from tests.websocket.ws_client import ClosedError, RefusedError, WsClient

ROOT = Path(__file__).parents[2]
METRICS = ("--metrics", "127.0.0.1:0")
HELLO = make_packet(1, b"hello")

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def wait_for(front: Front, expected: dict[str, float]) -> None:
    """Wait until the front tells what is expected, names without their prefix."""

    def told() -> bool:
        metrics = front.read_metrics()
        return all(metrics[PREFIX + name] == value for name, value in expected.items())

    wait_until(told, what=f"{expected} in the metrics")


@posix
def test_what_goes_through_is_counted_both_ways(fake_node: FakeNode, tmp_path: Path) -> None:
    with (
        front_of(tmp_path, fake_node.port, more=METRICS) as front,
        WsClient(front.address) as client,
    ):
        connection = fake_node.accept()
        client.send(HELLO)
        client.send(HELLO + HELLO)
        taken = b""
        while len(taken) < 3 * len(HELLO):
            taken += connection.recv(100)
        connection.sendall(make_packet(2, b"answer"))
        assert client.receive() == (2, b"answer")
        wait_for(
            front,
            {
                "clients": 1,
                "connections": 1,
                "clients_served_total": 1,
                'messages_total{direction="to_node"}': 2,
                'bytes_total{direction="to_node"}': 3 * len(HELLO),
                'messages_total{direction="to_client"}': 1,
                'bytes_total{direction="to_client"}': len(make_packet(2, b"answer")),
            },
        )
        if sys.platform == "linux":
            assert front.read_metrics()[f"{PREFIX}process_open_fds"] > 3
        client.close()
        wait_for(front, {"clients": 1, "connections": 0})  # the node has not ended
        assert connection.recv(100) == b""
        connection.close()
        wait_for(front, {"clients": 0, 'clients_ended_total{cause="client"}': 1})


@posix
def test_each_end_is_counted_by_its_cause(fake_node: FakeNode, tmp_path: Path) -> None:
    more = (*METRICS, "--ping-interval", "0.2", "--ping-timeout", "0.2")
    with front_of(tmp_path, fake_node.port, more=more) as front:
        for cause in ("node", "node_stream", "node_reset", "text_message", "unanswered"):
            with WsClient(front.address) as client:
                connection = fake_node.accept()
                if cause == "node_stream":
                    connection.sendall(HELLO[:3])
                if cause == "node_reset":
                    reset(connection)
                elif cause == "text_message":
                    client.send("text")
                elif cause != "unanswered":
                    connection.close()
                if cause not in ("unanswered", "text_message"):
                    with pytest.raises(ClosedError):
                        client.receive()
                if cause in ("unanswered", "text_message"):
                    assert connection.recv(100) == b""
                    connection.close()
                wait_for(front, {f'clients_ended_total{{cause="{cause}"}}': 1, "clients": 0})
        told = front.read_metrics()
        ended = [told[f'{PREFIX}clients_ended_total{{cause="{cause}"}}'] for cause in ENDS]
        assert sum(ended) == told[f"{PREFIX}clients_served_total"] == 5


@posix
def test_clients_that_are_cut_off_are_counted_by_their_cause(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    more = (*METRICS, "--stall-timeout", "0.5")
    with front_of(tmp_path, fake_node.port, more=more) as front:
        with WsClient(front.address, buffer_bytes=32_768):
            connection = fake_node.accept()
            connection.sendall(make_packet(1, b"x" * 1_000) * 30_000)
            assert read_to_end(connection) == b""
            wait_for(front, {'clients_ended_total{cause="stalled"}': 1, "clients": 0})
        with WsClient(front.address, buffer_bytes=32_768) as client:
            for _ in range(1_000):
                client.protocol.send_ping(b"x" * 125)
            pings = b"".join(client.protocol.data_to_send())
            with pytest.raises(ConnectionError):
                for _ in range(500):
                    client.socket.sendall(pings)
            assert read_to_end(fake_node.accept()) == b""
            wait_for(front, {'clients_ended_total{cause="flooded"}': 1, "clients": 0})


@posix
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_who_completes_no_tls_handshake_is_counted(fake_node: FakeNode, tmp_path: Path) -> None:
    more = (*METRICS, "--certificate", str(self_signed(tmp_path)), "--handshake-timeout", "0.5")
    with front_of(tmp_path, fake_node.port, more=more) as front:
        with socket.create_connection(("127.0.0.1", front.port), timeout=20) as mute:
            assert mute.recv(1) == b""
        with socket.create_connection(("127.0.0.1", front.port), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            wait_for(front, {'refused_total{cause="tls"}': 2, "connections": 0})


@posix
def test_each_refusal_is_counted_by_its_cause(fake_node: FakeNode, tmp_path: Path) -> None:
    more = (*METRICS, "--connections-max", "1", "--handshake-timeout", "5")
    with (
        front_of(tmp_path, fake_node.port, more=more) as front,
        WsClient(front.address),
        fake_node.accept(),
    ):
        for address, origin in (
            (front.address, None),
            (front.address, "https://elsewhere.example"),
            (f"{front.address}elsewhere", None),
        ):
            with pytest.raises(RefusedError):
                WsClient(address, origin=origin)
        with socket.create_connection(("127.0.0.1", front.port), timeout=20) as nothing:
            wait_for(front, {"connections": 2})
            reset(nothing)
        expected: dict[str, float] = {"clients": 1, "connections": 1}
        for cause in REFUSALS:
            count = cause in ("full", "origin", "request", "handshake")
            expected[f'refused_total{{cause="{cause}"}}'] = count
        wait_for(front, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have numbers there")
def test_a_signal_that_another_thread_gets_ends_a_front_that_waits(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    # As one that comes just ahead of a wait, it does not end that by itself.
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None:
        pytest.skip("the C library cannot send a signal to a thread of another process")
    with front_of(tmp_path, fake_node.port, more=METRICS) as front:
        front.read_metrics()
        pid = front.process.pid
        others = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {pid}
        assert tgkill(pid, min(others), signal.SIGTERM) == 0
        assert front.process.wait(20) == 0


@posix
def test_who_finds_no_node_is_counted_and_so_are_the_nodes(tmp_path: Path) -> None:
    with free_ports(2) as ports, front_of(tmp_path, *ports, more=METRICS) as front:
        with pytest.raises(RefusedError):
            WsClient(front.address)
        expected: dict[str, float] = {'refused_total{cause="node"}': 1, "clients_served_total": 0}
        for port in ports:
            expected[f'node_unreachable_total{{node="127.0.0.1:{port}"}}'] = 1
        wait_for(front, expected)


def test_a_port_for_metrics_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        run = run_cluster("websocket", "--listen", "127.0.0.1:0", "--metrics", address)
    assert run.returncode == 2
    assert f"--metrics: cannot listen at {address}: " in run.stderr


def test_metrics_and_causes_of_a_front_are_told() -> None:
    told = (ROOT / "docs/configuration.md").read_text("utf-8").partition("## Metrics")[2]
    for family in FrontCollector(FrontCounters([NetAddress("127.0.0.1", 7777)])).collect():
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
        assert f"`{name}" in told
    assert [cause for cause in (*REFUSALS, *ENDS) if f"`{cause}`" not in told] == []
