"""Clients that break every rule end their own sessions, and nobody else's."""

import contextlib
import random
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

CONFIG = """
[gateway]
max_packet_bytes = 4096
send_queue_bytes_max = 65536
send_stall_timeout_s = 2.0
close_timeout_s = 1.0
"""


@pytest.fixture
def node(cluster_up: StartNode, tmp_path: Path) -> ClusterNode:
    """Return a node with narrow bounds."""
    config = tmp_path / "narrow.toml"
    config.write_text(CONFIG)
    return cluster_up("--config", str(config))


@contextmanager
def everything_comes_back(node: ClusterNode) -> Iterator[PacketClient]:
    """Yield a good client that is served throughout, then wait until all is as it was before."""
    gateway = psutil.Process(node.status()["gateway"]["pid"])
    with PacketClient(node.port) as good:
        assert good.ask(1, b"before") == (1, b"before")
        descriptors = gateway.num_fds()
        yield good
        assert good.ask(1, b"after") == (1, b"after")
        node.wait_status(lambda status: status["gateway"]["sessions"] == 1, "one session is left")
        wait_until(lambda: gateway.num_fds() <= descriptors, what="descriptors come back")
    status = node.wait_status(
        lambda status: (
            status["gateway"]["sessions"] == 0 and status["counters"]["uncommitted_bytes"] == 0
        ),
        "nothing is left",
    )
    counters = status["counters"]
    assert counters["sessions_opened"] == counters["sessions_closed"]
    assert status["gateway"]["pid"] == gateway.pid
    assert all(worker["restarts"] == 0 for worker in status["workers"])


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4_097, 65_535])
def test_a_size_that_no_packet_may_have_ends_the_session(node: ClusterNode, size: int) -> None:
    with everything_comes_back(node) as good:
        for _ in range(10):
            with PacketClient(node.port) as bad:
                bad.send(5, b"good one first")
                assert bad.receive() == (5, b"good one first")
                bad.socket.sendall(struct.pack("<HH", size, 1) + b"rest")
                bad.receive_end()
            assert good.ask(2, b"meanwhile") == (2, b"meanwhile")
    assert node.status()["counters"]["closed_bad_size"] == 10


def test_random_bytes_end_their_own_session_only(node: ClusterNode) -> None:
    source = random.Random(20)
    with everything_comes_back(node) as good:
        for _ in range(30):
            with PacketClient(node.port) as bad:
                # Ends by itself: random sizes are above the allowed 4,096 fifteen times of sixteen.
                with contextlib.suppress(OSError):
                    bad.socket.sendall(source.randbytes(source.randrange(1, 60_000)))
                with contextlib.suppress(OSError):  # it may have been cut off already
                    bad.socket.shutdown(socket.SHUT_WR)
                bad.receive_end()
            assert good.ask(2, b"meanwhile") == (2, b"meanwhile")


def test_a_reset_in_the_middle_of_a_packet_is_the_end_of_it(node: ClusterNode) -> None:
    with everything_comes_back(node) as good:
        for _ in range(30):
            bad = PacketClient(node.port)
            bad.socket.sendall(struct.pack("<HH", 1_000, 1) + b"only a part")
            _reset(bad.socket)
            assert good.ask(2, b"meanwhile") == (2, b"meanwhile")


def test_hundreds_that_connect_and_vanish_leave_nothing(node: ClusterNode) -> None:
    with everything_comes_back(node) as good:
        for index in range(400):
            sock = socket.create_connection(("127.0.0.1", node.port))
            if index % 2:
                _reset(sock)
            else:
                sock.close()
        assert good.ask(2, b"meanwhile") == (2, b"meanwhile")


def test_a_half_open_client_harms_nobody_and_is_closed_with_the_node(node: ClusterNode) -> None:
    with everything_comes_back(node) as good, PacketClient(node.port) as half:
        half.socket.sendall(struct.pack("<HH", 1_000, 1) + b"half of a packet, and then EOF")
        half.socket.shutdown(socket.SHUT_WR)
        assert half.socket.recv(1) == b""
        assert good.ask(2, b"meanwhile") == (2, b"meanwhile")


def test_a_reader_that_never_reads_is_cut_off_and_others_are_served(node: ClusterNode) -> None:
    packet = struct.pack("<HH", 4_096, 1) + b"x" * 4_092
    with everything_comes_back(node) as good:
        bad = socket.socket()
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        bad.connect(("127.0.0.1", node.port))
        bad.settimeout(0.2)
        with pytest.raises(OSError, match=r".*"):  # it takes no more, and then it is reset
            while True:
                try:
                    bad.send(packet)
                except TimeoutError:
                    assert good.ask(2, b"meanwhile") == (2, b"meanwhile")
        bad.close()
    counters = node.status()["counters"]
    assert counters["slow_reader_paused"] >= 1
    assert counters["closed_send_stalled"] == 1


def test_a_client_that_drips_bytes_holds_up_nobody(node: ClusterNode) -> None:
    with everything_comes_back(node) as good:
        drips = [PacketClient(node.port) for _ in range(20)]
        for byte in struct.pack("<HH", 200, 1) + b"d" * 100:
            for drip in drips:
                drip.socket.send(bytes((byte,)))
        assert good.ask(2, b"meanwhile") == (2, b"meanwhile")
        for drip in drips:
            drip.socket.close()
