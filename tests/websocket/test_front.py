"""Who is admitted by a front, by which node, and what is left of those who go."""

import os
import selectors
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cluster.iocp import make_packet
from tests.certificates import needs_openssl, self_signed
from tests.support import wait_until
from tests.system.cluster_node import (
    ClusterNode,
    cluster_command,
    cluster_environment,
    run_cluster,
    run_without_library,
)
from tests.system.conftest import StartNode
from tests.system.linked_nodes import free_ports
from tests.system.packet_client import PacketClient
from tests.system.test_proxies import TELLS_ADDRESSES, balancer
from tests.system.test_spares import write_config
from tests.websocket.front import FakeNode, front_of, read_to_end, reset
from tests.websocket.ws_client import ClosedError, RefusedError, WsClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

NGINX_CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"
NGINX_HTTP = "http { access_log off; " + " ".join(
    f"{what}_temp_path {what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def refused(address: str, **options: str) -> int:
    """Return the status by which a client is refused."""
    with pytest.raises(RefusedError) as error:
        WsClient(address, origin=options.get("origin"))
    return error.value.status


def request(port: int, text: bytes) -> bytes:
    """Return the first line of the answer to a request."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(text)
        with client.makefile("rb") as answer:
            return answer.readline()


# -- nodes -----------------------------------------------------------------------------------------


def test_a_node_that_cannot_be_reached_is_told_in_the_handshake(tmp_path: Path) -> None:
    with free_ports(1) as (port,), front_of(tmp_path, port) as front:
        assert refused(front.address) == 503
        front.wait_for_line(
            rf"is refused: no node takes it \(127\.0\.0\.1:{port}: .*Connection refused"
        )
        with FakeNodeAt(port) as node, WsClient(front.address) as client:
            reset(node.accept())
            assert client.receive_close().code == 1011


def test_clients_of_a_gateway_that_dies_are_told_and_its_successor_takes_others(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    node = cluster_up("--workers", "1")
    with front_of(tmp_path, node.port) as front:
        with WsClient(front.address) as client:
            assert client.ask(1, b"hello") == (1, b"hello")
            os.kill(node.status()["gateway"]["pid"], signal.SIGKILL)
            assert client.receive_close().code in (1000, 1011)

        def answered() -> bool:
            try:
                with WsClient(front.address) as other:
                    return other.ask(2, b"hello") == (2, b"hello")
            except (RefusedError, ClosedError):
                return False

        wait_until(answered, timeout_s=20, what="a successor that answers")
        with WsClient(front.address) as last:
            assert last.ask(3, b"hello") == (3, b"hello")
            assert node.drain() == 0
            closed = last.receive_close()
            assert (closed.code, closed.reason) == (1000, "")
        assert refused(front.address) == 503


class FakeNodeAt(FakeNode):
    """A node at a port that was free."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._listener.close()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(20)


def test_nodes_take_turns_and_one_that_refuses_is_passed_over(tmp_path: Path) -> None:
    with (
        free_ports(1) as (dead,),
        FakeNode() as first,
        FakeNode() as second,
        front_of(tmp_path, dead, first.port, second.port) as front,
        ExitStack() as stack,
    ):
        for _ in range(6):
            stack.enter_context(WsClient(front.address))
        for node in (first, second):
            for _ in range(3):
                reset(node.accept())


@contextmanager
def full_node() -> Iterator[tuple[socket.socket, list[object]]]:
    """Give a listener that completes no connect until one was accepted, and who waits for that."""
    with socket.socket() as listener, ExitStack() as waiting:
        addresses = []
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.settimeout(20)
        while True:
            client = waiting.enter_context(socket.socket())
            client.settimeout(0.3)
            try:
                client.connect(listener.getsockname())
            except TimeoutError:
                client.close()
                break
            addresses.append(client.getsockname())
        yield listener, addresses


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse what a backlog has no room for")
def test_a_client_that_goes_while_it_is_connected_leaves_nothing(tmp_path: Path) -> None:
    with full_node() as (listener, waiting), front_of(tmp_path, listener.getsockname()[1]) as front:
        before = front.descriptors
        with socket.create_connection(("127.0.0.1", front.port)) as client:
            client.sendall(HANDSHAKE)
            wait_until(lambda: front.descriptors == before + 2, what="the connect")
            reset(client)
        address: object = None
        while address is None or address in waiting:
            node, address = listener.accept()
            node.close()
        wait_until(lambda: front.descriptors == before, what="no descriptor of the client")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="others refuse what a backlog has no room for")
