"""Sessions beside the plainest client there is: a blocking socket in a thread of its own."""

import socket
import threading
from collections.abc import Callable

import pytest

from cluster.iocp import Cause, IocpCore, NetAddress, ServerService, make_packet
from cluster.iocp.socket_utils import set_linger_reset
from tests.contract.driver_harness import RESETS, recv_a_reset
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.world import EchoSession, RecordingPacketSession, World

TIMEOUT_S = 10


@pytest.fixture(params=SOCKET_DRIVERS)
def world(request: pytest.FixtureRequest):
    """A world on each of the drivers that use the system's sockets."""
    core = IocpCore(driver=open_driver(request.param))
    yield World(core)
    core.close()


class EchoPackets(RecordingPacketSession):
    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        super().on_recv_packet(packet)
        self.send(packet)


class Client:
    """Runs `talk` with a connected socket in a thread."""

    def __init__(self, address: NetAddress, talk: Callable[[socket.socket], None]) -> None:
        self.error: BaseException | None = None
        self._address = (address.host, address.port)
        self._talk = talk
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with socket.create_connection(self._address, timeout=TIMEOUT_S) as sock:
                self._talk(sock)
        except BaseException as error:
            self.error = error


def serve(world: World, service: ServerService, talk: Callable[[socket.socket], None]) -> None:
    """Dispatch until `talk` has had its say and its session has ended."""
    client = Client(service.listener.local_address, talk)
    world.run_until(lambda: client.is_done)
    if client.error is not None:
        raise client.error
    world.run_until(lambda: service.current_session_count == 0)


def receive(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (data := sock.recv(size - len(received))):
        received += data
    return received


def test_packets_of_every_size_come_back(world: World):
    def talk(sock: socket.socket) -> None:
        for payload_bytes in (0, 1, 1_000, 65_531):
            packet = make_packet(1, bytes(payload_bytes))
            sock.sendall(packet)
            assert receive(sock, len(packet)) == packet

    serve(world, world.server(EchoPackets), talk)


def test_replies_to_what_came_before_the_end_still_arrive(world: World):
    packets = b"".join(make_packet(n, bytes(500)) for n in range(200))

    def talk(sock: socket.socket) -> None:
        sock.sendall(packets)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, len(packets) + 1) == packets

    serve(world, world.server(EchoPackets), talk)
    (session,) = [s for s in world.sessions if s.calls]
    assert session.disconnected_with == Cause.EOF


def test_a_reset_in_mid_packet_ends_that_session_only(world: World):
    def talk(sock: socket.socket) -> None:
        sock.sendall(make_packet(1, b"whole") + make_packet(2, b"half")[:5])
        assert receive(sock, 9) == make_packet(1, b"whole")
        set_linger_reset(sock)

    service = world.server(EchoPackets)
    serve(world, service, talk)
    (session,) = [s for s in world.sessions if s.calls]
    assert session.disconnected_with in RESETS
    assert session.packets == [make_packet(1, b"whole")]


def test_an_abort_is_a_reset_to_the_client(world: World):
    def talk(sock: socket.socket) -> None:
        sock.sendall(b"\0\0")
        recv_a_reset(sock)

    serve(world, world.server(EchoPackets), talk)


def test_a_disconnect_is_an_orderly_end_even_with_unread_bytes(world: World):
    class SaysGoodbye(EchoSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            self.send(b"goodbye")
            self.disconnect()
            return len(data)

    def talk(sock: socket.socket) -> None:
        sock.sendall(bytes(300_000))
        assert receive(sock, 100) == b"goodbye"

    serve(world, world.server(SaysGoodbye), talk)


def test_a_client_that_reads_slowly_gets_everything(world: World):
    def talk(sock: socket.socket) -> None:
        sender = threading.Thread(target=sock.sendall, args=(stream,))
        sender.start()
        received = b""
        while len(received) < len(stream):
            received += sock.recv(7_001)
        sender.join()
        assert received == stream

    stream = bytes(n * 31 % 251 for n in range(2_000_000))
    serve(world, world.server(EchoSession, send_queue_bytes_max=4_000_000), talk)


def test_many_clients_at_once_are_all_served(world: World):
    service = world.server(EchoPackets, max_session_count=10)

    def talk(sock: socket.socket) -> None:
        for n in range(20):
            packet = make_packet(n, b"x" * n)
            sock.sendall(packet)
            assert receive(sock, len(packet)) == packet

    clients = [Client(service.listener.local_address, talk) for _ in range(15)]
    world.run_until(lambda: all(client.is_done for client in clients))
    assert [client.error for client in clients] == [None] * 15
    world.run_until(lambda: service.current_session_count == 0)
