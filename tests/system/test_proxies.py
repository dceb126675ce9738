"""Load balancers in front of a real node: clients have their own addresses, HAProxy speaks TLS."""

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import free_ports
from tests.system.packet_client import PacketClient
from tests.system.test_spares import write_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")

TELLS_ADDRESSES = """
from cluster.worker import App

app = App()

@app.on_connected
def connected(session):
    session.send(1, session.address.encode())

@app.on_any
def answer(session, packet_id, payload):
    session.send(packet_id, payload)
"""
BALANCER = "127.0.0.77"
HAPROXY_CFG = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


def through_balancer(port: int, header: bytes) -> PacketClient:
    """Return a client that comes from the balancer's address, and has sent `header`."""
    client = PacketClient(port, source=BALANCER)
    client.socket.sendall(header)
    return client


@pytest.fixture
def node(cluster_up: StartNode, socket_driver: str, tmp_path: Path) -> ClusterNode:
    """A node that has the balancer in its list, on each driver."""
    (tmp_path / "tells.py").write_text(TELLS_ADDRESSES)
    config = write_config(
        tmp_path,
        f'[gateway]\nproxies = ["{BALANCER}", "10.0.0.0/8"]\n'
        f'driver = "{socket_driver}"\n[limits]\nconnections_per_address = 3\n',
    )
    return cluster_up(*config, "--app", "tells:app", cwd=tmp_path)


def test_each_client_has_its_own_address_and_limit(node: ClusterNode) -> None:
    clients = [
        through_balancer(node.port, b"PROXY TCP4 203.0.113.%d 10.0.0.5 %d 443\r\n" % (host, 1_000))
        for host in (1, 2)
        for _ in range(3)
    ]
    told = [client.receive() for client in clients]
    assert told == [(1, b"203.0.113.%d:1000" % host) for host in (1, 1, 1, 2, 2, 2)]
    with through_balancer(node.port, b"PROXY TCP4 203.0.113.1 10.0.0.5 1 443\r\n") as fourth:
        fourth.receive_end()
    with PacketClient(node.port) as direct:
        assert direct.receive()[1].startswith(b"127.0.0.1:")
    with through_balancer(node.port, b"\x09\0\x01\0hello") as without:
        without.receive_end()
    for client in clients:
        assert client.ask(7, b"x" * 10_000) == (7, b"x" * 10_000)
        client.socket.close()


@contextmanager
def balancer(port: int, *command: str) -> Iterator[None]:
    """Run a load balancer that listens at `port`, by `command`, which stays in the foreground."""

    def is_up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(is_up, timeout_s=20, what=command[0])
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(
    not (shutil.which("haproxy") and shutil.which("openssl")), reason="needs haproxy and openssl"
)
def test_haproxy_ends_tls_and_tells_addresses(node: ClusterNode, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    config = tmp_path / "haproxy.cfg"
    with free_ports(1) as (port,):
        text = HAPROXY_CFG.read_text()
        for shown, here in (
            (":7443 ssl crt /etc/haproxy/games.pem", f"127.0.0.1:{port} ssl crt {certificate}"),
            ("10.0.0.11:7777", f"127.0.0.1:{node.port} source {BALANCER}"),
            ("10.0.0.12:7777", f"127.0.0.1:{node.port} source {BALANCER}"),  # the same once more
        ):
            assert shown in text
            text = text.replace(shown, here)
        config.write_text(text)
        subprocess.run(["haproxy", "-c", "-f", str(config)], check=True, timeout=60)
        with balancer(port, "haproxy", "-f", str(config)):
            speak_tls(port, certificate)
    assert node.counters()["sessions_opened"] == 1, "HAProxy's checks are no sessions"


def speak_tls(port: int, certificate: Path) -> None:
    """Connect by TLS, and see that the node knows this client's address."""
    context = ssl.create_default_context(cafile=str(certificate))
    with PacketClient(port) as client:
        host, own_port = client.socket.getsockname()
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        assert client.receive() == (1, f"{host}:{own_port}".encode())
        assert client.ask(9, b"y" * 50_000) == (9, b"y" * 50_000)
