"""What is full holds up those who fill it and nobody else; all flows again, nothing is lost."""

import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LANE_BYTES = 1 << 20
CONFIG = f"""
[gateway]
send_queue_bytes_max = 67108864
[workers]
count = 2
worker_timeout_s = 30.0
[lane]
bytes = {LANE_BYTES}
"""
ECHO, WAIT, PUSH, MUCH = 1, 2, 3, 4
APPLICATION = """
import os, struct, threading, time
from pathlib import Path
from cluster.worker import App, OutputTooLarge

app = App()
GO = Path(os.environ["GO"])

@app.on_packet(1)
def echo(session, payload):
    session.send(1, payload)

@app.on_packet(2)
def wait(session, payload):
    deadline = time.monotonic() + 25
    while not GO.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    session.send(2, payload)

@app.on_packet(3)
def push(session, payload):
    # From a thread, so that output goes on while no packet comes in.
    count, = struct.unpack("<I", payload)
    def run():
        for number in range(count):
            body = struct.pack("<I", number) + bytes(5_000)
            while True:
                try:
                    app.post(lambda body=body: session.send(3, body))
                    break
                except RuntimeError:
                    time.sleep(0.01)
            time.sleep(0.0005)
    threading.Thread(target=run, daemon=True).start()

@app.on_packet(4)
def much(session, payload):
    sent = 0
    try:
        while True:
            session.send(4, bytes(60_000))
            sent += 1
    except OutputTooLarge as error:
        if payload == b"let it escape":
            raise
    session.send(5, struct.pack("<I", sent))
"""


@pytest.fixture
def start(cluster_up: StartNode, lane: str, tmp_path: Path):
    """Start the node of these tests; it goes on with slow handlers once the file `go` is there."""
    (tmp_path / "the_app.py").write_text(APPLICATION)
    config = tmp_path / "cluster.toml"
    config.write_text(CONFIG)
    flags = ("--lane", lane, "--config", str(config), "--app", "the_app:app")
    return cluster_up(*flags, cwd=tmp_path, env={"GO": str(tmp_path / "go")})


def test_a_slow_worker_holds_up_its_own_clients_only_and_loses_nothing(start, tmp_path: Path):
    with PacketClient(start.port) as held, PacketClient(start.port) as other:
        # Two clients, two shards: routing is by fewest sessions.
        assert held.ask(ECHO, b"x") == (ECHO, b"x")
        assert other.ask(ECHO, b"x") == (ECHO, b"x")
        held.send(WAIT, b"slow")
        packets = _send_until_held(held, start)
        status = start.status()
        assert status["counters"]["sessions_held"] == 1
        # A lane, and what one recv may bring on top of it.
        assert LANE_BYTES <= status["counters"]["uncommitted_bytes"] <= LANE_BYTES + 131_072
        assert status["counters"]["lane_full"] >= 1
        for number in range(50):
            assert other.ask(ECHO, b"%d" % number) == (ECHO, b"%d" % number)
        status = start.status()
        assert status["counters"]["sessions_held"] == 1
        assert [worker["state"] for worker in status["workers"]] == ["ready"] * 2

        (tmp_path / "go").touch()
        assert held.receive() == (WAIT, b"slow")
        for number in range(packets):
            assert held.receive() == (ECHO, b"%d" % number + bytes(1_000))
        assert held.ask(ECHO, b"last") == (ECHO, b"last")
    status = start.wait_status(
        lambda status: status["counters"]["uncommitted_bytes"] == 0, "all to be committed"
    )
    assert status["counters"]["sessions_held"] == 0
    assert start.drain() == 0


def _send_until_held(client: PacketClient, node: ClusterNode) -> int:
    """Send echoes without reading; return how many went, once the server reads no more."""
    count = 0
    client.socket.settimeout(1.0)
    packet = data = b""
    is_held = False
    while not is_held:
        if not data:
            packet = data = make_packet(ECHO, b"%d" % count + bytes(1_000))
        try:
            data = data[client.socket.send(data) :]
        except TimeoutError:  # or it was only too slow to read
            is_held = node.counters().get("sessions_held") == 1
        else:
            count += not data
            assert count < 200_000, "the server reads all there is"
    client.socket.settimeout(20.0)
    if len(data) < len(packet):
        # The rest of a packet that went in part, as soon as it goes.
        rest = data
        client._exactly = _after_rest(client, rest)  # type: ignore[method-assign]
        count += 1
    return count


