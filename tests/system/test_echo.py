"""Packets through a whole node: every size, every way of sending, every kind of reader.

Then what applications do with their sessions, by `tests/applications/playground.py`.
"""

import contextlib
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.applications import playground
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

PAYLOAD_BYTES_MAX = 65_531
EDGES = (0, 1, 3, 4, 59, 60, 61, 255, 256, 4_095, 16_384, 65_530, PAYLOAD_BYTES_MAX)
APPLICATIONS = Path(playground.__file__).parent


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, socket_driver: str) -> Iterator[ClusterNode]:
    """A node without an application, on each driver."""
    arguments = ["--workers", "2", "--driver", socket_driver]
    node = ClusterNode(tmp_path_factory.mktemp("echo"), arguments)
    try:
        yield node.wait_ready()
    finally:
        node.close()


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory, socket_driver: str) -> Iterator[ClusterNode]:
    """A node with the playground application, on each driver."""
    arguments = ["--workers", "2", "--app", "playground:app", "--driver", socket_driver]
    node = ClusterNode(tmp_path_factory.mktemp("play"), arguments, cwd=APPLICATIONS)
    try:
        yield node.wait_ready()
    finally:
        node.close()


def _payload(length: int, seed: int = 0) -> bytes:
    return random.Random(f"{length}/{seed}").randbytes(length)


@contextlib.contextmanager
def _sending(client: PacketClient, stream: bytes) -> Iterator[None]:
    """Send `stream` in another thread."""
    writer = threading.Thread(target=client.socket.sendall, args=(stream,))
    writer.start()
    try:
        yield
    finally:
        writer.join()


# -- echo ------------------------------------------------------------------------------------------


def test_the_driver_that_was_asked_for_is_told(echo: ClusterNode, socket_driver: str) -> None:
    assert echo.ready["driver"] == socket_driver
    assert echo.status_command()["gateway"]["driver"] == socket_driver


def test_packets_of_every_size_come_back(echo: ClusterNode) -> None:
    sizes = random.Random(1).choices(range(PAYLOAD_BYTES_MAX + 1), k=20)
    with PacketClient(echo.port) as client:
        for packet_id, size in enumerate((*EDGES, *sizes)):
            assert client.ask(packet_id, _payload(size)) == (packet_id, _payload(size))


def test_a_packet_that_comes_one_byte_at_a_time_comes_back(echo: ClusterNode) -> None:
    with PacketClient(echo.port) as client:
        for size in (0, 1, 60, 1_000):
            for byte in make_packet(7, _payload(size)):
                client.socket.send(bytes((byte,)))
            assert client.receive() == (7, _payload(size))


def test_packets_come_back_however_the_stream_is_cut(echo: ClusterNode) -> None:
    source = random.Random(5)
    packets = [(source.randrange(65_536), _payload(source.randrange(2_000))) for _ in range(150)]
    stream = b"".join(make_packet(*packet) for packet in packets)
    with PacketClient(echo.port) as client:
        while stream:
            piece = source.choice([1, 2, 3, 5, 100, 1_460, 20_000])
            client.socket.sendall(stream[:piece])
            stream = stream[piece:]
        for packet in packets:
            assert client.receive() == packet


def test_many_packets_in_one_write_come_back_in_order(echo: ClusterNode) -> None:
    packets = [(index % 65_536, _payload(index % 700, index)) for index in range(2_000)]
    with (
        PacketClient(echo.port) as client,
        _sending(client, b"".join(make_packet(*packet) for packet in packets)),
    ):
        for packet in packets:
            assert client.receive() == packet


def test_a_client_that_reads_slowly_gets_everything(echo: ClusterNode) -> None:
    count = 200  # 12 MB: more than the queues of a node and the buffers of both sockets hold
    stream = b"".join(make_packet(3, _payload(60_000, index)) for index in range(count))
    with PacketClient(echo.port) as client, PacketClient(echo.port) as other:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        with _sending(client, stream):
            # Far more is on its way than any queue holds: the gateway has stopped to read it.
            echo.wait_status(
                lambda status: status["counters"].get("slow_reader_paused", 0) > 0,
                "a slow reader is not read",
            )
            assert other.ask(1, b"meanwhile") == (1, b"meanwhile")
            for index in range(count):
                assert client.receive() == (3, _payload(60_000, index))


def test_replies_reach_a_client_that_has_ended_its_side(echo: ClusterNode) -> None:
    with PacketClient(echo.port) as client:
        for index in range(200):
            client.send(index, _payload(2_000, index))
        client.socket.shutdown(socket.SHUT_WR)
        for index in range(200):
            assert client.receive() == (index, _payload(2_000, index))
        assert client.socket.recv(1) == b""


def test_a_client_over_ipv6_is_served(cluster_up: StartNode) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    application = ("--workers", "1", "--app", "playground:app")
    node = cluster_up(*application, listen="[::1]:0", cwd=APPLICATIONS)
    with PacketClient(node.port, host="::1") as client:
        packet_id, greeting = client.receive()
        assert packet_id == playground.GREETING
        port = client.socket.getsockname()[1]
        assert greeting.decode().endswith(f" [::1]:{port}")
        assert client.ask(1, _payload(60_000)) == (1, _payload(60_000))
    assert node.drain() == 0


