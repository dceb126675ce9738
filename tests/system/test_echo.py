"""Packets through a whole node: every size, every way of sending, every kind of reader."""

import random
import socket
import sys
import threading
from pathlib import Path

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

PAYLOAD_BYTES_MAX = 65_531
EDGES = (0, 1, 3, 4, 59, 60, 61, 255, 256, 4_095, 16_384, 65_530, PAYLOAD_BYTES_MAX)

BROADCASTER = """
from cluster.worker import App

app = App()

@app.on_connected
def hello(session):
    session.send(1, b"hello")

@app.on_packet(2)
def say(session, text):
    app.broadcast(2, text)
    session.send(3, b"said")

@app.on_packet(4)
def leave(session, text):
    session.send(5, b"x" * 60_000)
    session.send(6, b"bye")
    session.disconnect("left")

@app.on_packet(7)
def fail(session, text):
    session.send(8, b"never seen")
    raise RuntimeError("on purpose")

@app.on_disconnected
def gone(session, cause):
    app.broadcast(9, cause.encode())
"""


def _payload(length: int, seed: int = 0) -> bytes:
    return random.Random(f"{length}/{seed}").randbytes(length)


def test_packets_of_every_size_come_back(cluster_up: StartNode) -> None:
    node = cluster_up()
    sizes = random.Random(1).choices(range(PAYLOAD_BYTES_MAX + 1), k=20)
    with PacketClient(node.port) as client:
        for packet_id, size in enumerate((*EDGES, *sizes)):
            assert client.ask(packet_id, _payload(size)) == (packet_id, _payload(size))


def test_a_packet_that_comes_one_byte_at_a_time_comes_back(cluster_up: StartNode) -> None:
    node = cluster_up()
    with PacketClient(node.port) as client:
        for size in (0, 1, 60, 3_000):
            for byte in make_packet(7, _payload(size)):
                client.socket.send(bytes((byte,)))
            assert client.receive() == (7, _payload(size))


def test_many_packets_in_one_write_come_back_in_order(cluster_up: StartNode) -> None:
    node = cluster_up()
    packets = [(index % 65_536, _payload(index % 700, index)) for index in range(2_000)]
    stream = b"".join(make_packet(*packet) for packet in packets)
    with PacketClient(node.port) as client:
        writer = threading.Thread(target=client.socket.sendall, args=(stream,))
        writer.start()
        try:
            for packet in packets:
                assert client.receive() == packet
        finally:
            writer.join()


def test_a_client_that_reads_slowly_gets_everything(cluster_up: StartNode) -> None:
    node = cluster_up("--workers", "1")
    count = 400  # 24 MB: more than the buffers of both kernels' ends can hold
    stream = b"".join(make_packet(3, _payload(60_000, index)) for index in range(count))
    with PacketClient(node.port) as client, PacketClient(node.port) as other:
        writer = threading.Thread(target=client.socket.sendall, args=(stream,))
        writer.start()
        try:
            # Far more is on its way than any queue holds: the gateway has stopped to read it.
            node.wait_status(
                lambda status: status["counters"].get("slow_reader_paused", 0) > 0,
                "a slow reader is not read",
            )
            assert other.ask(1, b"meanwhile") == (1, b"meanwhile")
            for index in range(count):
                assert client.receive() == (3, _payload(60_000, index))
        finally:
            writer.join()


def test_replies_reach_a_client_that_has_ended_its_side(cluster_up: StartNode) -> None:
    node = cluster_up()
    with PacketClient(node.port) as client:
        for index in range(200):
            client.send(index, _payload(2_000, index))
        client.socket.shutdown(socket.SHUT_WR)
        for index in range(200):
            assert client.receive() == (index, _payload(2_000, index))
        assert client.socket.recv(1) == b""


def test_two_hundred_clients_are_shared_out_and_served(cluster_up: StartNode) -> None:
    node = cluster_up("--workers", "2")
    clients = [PacketClient(node.port) for _ in range(200)]
    try:
        for index, client in enumerate(clients):
            client.send(index, _payload(100, index))
        for index, client in enumerate(clients):
            assert client.receive() == (index, _payload(100, index))
        status = node.status()
        assert status["gateway"]["sessions"] == 200
    finally:
        for client in clients:
            client.socket.close()
    node.wait_status(lambda status: status["gateway"]["sessions"] == 0, "all sessions are closed")


def _with_broadcaster(cluster_up: StartNode, directory: Path) -> int:
    (directory / "broadcaster.py").write_text(BROADCASTER)
    return cluster_up("--workers", "2", "--app", "broadcaster:app", cwd=directory).port


def test_a_broadcast_reaches_the_sessions_of_every_shard_once(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    port = _with_broadcaster(cluster_up, tmp_path)
    clients = [PacketClient(port) for _ in range(10)]
    for client in clients:
        assert client.receive() == (1, b"hello")
    clients[0].send(2, b"to all")
    assert clients[0].receive() == (2, b"to all")
    assert clients[0].receive() == (3, b"said")
    for client in clients[1:]:
        assert client.receive() == (2, b"to all")
    for client in clients:
        client.socket.close()


def test_a_session_that_the_application_ends_gets_all_that_was_sent_before(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    port = _with_broadcaster(cluster_up, tmp_path)
    with PacketClient(port) as client, PacketClient(port) as witness:
        assert client.receive() == witness.receive() == (1, b"hello")
        client.send(4, b"")
        assert client.receive() == (5, b"x" * 60_000)
        assert client.receive() == (6, b"bye")
        assert client.socket.recv(1) == b""
        client.socket.close()
        assert witness.receive() == (9, b"left")


def test_a_handler_that_raises_ends_its_session_and_no_other(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    port = _with_broadcaster(cluster_up, tmp_path)
    with PacketClient(port) as client, PacketClient(port) as witness:
        assert client.receive() == witness.receive() == (1, b"hello")
        client.send(7, b"")
        assert client.socket.recv(1) == b""  # what the call had sent is not sent
        client.socket.close()
        assert witness.receive() == (9, b"handler_error")
        witness.send(2, b"still here")
        assert witness.receive() == (2, b"still here")
