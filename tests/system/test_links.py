"""Nodes of one cluster, as processes: they find each other, again and again, and nobody else."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.applications.playground import ANNOUNCE, ECHO, FAREWELL, GREETING, TO_ALL
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import free_ports, wait_linked, write_configs
from tests.system.packet_client import PacketClient

APP = "tests.applications.playground:app"
ROOT = Path(__file__).parents[2]


def start(
    cluster_up: StartNode, tmp_path: Path, count: int, secrets: dict[int, str] | None = None
) -> list[ClusterNode]:
    with free_ports(count) as ports:
        configs = write_configs(tmp_path, ports, secrets)
        return [cluster_up("--config", str(config), "--app", APP, cwd=ROOT) for config in configs]


def greeted(stack: ExitStack, node: ClusterNode) -> PacketClient:
    client = stack.enter_context(PacketClient(node.port))
    assert client.receive()[0] == GREETING
    return client


def refusals(status: Any) -> dict[str, int]:
    return {
        name: count for name, count in status["counters"].items() if name.startswith("links_ref")
    }


def test_a_broadcast_reaches_the_clients_of_all_nodes_also_after_the_death_of_a_gateway(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    nodes = start(cluster_up, tmp_path, 3)
    wait_linked(nodes)
    with ExitStack() as stack:
        clients = [greeted(stack, node) for node in nodes]
        for number, client in enumerate(clients):
            client.send(TO_ALL, b"%d" % number)
        for client in clients:
            assert sorted(client.receive() for _ in range(3)) == [
                (TO_ALL, b"%d" % number) for number in range(3)
            ]
        gateway = nodes[1].status()["gateway"]["pid"]
        os.kill(gateway, signal.SIGKILL)
        nodes[1].wait_status(
            lambda status: (
                status["gateway"]["pid"] not in (gateway, None)
                and status["workers"][0]["state"] == "ready"
            ),
            "the next epoch",
        )
        wait_linked(nodes)
        clients[1] = greeted(stack, nodes[1])
        assert clients[1].ask(ECHO, b"") == (ECHO, b"")
        clients[0].send(TO_ALL, b"again")
        for client in clients:
            assert client.receive() == (TO_ALL, b"again")
    for node in nodes:
        status = node.status()
        assert "links_violations" not in status["counters"]
        assert refusals(status) == {}


def test_a_node_with_another_secret_is_refused_and_told_so(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    nodes = start(cluster_up, tmp_path, 2, {1: "another secret of the same length\n"})
    nodes[1].wait_status(lambda status: refusals(status).get("links_refused_proof", 0) > 1, "it")
    status = nodes[0].wait_status(lambda status: status["links"][0]["failures"] > 1, "failures")
    (link,) = status["links"]
    assert link["node"] == 2
    assert "secret" in link["reason"]
    assert nodes[1].status()["links"][0]["state"] == "awaited"


@pytest.mark.long
def test_what_a_drain_has_for_other_nodes_reaches_them(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    nodes = start(cluster_up, tmp_path, 2)
    wait_linked(nodes)
    with ExitStack() as stack:
        first, second = [greeted(stack, node) for node in nodes]
        assert first.ask(ANNOUNCE, b"")[0] == ANNOUNCE
        nodes[0].process.terminate()
        packet_id, told = second.receive()
        assert packet_id == FAREWELL
        assert told.endswith(b" drain")
    assert nodes[0].wait_exit() == 0


def test_a_secret_that_others_may_read_is_refused_with_the_remedy(
    cluster_up_unready: StartNode, tmp_path: Path
) -> None:
    (config,) = write_configs(tmp_path, [7800])
    text = config.read_text().replace('["1@', '["2@')
    config.write_text(text)
    secret = tmp_path / "secret1"
    secret.chmod(0o644)
    node = cluster_up_unready("--config", str(config))
    assert node.wait_exit() == 2
    assert "chmod 600" in node.told_reason()
    assert SECRET_TEXT not in node.stderr


SECRET_TEXT = "a secret of the cluster"