def _after_rest(client: PacketClient, rest: bytes):
    """Return a way to receive that sends `rest` on the way, which reading makes room for."""
    exactly, waiting = PacketClient._exactly, [rest]

    def receive(count: int) -> bytes:
        while waiting[0]:
            try:
                client.socket.setblocking(False)
                waiting[0] = waiting[0][client.socket.send(waiting[0]) :]
            except BlockingIOError:
                break
            finally:
                client.socket.settimeout(20.0)
        return exactly(client, count)

    return receive


def test_a_gateway_that_stands_still_makes_its_workers_wait_alive(start):
    count = 2_000  # of 5,000 bytes: ten times what the lane holds
    gateway = start.status()["gateway"]["pid"]
    with PacketClient(start.port) as client:
        client.send(PUSH, struct.pack("<I", count))
        assert client.receive()[1][:4] == struct.pack("<I", 0)
        os.kill(gateway, signal.SIGSTOP)
        time.sleep(1.0)  # in which the worker pushes on; nothing rests on how far it gets
        os.kill(gateway, signal.SIGCONT)
        for number in range(1, count):
            packet_id, payload = client.receive()
            assert (packet_id, payload[:4]) == (PUSH, struct.pack("<I", number))
    status = start.status()
    assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
    assert status["gateway"]["pid"] == gateway
    assert start.drain() == 0


def test_both_directions_full_at_once_do_not_deadlock(start):
    """Clients that send without reading, and read later, on lanes that hold 1 MiB each way."""
    clients = [PacketClient(start.port) for _ in range(6)]
    total = 600
    sent = [0] * len(clients)
    received = [0] * len(clients)
    for client in clients:
        client.socket.setblocking(False)
    buffers = [bytearray() for _ in clients]
    inputs = [bytearray() for _ in clients]
    deadline = time.monotonic() + 40
    while any(count < total for count in received):
        assert time.monotonic() < deadline, (sent, received, start.stderr)
        moved = False
        for index, client in enumerate(clients):
            while sent[index] < total and len(buffers[index]) < 1 << 18:
                buffers[index] += make_packet(ECHO, struct.pack("<I", sent[index]) + bytes(8_000))
                sent[index] += 1
            try:
                while buffers[index]:
                    del buffers[index][: client.socket.send(buffers[index])]
                    moved = True
            except BlockingIOError:
                pass
            # Every other client reads only when nothing else moves.
            if index % 2 and moved:
                continue
            try:
                data = client.socket.recv(1 << 16)
                assert data
                inputs[index] += data
                moved = True
            except BlockingIOError:
                pass
            while len(inputs[index]) >= 8_008:
                assert inputs[index][4:8] == struct.pack("<I", received[index])
                del inputs[index][:8_008]
                received[index] += 1
        if not moved:
            time.sleep(0.001)
    for client in clients:
        client.socket.close()
    assert start.drain() == 0


@pytest.mark.parametrize("payload", [b"catch it", b"let it escape"])
def test_a_handler_whose_output_exceeds_any_ring_is_told(start, payload: bytes):
    with PacketClient(start.port) as neighbour, PacketClient(start.port) as client:
        assert client.ask(ECHO, b"before") == (ECHO, b"before")
        client.send(MUCH, payload)
        if payload == b"catch it":
            count = 0
            while (packet := client.receive())[0] == MUCH:
                count += 1
            assert packet == (5, struct.pack("<I", count))
            # Far more than the lane holds, in one commit.
            assert count * 60_000 > 10 * LANE_BYTES
            assert client.ask(ECHO, b"after") == (ECHO, b"after")
        else:
            client.receive_end()
            assert "OutputTooLarge" in start.stderr
        assert neighbour.ask(ECHO, b"alive") == (ECHO, b"alive")
    assert [worker["restarts"] for worker in start.status()["workers"]] == [0, 0]
    assert start.drain() == 0


@pytest.mark.long
def test_everything_killed_at_once_leaves_nothing_that_hinders_the_next_start(
    cluster_up: StartNode, lane: str, tmp_path: Path
):
    run_dir = tmp_path / "node"
    for _ in range(3):
        node = cluster_up("--lane", lane, run_dir=run_dir)
        with PacketClient(node.port) as client:
            assert client.ask(1, b"x") == (1, b"x")
            for process in node.processes():
                process.kill()
            node.wait_exit()
        _wait_until_gone(node)


def _wait_until_gone(node: ClusterNode) -> None:
    wait_until(lambda: not node.processes(), what="the end of every process")
    # The kernel takes its time to end what was under way on a ring.
    wait_until(lambda: _is_refused(node.port), what="the port to be free")


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # the listener went while it had this connection in its queue
    return False
