"""What goes through a front: packets both ways, whole to the client, and how either side ends."""

import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.iocp import make_packet
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.websocket.front import FakeNode, front_of, read_to_end, reset
from tests.websocket.ws_client import ClosedError, WsClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LARGEST = bytes(range(256)) * 255 + bytes(251)  # with its header 65,535 bytes

_MORE_THAN_SOCKETS_HOLD = 100_000_000
"""Bytes. A front holds some 400 KB itself, but the system lets the buffers of its sockets grow to
tens of megabytes (`net.ipv4.tcp_rmem`), all the more on a machine that is busy."""


def test_packets_come_back_whole_however_they_are_cut(
    echo_node: ClusterNode, tmp_path: Path
) -> None:
    payloads = [b"", b"a", b"x" * 1_000, LARGEST, b"end"]
    stream = b"".join(make_packet(number, payload) for number, payload in enumerate(payloads))
    with front_of(tmp_path, echo_node.port) as front, WsClient(front.address) as client:
        for pieces in ([len(stream)], [1] * 10 + [30_000] * 3, [3, 65_536]):
            at = 0
            for piece in [*pieces, len(stream)]:
                client.send(stream[at : at + piece])
                at += piece
            assert [client.receive() for _ in payloads] == list(enumerate(payloads))
        assert client.close().code == 1000


def test_packets_are_put_together_from_whatever_the_node_sends(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    first, second = make_packet(1, b"one"), make_packet(2, LARGEST)
    with front_of(tmp_path, fake_node.port) as front, WsClient(front.address) as client:
        node = fake_node.accept()
        node.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in first:
            node.sendall(bytes([byte]))
        assert client.receive_message() == first
        node.sendall(first + second[:1])
        assert client.receive_message() == first
        node.sendall(second[1:40_000])
        node.sendall(second[40_000:] + first * 3)
        assert [client.receive() for _ in range(4)] == [(2, LARGEST), *[(1, b"one")] * 3]
        node.close()


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (b"", (1000, "")),
        (b"\x05\0\x01", (1011, "the node ended within a packet")),
        (b"\x03\0\x01\0more", (1011, "the node sent what is no packet")),
    ],
)
def test_the_end_of_the_node_is_told_behind_what_it_sent(
    fake_node: FakeNode, tmp_path: Path, ending: bytes, expected: tuple[int, str]
) -> None:
    packets = make_packet(7, b"last words") * 40_000  # more than all buffers take at once
    with front_of(tmp_path, fake_node.port) as front, WsClient(front.address) as client:
        node = fake_node.accept()

        def send_and_end() -> None:
            node.sendall(packets + ending)
            node.close()

        sending = threading.Thread(target=send_and_end)
        sending.start()
        received = [client.receive() for _ in range(40_000)]
        assert received == [(7, b"last words")] * 40_000
        with pytest.raises(ClosedError) as closed:
            client.receive()
        assert (closed.value.code, closed.value.reason) == expected
        sending.join()
        if ending.startswith(b"\x03"):
            front.wait_for_line(f"the node 127.0.0.1:{fake_node.port} sent a size of 3, which no")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system what is on its way")
def test_what_came_ahead_of_a_reset_reaches_a_slow_client_that_still_sends(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    packets = make_packet(7, b"x" * 996) * 100
    with (
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address, buffer_bytes=32_768) as client,
    ):
        node = fake_node.accept()
        node.settimeout(1)
        sent = received = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += node.send(packets[sent % len(packets) :])
        arrived = sent - _on_its_way(node)
        node.close()
        for _ in range(3):  # the first of which is answered by a reset
            client.send_packet(1, b"hello")
        with pytest.raises(ClosedError) as closed:
            while True:
                assert client.receive() == (7, b"x" * 996)
                received += 1_000
        assert received >= arrived - 1_000
        assert closed.value.code == 1011


def _on_its_way(connection: socket.socket) -> int:
    """Return how many bytes the system has that the other side has not taken over."""
    import fcntl  # neither is on every system
    import termios

    count: int
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return count


@pytest.mark.parametrize("is_sending", [False, True])
def test_a_reset_by_the_node_is_told(fake_node: FakeNode, tmp_path: Path, is_sending: bool) -> None:
    with front_of(tmp_path, fake_node.port) as front, WsClient(front.address) as client:
        node = fake_node.accept()
        if is_sending:
            client.send(bytes(200_000))
            assert node.recv(1)
        reset(node)
        closed = client.receive_close()
        assert (closed.code, closed.reason) == (1011, "the node has reset the connection")


