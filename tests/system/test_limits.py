"""`[limits]` of a real node, also while its worker dies: who breaks them is ended, nobody else.

The last test is the short form of `benchmarks.abuse`, which has 2,000 abusers.
"""

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications import limited
from tests.applications.limited import ECHO, FILL, LOGIN, MOVE, STATES
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.good_clients import GoodClients
from tests.system.outcome import Outcome
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

CONNECTIONS_MAX = 60
IDLE_TIMEOUT_S = 3.0
AUTH_TIMEOUT_S = 2.0
"""Good clients have to speak, and to be heard, within these times, also while a worker is replaced
and on a machine that stands still for a moment."""
PACKET_TIMEOUT_S = 0.4
CONFIG = f"""
[gateway]
send_queue_bytes_max = 16777216
close_timeout_s = 0.5
[workers]
count = 1
[limits]
idle_timeout_s = {IDLE_TIMEOUT_S}
packet_timeout_s = {PACKET_TIMEOUT_S}
auth_timeout_s = {AUTH_TIMEOUT_S}
packets_per_s = 300
packets_burst = 600
bytes_per_s = 10000000
connections_per_address = {CONNECTIONS_MAX}
send_blocked_bytes = 1000000
send_ready_bytes = 100000
"""

ABUSERS = 30
"""Of each kind."""


@pytest.fixture(scope="module")
def started_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNode]:
    """Start a node with limits of moments."""
    directory = tmp_path_factory.mktemp("limited")
    config = directory / "limited.toml"
    config.write_text(CONFIG)
    arguments = ["--config", str(config), "--app", "limited:app"]
    node = ClusterNode(directory, arguments, cwd=Path(limited.__file__).parent)
    try:
        yield node.wait_ready()
    finally:
        node.close()


@pytest.fixture
def node(started_node: ClusterNode) -> ClusterNode:
    """Return a node with limits of moments, without a session, and with a spare that waits."""
    started_node.wait_status(
        lambda status: (
            status["gateway"]["sessions"] == 0
            and status["workers"][0]["state"] == "ready"
            and status["spares"]
        ),
        "a node as at its start",
    )
    return started_node


def log_in(node: ClusterNode) -> PacketClient:
    client = PacketClient(node.port)
    assert client.ask(LOGIN, b"") == (LOGIN, b"")
    return client


def good_clients(node: ClusterNode, count: int) -> GoodClients:
    clients = [PacketClient(node.port) for _ in range(count)]
    for client in clients:
        client.send(LOGIN, b"")
    for client in clients:
        assert client.receive() == (LOGIN, b"")
    return GoodClients(clients, ECHO)


def connect_from(node: ClusterNode, address: str) -> socket.socket:
    """Connect from one of 127.0.0.0/8, all of which is this machine."""
    return socket.create_connection(("127.0.0.1", node.port), 20.0, (address, 0))


def packet(packet_id: int, payload: bytes = b"") -> bytes:
    return struct.pack("<HH", 4 + len(payload), packet_id) + payload


def test_each_time_ends_who_exceeds_it_with_its_cause(node: ClusterNode) -> None:
    outcome = Outcome(node)
    with good_clients(node, 2), contextlib.ExitStack() as stack:
        idle_since = time.monotonic()
        idle, dripping = (stack.enter_context(log_in(node)) for _ in range(2))
        nobody, waiting = (stack.enter_context(PacketClient(node.port)) for _ in range(2))
        began = time.monotonic()
        waiting.send(ECHO, b"not before I am known")
        dripping.socket.sendall(packet(ECHO, b"never whole")[:6])
        dripping.receive_end()
        assert time.monotonic() - began >= PACKET_TIMEOUT_S
        for stranger in (nobody, waiting):
            assert stranger.socket.recv(1) == b""
        idle.receive_end()
        assert time.monotonic() - idle_since >= IDLE_TIMEOUT_S
    expected = {"idle_timeout": 1, "packet_timeout": 1, "auth_timeout": 2, "eof": 2}
    wait_until(lambda: outcome.causes == expected, what=f"the causes {expected}")


def test_who_sends_its_login_and_more_in_one_go_loses_nothing_even_if_the_worker_dies(
    node: ClusterNode, tmp_path: Path
) -> None:
    restarts = node.status()["workers"][0]["restarts"]
    with PacketClient(node.port) as client:
        game = b"".join(packet(ECHO, b"%d" % number) for number in range(500))
        client.socket.sendall(packet(LOGIN, str(tmp_path / "died").encode()) + game)
        assert client.receive() == (LOGIN, b"")
        for number in range(500):
            assert client.receive() == (ECHO, b"%d" % number)
    node.wait_restarts(restarts + 1)


