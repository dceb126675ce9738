"""Nodes whose list is kept by a real etcd, as processes: the cluster grows, shrinks, and heals."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import etcd3gw

from tests.applications.playground import GREETING, TO_ALL
from tests.etcd_server import EtcdServer, needs_etcd, run_etcd
from tests.system.cluster_node import ROOT, ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import SECRET
from tests.system.packet_client import PacketClient

pytestmark = needs_etcd

APP = "tests.applications.playground:app"


def start(cluster_up: StartNode, tmp_path: Path, etcd: EtcdServer) -> ClusterNode:
    """Start a node that knows nothing but the store."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    config = tmp_path / "node.toml"
    config.write_text(
        f"""
        [workers]
        count = 1
        spares = 0
        [links]
        cluster = "game"
        listen = "127.0.0.1:0"
        secret_file = "{secret}"
        membership = "etcd"
        etcd = ["{etcd.url}"]
        lease_s = 2
        """
    )
    return cluster_up("--config", str(config), "--app", APP, cwd=ROOT)


def wait_members(nodes: list[ClusterNode]) -> None:
    """Wait until each of `nodes` is a member, knows the others and nobody else, and has links."""
    ids = sorted(int(node.ready["node"]) for node in nodes)
    for node in nodes:
        others = [each for each in ids if each != int(node.ready["node"])]
        node.wait_status(
            lambda status, others=others: (
                status["membership"]["state"] == "member"
                and status["membership"]["members"] == ids
                and [(link["node"], link["state"]) for link in status["links"]]
                == [(other, "linked") for other in others]
            ),
            f"the members {ids}, linked",
        )


def check_broadcast(nodes: list[ClusterNode]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(PacketClient(node.port)) for node in nodes]
        for client in clients:
            assert client.receive()[0] == GREETING
        clients[0].send(TO_ALL, b"to everybody")
        for client in clients:
            assert client.receive() == (TO_ALL, b"to everybody")


def test_a_cluster_grows_and_shrinks(cluster_up: StartNode, tmp_path: Path) -> None:
    with run_etcd(tmp_path / "etcd") as etcd:
        nodes = [start(cluster_up, tmp_path, etcd) for _ in range(2)]
        assert [node.ready["node"] for node in nodes] == ["1", "2"]
        wait_members(nodes)
        nodes.append(start(cluster_up, tmp_path, etcd))
        assert nodes[2].ready["node"] == "3"
        wait_members(nodes)
        check_broadcast(nodes)
        status = nodes[0].status_command()
        assert status["membership"]["source"] == "etcd"
        assert 0 < status["membership"]["lease_left_s"] <= 2
        epoch, gateway = status["epoch"], status["gateway"]["pid"]
        os.kill(gateway, signal.SIGKILL)  # its next life takes its own place again
        nodes[0].wait_status(
            lambda status: (
                status["gateway"]["pid"] not in (gateway, None)
                and status["workers"][0]["state"] == "ready"
            ),
            "the next epoch",
        )
        wait_members(nodes)
        assert (nodes[0].status()["node"], nodes[0].status()["epoch"]) == (1, epoch + 1)
        nodes.pop(1).close()  # the whole node dies
        wait_members(nodes)
        assert nodes[1].drain() == 0
        wait_members(nodes[:1])
        check_broadcast(nodes[:1])


def test_links_outlive_the_store_and_who_loses_its_lease_comes_back(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    with run_etcd(tmp_path / "etcd") as etcd:
        nodes = [start(cluster_up, tmp_path, etcd) for _ in range(2)]
        wait_members(nodes)
        etcd.kill()
        for node in nodes:
            node.wait_status(
                lambda status: status["membership"]["state"] == "lease_lost", "the lost lease"
            )
        check_broadcast(nodes)
        status = nodes[0].status()["membership"]
        assert status["members"] == [1, 2]
        assert status["failures"] > 0
        etcd.start()
        wait_members(nodes)
        check_broadcast(nodes)
        client = etcd3gw.client(port=etcd.port, api_path="/v3/")
        lost = [node.status()["counters"].get("links_lost", 0) for node in nodes]
        assert lost == [0, 0]
        client.delete("iocp-cluster/game/nodes/00002")
        nodes[0].wait_status(
            lambda status: status["counters"].get("nodes_left"), "that it has seen it leave"
        )
        client.session.close()
        wait_members(nodes)
        check_broadcast(nodes)
        assert nodes[1].status()["counters"]["membership_lost"] == 2
        assert "links_violations" not in nodes[0].status()["counters"]
        assert [node.drain() for node in nodes] == [0, 0]
