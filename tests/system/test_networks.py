"""Nodes on networks of their own: a cable is pulled, and one that carries one way only."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.applications.playground import GREETING, TO_ALL
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import wait_linked, write_configs
from tests.system.network_namespace import NamespaceError, NetworkNamespace, connect
from tests.system.packet_client import PacketClient

APP = "tests.applications.playground:app"
ROOT = Path(__file__).parents[2]
HOSTS = ("10.77.0.1", "10.77.0.2")
PORT = 7800


@pytest.fixture
def networks() -> Iterator[list[NetworkNamespace]]:
    """Two networks with a cable between them; skips the test where there can be none."""
    with ExitStack() as stack:
        made = []
        try:
            for _ in HOSTS:
                made.append(NetworkNamespace())
                stack.callback(made[-1].close)
            first, second = made
            connect(first, second, (f"{HOSTS[0]}/24", f"{HOSTS[1]}/24"))
        except NamespaceError as error:
            pytest.skip(f"network namespaces: {error}")
        yield made


def is_lost(node: ClusterNode) -> None:
    node.wait_status(lambda status: status["links"][0]["state"] != "linked", "the loss")


def test_nodes_whose_cable_is_pulled_or_carries_one_way_go_on_where_they_were(
    networks: list[NetworkNamespace], cluster_up_unready: StartNode, tmp_path: Path
) -> None:
    configs = write_configs(tmp_path, [PORT, PORT], hosts=HOSTS, timeout_s=1)
    nodes, clients = [], []
    for network, config in zip(networks, configs, strict=True):
        with network:
            nodes.append(cluster_up_unready("--config", str(config), "--app", APP, cwd=ROOT))
    with ExitStack() as stack:
        for network, node in zip(networks, nodes, strict=True):
            node.wait_ready()
            with network:
                clients.append(stack.enter_context(PacketClient(node.port)))
            assert clients[-1].receive()[0] == GREETING
        wait_linked(nodes)

        def say(client: PacketClient, what: bytes) -> None:
            client.send(TO_ALL, what)
            assert client.receive() == (TO_ALL, what)

        first, second = clients
        networks[1].ip("link set cable down")
        say(first, b"1, pulled")
        say(second, b"2, pulled")
        for node in nodes:
            is_lost(node)
        say(first, b"1, lost")
        say(second, b"2, lost")
        networks[1].ip("link set cable up")
        wait_linked(nodes)
        assert [second.receive()[1] for _ in range(2)] == [b"1, pulled", b"1, lost"]
        assert [first.receive()[1] for _ in range(2)] == [b"2, pulled", b"2, lost"]
        # What the first sends to the second goes to nobody; the other way nothing is lost.
        deaf = f"{HOSTS[1]} lladdr 02:00:00:00:00:07 dev cable"
        networks[0].ip(f"neighbour replace {deaf} nud permanent")
        say(first, b"1, unheard")
        say(second, b"2, heard")
        assert first.receive() == (TO_ALL, b"2, heard")
        for node in (nodes[1], nodes[0]):
            is_lost(node)
        networks[0].ip(f"neighbour del {deaf}")
        wait_linked(nodes)
        assert second.receive() == (TO_ALL, b"1, unheard")
        say(second, b"2, again")
        assert first.receive() == (TO_ALL, b"2, again")
    for node in nodes:
        assert "links_violations" not in node.counters()