@pytest.mark.parametrize("how", ["close", "reset", "shutdown", "text", "too_big", "garbage"])
def test_what_a_client_sent_ahead_of_its_end_reaches_the_node(
    fake_node: FakeNode, tmp_path: Path, how: str
) -> None:
    packets = make_packet(3, b"x" * 996) * 200
    more = ("--message-bytes-max", "200000")
    with front_of(tmp_path, fake_node.port, more=more) as front, WsClient(front.address) as client:
        node = fake_node.accept()
        client.send(packets)
        node.sendall(make_packet(1, b"seen"))
        client.receive()  # and all that it sent has been read by then, as nothing waits before it
        received = b""
        while len(received) < len(packets):
            received += node.recv(1_000_000)
        match how:
            case "close":
                client.send(packets)
                assert client.close(1001).code == 1001
            case "reset":
                client.reset()
            case "shutdown":
                client.send(packets)
                client.socket.shutdown(socket.SHUT_WR)
                assert client.receive_close().code == 1006
            case "text":
                client.send(packets)
                client.send("hello")
                closed = client.receive_close()
                assert (closed.code, closed.reason) == (
                    1003,
                    "packets come in binary messages",
                )
            case "too_big":
                client.send(packets)
                client.send(packets + b"x")
                assert client.receive_close().code == 1009
            case "garbage":
                client.send(packets)
                client.socket.sendall(b"\xff" * 100)
                assert client.receive_close().code == 1002
        assert received + read_to_end(node) == packets * (1 if how == "reset" else 2)


def test_a_client_that_closes_and_stays_is_ended(fake_node: FakeNode, tmp_path: Path) -> None:
    packet = make_packet(1, b"last words")
    more = ("--ping-interval", "0")
    with front_of(tmp_path, fake_node.port, more=more) as front, WsClient(front.address) as client:
        client.send(packet)
        client.protocol.send_close(1000)
        client.socket.sendall(b"".join(client.protocol.data_to_send()))
        assert read_to_end(fake_node.accept()) == packet


def test_a_client_that_goes_leaves_the_node_time_to_take_what_it_sent(tmp_path: Path) -> None:
    with FakeNode(4_096) as fake_node, front_of(tmp_path, fake_node.port) as front:
        packets = make_packet(3, b"x" * 996) * 100
        with WsClient(front.address) as client:
            node = fake_node.accept()
            before = front.descriptors
            client.send(packets)
            assert client.close().code == 1000
        wait_until(lambda: front.descriptors < before, what="the client's end")
        # Nothing was read yet. What is still sent to the client is in nobody's way.
        node.sendall(make_packet(1, b"too late") * 10)
        assert read_to_end(node) == packets
        wait_until(lambda: front.descriptors == before - 2, what="the end of the connection")


def test_a_client_that_does_not_read_makes_the_node_wait(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    packets = [make_packet(number % 65_536, b"x" * 996) for number in range(100)]
    with (
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address, buffer_bytes=32_768) as client,
    ):
        node = fake_node.accept()
        node.settimeout(1)
        sent = bytearray()
        stream = b"".join(packets)
        with pytest.raises(TimeoutError):
            while len(sent) < _MORE_THAN_SOCKETS_HOLD:
                sent += stream[: node.send(stream[len(sent) % len(stream) :])]
        node.settimeout(20)
        rest = -len(sent) % len(stream)
        sending = threading.Thread(target=node.sendall, args=(stream[len(stream) - rest :],))
        sending.start()
        for number in range((len(sent) + rest) // 1_000):
            assert client.receive() == (number % 100, b"x" * 996)
        sending.join()
        node.close()


def test_a_node_that_does_not_read_makes_the_client_wait(tmp_path: Path) -> None:
    message = b"".join(make_packet(number, b"x" * 996) for number in range(100))
    with (
        FakeNode(32_768) as fake_node,
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address, buffer_bytes=32_768) as client,
    ):
        node = fake_node.accept()
        client.socket.settimeout(1)
        count = 0
        client.protocol.send_binary(message)
        waiting = b"".join(client.protocol.data_to_send())
        with pytest.raises(TimeoutError):
            while count * len(message) < _MORE_THAN_SOCKETS_HOLD:
                waiting = waiting[client.socket.send(waiting) :]
                if not waiting:
                    count += 1
                    client.protocol.send_binary(message)
                    waiting = b"".join(client.protocol.data_to_send())
        node.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)  # not in small pieces
        client.socket.settimeout(20)
        sending = threading.Thread(target=client.socket.sendall, args=(waiting,))
        sending.start()
        received = bytearray()
        while len(received) < len(message) * (count + 1):
            received += node.recv(1_000_000)
        sending.join()
        assert client.close().code == 1000
        assert received + read_to_end(node) == message * (count + 1)


def test_a_client_that_ends_its_side_first_still_gets_what_waited_for_it(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    with (
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address, buffer_bytes=32_768) as client,
    ):
        node = fake_node.accept()
        node.settimeout(1)
        with pytest.raises(TimeoutError):  # more than there is room for
            node.sendall(make_packet(1, b"x" * 1_000) * 50_000)
        before = front.descriptors
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(100_000):
            pass
        node.settimeout(20)
        assert read_to_end(node) == b""
        wait_until(lambda: front.descriptors == before - 2, what="no descriptor of the two")
        assert "ended by an error" not in front.stderr