def test_clients_that_do_not_wait_for_a_node_that_does_not_answer_leave_nothing(
    tmp_path: Path,
) -> None:
    with full_node() as (listener, _), front_of(tmp_path, listener.getsockname()[1]) as front:
        process = psutil.Process(front.process.pid)
        before = front.descriptors

        def come_and_go(count: int) -> None:
            with ExitStack() as stack:
                for _ in range(count):
                    client = socket.create_connection(("127.0.0.1", front.port))
                    stack.enter_context(client).sendall(HANDSHAKE)
                wait_until(lambda: front.descriptors == before + 2 * count, what="the connects")
            wait_until(lambda: front.descriptors == before, what="no descriptor of the clients")

        come_and_go(300)
        memory = process.memory_info().rss
        come_and_go(300)
        come_and_go(300)
        assert process.memory_info().rss - memory < 3_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse what a backlog has no room for")
def test_a_node_that_does_not_answer_is_passed_over(echo_node: ClusterNode, tmp_path: Path) -> None:
    with (
        full_node() as (listener, _),
        front_of(tmp_path, listener.getsockname()[1], echo_node.port) as front,
    ):
        for _ in range(3):  # the first one waits
            with WsClient(front.address) as client:
                assert client.ask(1, b"hello") == (1, b"hello")


def test_a_request_that_is_no_handshake_is_no_session(fake_node: FakeNode, tmp_path: Path) -> None:
    with front_of(tmp_path, fake_node.port, more=("--path", "/game")) as front:
        get = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        assert b" 426 " in request(front.port, get % b"/game")
        assert b" 404 " in request(front.port, get % b"/")
        assert refused(front.address.removesuffix("game")) == 404
        fake_node._listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            fake_node.accept()
        fake_node._listener.settimeout(20)
        with WsClient(f"{front.address}?token=1"):
            fake_node.accept().close()


# -- origins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "admitted", "strangers"),
    [
        ((), [None, "http://127.0.0.1:8000", "https://127.0.0.1"], ["http://evil.example", "null"]),
        (
            ("--origin", "https://game.example", "--origin", "null"),
            [None, "https://game.example", "null"],
            ["http://127.0.0.1:8000", "http://game.example", "https://game.example:444"],
        ),
        (("--origin", "*"), [None, "http://evil.example", "null"], []),
    ],
)
def test_pages_are_admitted_by_their_origin(
    fake_node: FakeNode,
    tmp_path: Path,
    more: tuple[str, ...],
    admitted: list[str | None],
    strangers: list[str],
) -> None:
    with front_of(tmp_path, fake_node.port, more=more) as front:
        for origin in admitted:
            with WsClient(front.address, origin=origin):
                fake_node.accept().close()
        for origin in strangers:
            assert refused(front.address, origin=origin) == 403
            front.wait_for_line(f"is a page of '{origin}'; to admit its kind pass --origin")


@pytest.mark.parametrize(
    ("listen", "more", "is_warned"),
    [
        ("0.0.0.0:0", (), True),
        ("0.0.0.0:0", ("--origin", "https://game.example"), False),
        ("0.0.0.0:0", ("--origin", "*"), False),
        ("127.0.0.1:0", (), False),
    ],
)
def test_who_listens_beyond_loopback_is_told_to_name_pages(
    fake_node: FakeNode, tmp_path: Path, listen: str, more: tuple[str, ...], is_warned: bool
) -> None:
    with front_of(tmp_path, fake_node.port, more=more, listen=listen) as front:
        pass
    assert front.stderr.count("name yours by --origin") == is_warned


# -- bounds ----------------------------------------------------------------------------------------


def test_clients_are_bounded_and_those_that_go_make_room(
    echo_node: ClusterNode, tmp_path: Path
) -> None:
    with (
        front_of(tmp_path, echo_node.port, more=("--connections-max", "2")) as front,
        WsClient(front.address) as first,
        WsClient(front.address) as second,
    ):
        assert refused(front.address) == 503
        front.wait_for_line("there are 2 clients and 1 connections that are none yet, as many as")
        first.close()

        def admitted() -> bool:
            try:
                with WsClient(front.address) as third:
                    return third.ask(1, b"hello") == (1, b"hello")
            except RefusedError:
                return False

        wait_until(admitted, what="room for a third")
        assert second.ask(1, b"here") == (1, b"here")