def test_a_connection_too_many_of_an_address_is_refused(node: ClusterNode) -> None:
    outcome = Outcome(node)
    with good_clients(node, 2), contextlib.ExitStack() as stack:
        flood: list[socket.socket] = []
        refused = 0
        for _ in range(CONNECTIONS_MAX + 20):
            try:
                flood.append(stack.enter_context(connect_from(node, "127.0.0.9")))
            except ConnectionResetError:  # so soon that it has not known of its connection
                refused += 1
        wait_until(
            lambda: outcome.counters["rate_limited_connections_per_address"] == 20,
            what="the refusals",
        )
        # Those that were admitted are still asked to log in, or it is over for them too.
        assert refused + sum(map(has_ended, flood)) >= 20
    assert outcome.counters["connections_refused"] == 20
    node.wait_status(lambda status: status["gateway"]["sessions"] == 0, "the end of the flood")
    assert outcome.counters["sessions_opened"] == 2 + CONNECTIONS_MAX


def has_ended(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_a_client_that_takes_less_than_it_is_sent_is_told_of_also_to_a_successor(
    node: ClusterNode,
) -> None:
    with log_in(node) as watcher, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.settimeout(20)
        deaf.connect(("127.0.0.1", node.port))
        deaf.sendall(packet(LOGIN) + packet(FILL, b"2500"))
        states: list[str] = []

        def listen() -> None:
            states.extend(watcher.ask(STATES, b"")[1].decode().split())

        def wait_heard(state: str) -> None:
            def heard() -> bool:
                listen()
                return states[-1:] == [state]

            wait_until(heard, what=f"{state!r} behind {states}")

        wait_heard("blocked")
        restarts = node.status()["workers"][0]["restarts"]
        node.kill_worker(restarts)
        wait_heard("resumed")
        left = 4 + 2_500 * 4_004
        heard_at = time.monotonic()
        while left:
            if time.monotonic() - heard_at > IDLE_TIMEOUT_S / 10:  # or the watcher counts as idle
                listen()
                heard_at = time.monotonic()
            taken = len(deaf.recv(1 << 16))
            assert taken, f"it was ended {left} bytes ahead of what it was sent"
            left -= taken
        wait_heard("ready")
        assert states == ["blocked", "resumed", "ready"]
    node.wait_restarts(restarts + 1)


def test_all_kinds_of_abuse_at_once_and_a_death_hold_up_nobody(node: ClusterNode) -> None:
    outcome = Outcome(node)
    with good_clients(node, 50) as good, contextlib.ExitStack() as stack:
        kinds: list[list[socket.socket]] = []
        for address in ("127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4"):
            socks = [stack.enter_context(connect_from(node, address)) for _ in range(ABUSERS)]
            for sock in socks:
                sock.sendall(packet(LOGIN))
            assert [sock.recv(4) for sock in socks] == [packet(LOGIN)] * ABUSERS
            kinds.append(socks)
        floods, drips, deafs, garblers = kinds
        for sock in floods:
            send_until_ended(sock, packet(ECHO, b"f") * 2_000)
        for sock in deafs:
            sock.sendall(packet(FILL, b"200"))
        restarts = node.status()["workers"][0]["restarts"]
        node.kill_worker(restarts)
        for sock in garblers:
            sock.sendall(packet(MOVE, b"\xc1 is no MessagePack"))
        for byte in packet(ECHO, b"drip")[:-1]:
            for sock in drips:
                send_until_ended(sock, bytes([byte]))
        for _ in range(100):  # and some come and go, or are refused
            with contextlib.suppress(ConnectionResetError):
                connect_from(node, "127.0.1.5").close()
        good.wait_served()
        node.wait_status(
            lambda status: status["gateway"]["sessions"] == 50, "only good ones are left"
        )
    expected = {"rate_limited", "packet_timeout", "decode_error", "idle_timeout"}
    wait_until(lambda: outcome.causes.get("eof", 0) >= 50, what="the end of the good ones")
    causes = outcome.causes
    assert {cause: causes.get(cause) for cause in expected} == dict.fromkeys(expected, ABUSERS)
    node.wait_restarts(restarts + 1)


def send_until_ended(sock: socket.socket, data: bytes) -> None:
    """Send `data` to a server that may end the connection in the middle of it."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(data)