def test_a_client_that_takes_nothing_is_ended(fake_node: FakeNode, tmp_path: Path) -> None:
    more = ("--stall-timeout", "0.5")
    with (
        front_of(tmp_path, fake_node.port, more=more) as front,
        WsClient(front.address, buffer_bytes=32_768),
    ):
        node = fake_node.accept()
        node.sendall(make_packet(1, b"x" * 1_000) * 30_000)  # more than there is room for
        assert read_to_end(node) == b""
        front.wait_for_line(r"127\.0\.0\.1:\d+ is ended: it has taken nothing for 0.5 s")


def test_a_client_that_answers_no_ping_is_ended(fake_node: FakeNode, tmp_path: Path) -> None:
    more = ("--ping-interval", "0.2", "--ping-timeout", "0.5")
    with (
        front_of(tmp_path, fake_node.port, more=more) as front,
        WsClient(front.address) as mute,
    ):
        assert read_to_end(fake_node.accept()) == b""
        front.wait_for_line(f"{mute.address} is ended: it has not answered a ping for 0.5 s")


def test_a_client_that_answers_its_pings_is_sent_others_and_stays(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    # Another ping is sent when the last one is answered, and that has long.
    more = ("--ping-interval", "0.1", "--ping-timeout", "60")
    with (
        front_of(tmp_path, fake_node.port, more=more) as front,
        WsClient(front.address) as client,
    ):
        node = fake_node.accept()
        while client.pings < 5:
            client._receive()
        node.sendall(make_packet(1, b"still there"))
        assert client.receive() == (1, b"still there")
        node.close()
        assert client.receive_close().code == 1000
        assert "is ended" not in front.stderr


def test_a_client_that_takes_no_answers_to_its_pings_is_ended(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    with (
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address, buffer_bytes=32_768) as client,
    ):
        for _ in range(1_000):
            client.protocol.send_ping(b"x" * 125)
        pings = b"".join(client.protocol.data_to_send())
        with pytest.raises(ConnectionError):
            for _ in range(500):
                client.socket.sendall(pings)
        assert read_to_end(fake_node.accept()) == b""
        front.wait_for_line(f"{client.address} is ended: it takes no answers to its pings")


class TurningClient(WsClient):
    """Sends and receives by turns, so that it answers pings while its packets wait."""

    waiting: bytes | None = None

    def turn(self) -> None:
        """Send what can be sent now, and receive what is there."""
        self.waiting = (self.waiting or b"") + b"".join(self.protocol.data_to_send())
        sending = [self.socket] if self.waiting else []
        readable, writable, _ = select.select([self.socket], sending, [], 0.01)
        if writable:
            self.socket.settimeout(0)
            self.waiting = self.waiting[self.socket.send(self.waiting) :]
            self.socket.settimeout(20)
        if readable:
            self._receive()

    def _flush(self) -> None:
        if self.waiting is None:
            super()._flush()


def test_a_client_whose_pongs_wait_behind_its_packets_stays(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    message = make_packet(3, b"x" * 60_000)
    more = ("--ping-interval", "0.1", "--ping-timeout", "2")
    with (
        front_of(tmp_path, fake_node.port, more=more) as front,
        TurningClient(front.address) as client,
    ):
        node = fake_node.accept()
        count = 0
        until = time.monotonic() + 5.0  # more than two pings have
        while time.monotonic() < until:
            if not client.waiting:
                client.protocol.send_binary(message)
                count += 1
            client.turn()
        received = 0
        while received < count * len(message):
            client.turn()
            if select.select([node], [], [], 0)[0]:
                received += len(node.recv(1_000_000))
        node.sendall(make_packet(1, b"hello"))
        while not client.messages:
            client.turn()
        assert "is ended" not in front.stderr
        node.close()


def test_no_packet_is_lost_or_repeated_when_workers_are_killed(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    node = cluster_up("--workers", "2")
    with front_of(tmp_path, node.port) as front:
        clients = [WsClient(front.address) for _ in range(8)]
        sent = [0] * len(clients)
        received = [0] * len(clients)

        def exchange(rounds: int) -> None:
            for _ in range(rounds):
                for index, client in enumerate(clients):
                    for _ in range(4):
                        client.send_packet(index, b"%d" % sent[index] + b"." * 100)
                        sent[index] += 1
                for index, client in enumerate(clients):
                    while received[index] < sent[index] - 8:
                        assert client.receive() == (
                            index,
                            b"%d" % received[index] + b"." * 100,
                        )
                        received[index] += 1

        for restarts in (1, 2):
            exchange(20)
            for pid in node.worker_pids():
                os.kill(pid, signal.SIGKILL)
            exchange(100)
            node.wait_restarts(restarts, restarts)
            wait_until(
                lambda: all(worker["state"] == "ready" for worker in node.status()["workers"]),
                what="ready workers",
            )
        for client in clients:
            assert client.close().code == 1000
            client.socket.close()