def test_connections_that_say_nothing_are_bounded(echo_node: ClusterNode, tmp_path: Path) -> None:
    more = ("--handshake-timeout", "60", "--connections-max", "1")
    with front_of(tmp_path, echo_node.port, more=more) as front:
        before = front.descriptors
        with ExitStack() as stack:
            mute = stack.enter_context(selectors.DefaultSelector())
            for _ in range(600):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", front.port), timeout=20)
                )
                mute.register(connection, selectors.EVENT_READ)
            front.wait_for_line("there are 0 clients and 513 connections that are none yet")
            wait_until(lambda: len(mute.select(0)) >= 87, what="the end of those that are too many")
            assert len(mute.select(0)) == 87
            for key, _ in mute.select(0):
                assert isinstance(key.fileobj, socket.socket)
                assert was_ended(key.fileobj)
        wait_until(lambda: front.descriptors == before, what="no descriptor of them")
        with WsClient(front.address) as client:
            assert client.ask(1, b"hello") == (1, b"hello")


def test_connections_that_say_nothing_are_ended(echo_node: ClusterNode, tmp_path: Path) -> None:
    more = ("--handshake-timeout", "0.5")
    with front_of(tmp_path, echo_node.port, more=more) as front, ExitStack() as stack:
        mute = [
            stack.enter_context(socket.create_connection(("127.0.0.1", front.port), timeout=20))
            for _ in range(100)
        ]
        for connection in mute:
            assert was_ended(connection)