def test_two_hundred_clients_are_shared_out_and_served(play: ClusterNode) -> None:
    play.wait_status(lambda status: status["gateway"]["sessions"] == 0, "an empty node")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(PacketClient(play.port)) for _ in range(200)]
        for index, client in enumerate(clients):
            client.send(playground.ECHO, _payload(100, index))
            client.send(playground.WHO, b"")
        served: dict[int, int] = {}
        for index, client in enumerate(clients):
            assert client.receive()[0] == playground.GREETING
            assert client.receive() == (playground.ECHO, _payload(100, index))
            worker = int(client.receive()[1])
            served[worker] = served.get(worker, 0) + 1
        status = play.status()
        assert status["gateway"]["sessions"] == 200
        assert served == {worker["pid"]: 100 for worker in status["workers"]}
    play.wait_status(lambda status: status["gateway"]["sessions"] == 0, "all sessions are closed")


# -- applications ----------------------------------------------------------------------------------


@pytest.fixture
def guests(play: ClusterNode) -> Iterator[list[PacketClient]]:
    """Four clients, two of each shard, that have been greeted."""
    play.wait_status(lambda status: status["gateway"]["sessions"] == 0, "an empty node")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(PacketClient(play.port)) for _ in range(4)]
        for client in clients:
            assert client.receive()[0] == playground.GREETING
        yield clients


def test_a_greeting_names_the_session_and_its_address(guests: list[PacketClient]) -> None:
    with PacketClient(guests[0].socket.getpeername()[1]) as client:
        packet_id, greeting = client.receive()
        session_id, _, address = greeting.decode().partition(" ")
        assert packet_id == playground.GREETING
        assert int(session_id, 16) >> 48 == 1  # the node
        assert address == f"127.0.0.1:{client.socket.getsockname()[1]}"


def test_a_broadcast_reaches_the_sessions_of_every_shard_once(guests: list[PacketClient]) -> None:
    workers = {client.ask(playground.WHO, b"") for client in guests}
    assert len(workers) == 2
    for number, sender in enumerate(guests):
        sender.send(playground.TO_ALL, b"%d" % number)
        for client in guests:
            assert client.receive() == (playground.TO_ALL, b"%d" % number)
    for client in guests:
        assert client.ask(playground.ECHO, b"last") == (playground.ECHO, b"last")


def test_a_session_that_the_application_ends_gets_all_that_was_sent_before(
    play: ClusterNode, guests: list[PacketClient]
) -> None:
    witness, client = guests[:2]
    assert client.ask(playground.ANNOUNCE, b"") == (playground.ANNOUNCE, b"")
    client.send(playground.LEAVE, b"the game is over")
    for number in range(100):
        assert client.receive() == (playground.LEAVE, b"%d" % number * 1_000)
    assert client.socket.recv(1) == b""
    client.socket.close()
    packet_id, farewell = witness.receive()
    assert packet_id == playground.FAREWELL
    assert farewell.endswith(b" the game is over")


def test_the_end_of_a_client_is_told_with_its_cause(guests: list[PacketClient]) -> None:
    witness, client = guests[:2]
    assert client.ask(playground.ANNOUNCE, b"") == (playground.ANNOUNCE, b"")
    client.socket.close()
    assert witness.receive()[1].endswith(b" eof")


def test_a_handler_that_raises_ends_its_session_and_no_other(
    play: ClusterNode, guests: list[PacketClient]
) -> None:
    witness, client = guests[:2]
    workers = play.worker_pids()
    assert client.ask(playground.ANNOUNCE, b"") == (playground.ANNOUNCE, b"")
    before = play.counters().get("closed_handler_error", 0)
    client.send(playground.RAISE, b"")
    client.send(playground.ECHO, b"behind it")
    assert client.socket.recv(1) == b""  # what the call had sent is not sent
    client.socket.close()
    packet_id, farewell = witness.receive()
    assert packet_id == playground.FAREWELL
    assert farewell.endswith(b" handler_error")
    assert witness.ask(playground.ECHO, b"on") == (playground.ECHO, b"on")
    assert play.worker_pids() == workers
    assert play.counters()["closed_handler_error"] == before + 1
    session = farewell.decode().partition(" ")[0]
    (line,) = [line for line in play.stderr.splitlines() if f"session {session} " in line]
    assert f"packet id {playground.RAISE} raised" in line
    assert "ValueError: the application is broken here" in play.stderr
    assert 'in fail\n        raise ValueError("the application' in play.stderr


def test_what_another_thread_posts_runs_on_the_loop(guests: list[PacketClient]) -> None:
    for number in range(20):
        for client in guests:
            client.send(playground.POST, b"%d" % number)
        for client in guests:
            assert client.receive() == (playground.POST, b"%d" % number)