def was_ended(connection: socket.socket) -> bool:
    """Wait for the next bytes; return whether there are none, since the other side has ended."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@needs_openssl
def test_handshakes_of_tls_are_bounded(fake_node: FakeNode, tmp_path: Path) -> None:
    both = self_signed(tmp_path)
    more = ("--certificate", str(both), "--handshake-timeout", "60", "--connections-max", "1")
    count = 700
    with front_of(tmp_path, fake_node.port, more=more) as front, ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", front.port), timeout=20))
        front.wait_for_line("there are 0 clients and 513 connections that are none yet")
        assert front.descriptors < count


@needs_openssl
def test_handshakes_of_tls_that_come_to_nothing_are_ended(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    both = self_signed(tmp_path)
    more = ("--certificate", str(both), "--handshake-timeout", "3", "--connections-max", "1")
    with front_of(tmp_path, fake_node.port, more=more) as front:
        mute = socket.create_connection(("127.0.0.1", front.port), timeout=20)
        with mute, suppress(ConnectionResetError):
            assert mute.recv(1) == b""
        front.wait_for_line("it has completed no TLS handshake .--handshake-timeout is 3 s")
        context = ssl.create_default_context(cafile=str(both))
        with WsClient(f"wss://localhost:{front.port}/", context=context) as client:
            client.send(make_packet(1, b"hello"))
            assert fake_node.accept().recv(100) == make_packet(1, b"hello")
        assert front.stop() == 0
        front.wait_for_line("stopped: 1 clients were served, 1 refused")


def test_open_files_bound_connections_as_well(fake_node: FakeNode, tmp_path: Path) -> None:
    limited = ("-c", 'ulimit -n 600; exec "$@"', "sh")
    command = ["sh", *limited, *cluster_command("websocket", "--listen", "127.0.0.1:0")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster_environment(),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith("websocket ws://")
            process.terminate()
            assert "--connections-max 8000 is capped at 12:" in process.stderr.read()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.long
def test_nothing_is_left_of_those_who_have_gone(echo_node: ClusterNode, tmp_path: Path) -> None:
    context = ("--handshake-timeout", "2")
    with front_of(tmp_path, echo_node.port, more=context) as front:
        process = psutil.Process(front.process.pid)

        def come_and_go(count: int) -> None:
            for number in range(count):
                kind = number % 6
                if kind == 5:
                    with socket.create_connection(("127.0.0.1", front.port)) as stranger:
                        stranger.sendall(b"GET / HTTP/1.1\r\nHost" if number % 4 else b"\x16\x03")
                    continue
                with WsClient(front.address) as client:
                    client.send_packet(1, b"x" * 3_000)
                    if kind == 0:
                        assert client.close().code == 1000
                    elif kind == 1:
                        client.reset()
                    elif kind == 2:
                        client.send("text")
                        assert client.receive_close().code == 1003
                    elif kind == 3:
                        client.send(b"\0\0\0\0")  # ends the session
                        client.receive_close()
                    else:
                        assert client.receive() == (1, b"x" * 3_000)

        with WsClient(front.address) as stays:
            come_and_go(200)
            wait_until(lambda: process.num_fds() <= 16, what="no descriptor of those who have gone")
            before, memory = process.num_fds(), process.memory_info().rss
            come_and_go(1_000)
            wait_until(
                lambda: process.num_fds() <= before, what="no descriptor of those who have gone"
            )
            assert process.memory_info().rss - memory < 8_000_000
            assert stays.ask(9, b"still here") == (9, b"still here")
        wait_until(
            lambda: echo_node.status()["gateway"]["sessions"] == 0, what="no session at the node"
        )


@needs_openssl
def test_nothing_is_left_of_those_who_end_tls_behind_their_request(
    fake_node: FakeNode, tmp_path: Path
) -> None:
    both = self_signed(tmp_path)
    context = ssl.create_default_context(cafile=str(both))
    more = ("--certificate", str(both))
    upgrade = HANDSHAKE.removesuffix(b"\r\n")
    requests = [
        upgrade.replace(b"GET /", b"GET /elsewhere") + b"\r\n",
        upgrade + b"Origin: https://elsewhere.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        upgrade + b"\r\n",
    ]
    with front_of(
        tmp_path, fake_node.port, more=more, module="tests.websocket.counted_front"
    ) as front:
        before = front.descriptors
        for text in requests * 15:
            request_and_end_tls(front.port, context, text)
        wait_until(lambda: front.descriptors == before, what="no descriptor of those who have gone")
        wait_until(lambda: front.count_connections() == 0, what="no connection in memory")


def request_and_end_tls(port: int, context: ssl.SSLContext, text: bytes) -> None:
    """Send a request and the end of TLS behind it at once, as one write, and close."""
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sendall(to_send.read())
                received.write(client.recv(100_000))
        client.sendall(to_send.read())
        tls.write(text)
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        client.sendall(to_send.read())


# -- its end ---------------------------------------------------------------------------------------


def test_its_end_is_told_and_bounded(fake_node: FakeNode, tmp_path: Path) -> None:
    with (
        front_of(tmp_path, fake_node.port) as front,
        WsClient(front.address) as client,
        WsClient(front.address, buffer_bytes=32_768) as busy,
        socket.create_connection(("127.0.0.1", front.port)),
    ):
        client.send(make_packet(1, b"last words"))
        idle = fake_node.accept()
        flooding = fake_node.accept()
        flooding.settimeout(1)
        with pytest.raises(TimeoutError):  # more than there is room for
            flooding.sendall(make_packet(1, b"x" * 1_000) * 50_000)
        stopping = threading.Thread(target=front.stop)
        stopping.start()
        assert client.receive_close().code == 1001
        client.socket.close()
        assert read_to_end(idle) == make_packet(1, b"last words")
        stopping.join()
        assert front.process.returncode == 0
        front.wait_for_line("stopped: 2 clients were served, 0 refused")
        with pytest.raises(ConnectionRefusedError):
            WsClient(front.address)
        del busy


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_nodes_are_told_the_addresses_of_clients(
    cluster_up: StartNode, tmp_path: Path, listen: str
) -> None:
    if listen == "[::1]:0":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    (tmp_path / "tells.py").write_text(TELLS_ADDRESSES)
    config = write_config(
        tmp_path,
        '[gateway]\nproxies = ["127.0.0.2"]\n[limits]\nconnections_per_address = 2\n',
    )
    node = cluster_up(*config, "--app", "tells:app", cwd=tmp_path)
    more = ("--proxy-protocol", "--source", "127.0.0.2")
    with (
        front_of(tmp_path, node.port, more=more, listen=listen) as front,
        WsClient(front.address) as first,
        WsClient(front.address) as second,
    ):
        for client in (first, second):
            assert client.receive() == (1, client.address.encode())
        with WsClient(front.address) as third:
            assert third.receive_close().code in (1000, 1011)  # too many of one address
        with PacketClient(node.port, source="127.0.0.3") as direct:
            assert direct.receive()[1].startswith(b"127.0.0.3:")


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
def test_nodes_are_told_for_whom_a_trusted_proxy_connects(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    (tmp_path / "tells.py").write_text(TELLS_ADDRESSES)
    config = write_config(tmp_path, '[gateway]\nproxies = ["127.0.0.2"]\n')
    node = cluster_up(*config, "--app", "tells:app", cwd=tmp_path)
    more = ("--proxy-protocol", "--source", "127.0.0.2", "--trusted-proxy", "127.0.0.1")
    with (
        front_of(tmp_path, node.port, more=more) as front,
        WsClient(front.address, forwarded_for="6.6.6.6, 203.0.113.7") as client,
        WsClient(front.address, forwarded_for="2001:db8::7") as other,
        WsClient(front.address) as direct,
    ):
        assert client.receive() == (1, b"203.0.113.7:0")
        assert other.receive() == (1, b"[2001:db8::7]:0")
        assert direct.receive() == (1, direct.address.encode())
        with pytest.raises(RefusedError):
            WsClient(front.address, origin="http://elsewhere", forwarded_for="203.0.113.9")
        front.wait_for_line("203.0.113.9:0 is refused: it is a page of 'http://elsewhere'")


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
@pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl"
)
def test_nginx_ends_tls_and_tells_addresses(cluster_up: StartNode, tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(TELLS_ADDRESSES)
    node_config = write_config(tmp_path, '[gateway]\nproxies = ["127.0.0.2"]\n')
    node = cluster_up(*node_config, "--app", "tells:app", cwd=tmp_path)
    certificate = self_signed(tmp_path)
    more = ("--proxy-protocol", "--source", "127.0.0.2", "--trusted-proxy", "127.0.0.3")
    with front_of(tmp_path, node.port, more=more) as front, free_ports(1) as (port,):
        text = NGINX_CONF.read_text()
        for shown, here in (
            ("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("ssl_certificate /etc/nginx/games.pem", f"ssl_certificate {certificate}"),
            ("ssl_certificate_key /etc/nginx/games.pem", f"ssl_certificate_key {certificate}"),
            ("10.0.0.21:8080", f"127.0.0.1:{front.port}"),
            ("10.0.0.22:8080", f"127.0.0.1:{front.port} backup"),
            ("20000", "64"),
            ("worker_rlimit_nofile 65536;", "daemon off; master_process off; pid nginx.pid;"),
            ("http {", NGINX_HTTP),
            ("proxy_buffering off;", "proxy_buffering off; proxy_bind 127.0.0.3;"),
        ):
            assert shown in text
            text = text.replace(shown, here, 1)
        (tmp_path / "nginx.conf").write_text(text)
        with balancer(port, "nginx", "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"):
            context = ssl.create_default_context(cafile=str(certificate))
            address = f"wss://localhost:{port}/"
            with WsClient(
                address,
                context=context,
                origin=f"https://localhost:{port}",
                forwarded_for="6.6.6.6",
            ) as client:
                assert client.receive() == (1, b"127.0.0.1:0")
                large = os.urandom(60_000)
                assert client.ask(3, large) == (3, large)
                assert client.close().code == 1000


# -- TLS -------------------------------------------------------------------------------------------


@needs_openssl
def test_tls_and_a_certificate_that_is_renewed(echo_node: ClusterNode, tmp_path: Path) -> None:
    both = self_signed(tmp_path)
    context = ssl.create_default_context(cafile=str(both))
    more = ("--certificate", str(tmp_path / "certificate"), "--key", str(tmp_path / "key"))
    with front_of(tmp_path, echo_node.port, more=more) as front:
        address = f"wss://localhost:{front.port}/"
        with WsClient(address, context=context) as first:
            large = os.urandom(60_000)
            assert first.ask(1, large) == (1, large)
            self_signed(tmp_path)
            front.process.send_signal(signal.SIGHUP)
            front.wait_for_line("the certificate was read again")
            with pytest.raises(ssl.SSLCertVerificationError):
                WsClient(address, context=context)
            renewed = ssl.create_default_context(cafile=str(both))
            with WsClient(address, context=renewed) as second:
                assert second.ask(2, b"hello") == (2, b"hello")
                assert second.close().code == 1000
            key = (tmp_path / "key").read_text()
            self_signed(tmp_path)
            for unfit, reason in (("nonsense", "not encrypted"), (key, "KEY_VALUES_MISMATCH")):
                (tmp_path / "key").write_text(unfit)
                front.process.send_signal(signal.SIGHUP)
                front.wait_for_line(f"the certificate stays what it was: --certificate: .*{reason}")
                with WsClient(address, context=renewed) as third:
                    assert third.ask(3, b"hello") == (3, b"hello")
                    third.reset()
            with socket.create_connection(("127.0.0.1", front.port), timeout=20) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert not plain.recv(1_000).startswith(b"HTTP")
            assert first.ask(4, large) == (4, large)
            assert front.stop() == 0


@needs_openssl
def test_an_idle_client_with_tls_takes_little_memory(
    echo_node: ClusterNode, tmp_path: Path
) -> None:
    both = self_signed(tmp_path)
    context = ssl.create_default_context(cafile=str(both))
    with (
        front_of(tmp_path, echo_node.port, more=("--certificate", str(both))) as front,
        ExitStack() as stack,
    ):
        process = psutil.Process(front.process.pid)

        def come(count: int) -> None:
            for _ in range(count):
                client = WsClient(f"wss://localhost:{front.port}/", context=context)
                stack.enter_context(client)

        come(20)
        memory = process.memory_info().rss
        come(100)
        assert process.memory_info().rss - memory < 100 * 150_000


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--listen", "nowhere"], "--listen: 'nowhere': expected HOST:PORT with a port from 0"),
        (["--node", "127.0.0.1:0"], "--node: '127.0.0.1:0': expected HOST:PORT with a port from 1"),
        (["--path", "game"], "--path: 'game': expected a path as in an address, for example /game"),
        (["--origin", "game.example"], "--origin: 'game.example': expected SCHEME://HOST or"),
        (["--origin", "https://game.example/"], "--origin: 'https://game.example/': expected"),
        (["--source", "here"], "--source: 'here': expected a numeric address of this machine"),
        (["--source", "::1"], "--source: '::1': --node 127.0.0.1 is not of its kind, IPv4 or IPv6"),
        (["--source", "192.0.2.1"], "--source: '192.0.2.1' is no address of this machine: "),
        (["--trusted-proxy", "nginx"], "--trusted-proxy: 'nginx': "),
        (
            ["--trusted-proxy", "10.0.0.0/8"],
            "--trusted-proxy: '10.0.0.0/8': pass --proxy-protocol as well",
        ),
        (
            ["--proxy-protocol", "--trusted-proxy", "10.0.0.1/8"],
            "--trusted-proxy: '10.0.0.1/8': expected an address or a network, for example",
        ),
        (["--key", "key"], "--key: 'key': pass --certificate as well, or leave it out"),
        (["--certificate", "/no/such"], "--certificate: /no/such: cannot be read: No such file"),
        (["--certificate", __file__], f"--certificate: {__file__}: no certificate with its key"),
        (["--certificate", __file__, "--key", "/no/such"], "--key: /no/such: cannot be read: No"),
        (
            ["--connections-max", "0"],
            "--connections-max: '0': input should be greater than or equal to 1",
        ),
        (["--message-bytes-max", "1"], "--message-bytes-max: '1': input should be"),
        (
            ["--ping-interval", "-1"],
            "--ping-interval: '-1': input should be greater",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_line(arguments: list[str], told: str) -> None:
    done = run_cluster("websocket", "--listen", "127.0.0.1:0", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"cluster: {told}")


def test_an_encrypted_key_is_told_and_nobody_is_asked(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    self_signed(tmp_path)
    encrypted = tmp_path / "encrypted"
    subprocess.run(
        [
            *("openssl", "rsa", "-aes256", "-passout", "pass:secret"),
            *("-in", str(tmp_path / "key"), "-out", str(encrypted)),
        ],
        check=True,
        capture_output=True,
    )
    certificate = str(tmp_path / "certificate")
    done = run_cluster("websocket", "--certificate", certificate, "--key", str(encrypted))
    assert done.returncode == 2
    assert done.stderr.endswith("which is not encrypted (the key is encrypted)\n")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        listen = f"127.0.0.1:{holder.getsockname()[1]}"
        done = run_cluster("websocket", "--listen", listen)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"cluster: --listen: cannot listen at {listen}: Address already in use\n"
    assert done.stderr.endswith(told)


def test_without_its_library_the_remedy_is_told(tmp_path: Path) -> None:
    done = run_without_library("websockets", tmp_path, "websocket")
    assert done.returncode == 2
    assert done.stderr == (
        "cluster: websocket: needs the library websockets, 14.1 or newer; run: pip install "
        "'iocp-cluster[websocket]'\n"
    )
