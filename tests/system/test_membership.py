"""Nodes whose list is kept by a real etcd, as processes: the cluster grows, shrinks, and heals."""

import os
import signal
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import etcd3gw
import pytest

from cluster.gateway.membership.entries import Entry, encode_entry
from cluster.shared.key_files import make_key_files
from tests.applications.playground import GREETING, TO_ALL
from tests.certificates import needs_openssl, self_signed
from tests.etcd_server import EtcdServer, EtcdUsers, needs_etcd, run_etcd
from tests.system.cluster_node import ROOT, ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import write_etcd_config
from tests.system.packet_client import PacketClient

pytestmark = needs_etcd

APP = "tests.applications.playground:app"


def start(
    cluster_up: StartNode, tmp_path: Path, etcd: EtcdServer, lease_s: int = 2, more: str = ""
) -> ClusterNode:
    """Start a node that knows nothing but the store; `more` is more of its configuration."""
    config = write_etcd_config(tmp_path, etcd, lease_s, more)
    return cluster_up("--config", str(config), "--app", APP, cwd=ROOT)


def told(status: Any, key: str) -> Any:
    """Return what a status tells of the membership; None where only the supervisor answers."""
    return (status["membership"] or {}).get(key)


def wait_members(nodes: list[ClusterNode]) -> None:
    """Wait until each of `nodes` is a member, knows the others and nobody else, and has links."""
    ids = sorted(int(node.ready["node"]) for node in nodes)
    for node in nodes:
        others = [each for each in ids if each != int(node.ready["node"])]
        node.wait_status(
            lambda status, others=others: (
                told(status, "state") == "member"
                and told(status, "members") == ids
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
        status = nodes[0].wait_status(lambda status: told(status, "lease_left_s"), "the lease")
        assert told(status, "source") == "etcd"
        assert told(status, "lease_left_s") <= 2
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
        status = nodes[0].wait_status(lambda status: status["counters"], "the gateway")
        assert (status["node"], status["epoch"]) == (1, epoch + 1)
        nodes.pop(1).close()  # the whole node dies
        wait_members(nodes)
        assert nodes[1].drain() == 0
        wait_members(nodes[:1])
        check_broadcast(nodes[:1])


@pytest.mark.parametrize("key", ["node.listen", "remote.listen"])
def test_a_node_that_cannot_listen_leaves_at_once(
    cluster_up: StartNode, cluster_up_unready: StartNode, tmp_path: Path, key: str
) -> None:
    with run_etcd(tmp_path / "etcd") as etcd:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            if key == "node.listen":
                more, listen = "", address
            else:
                make_key_files(tmp_path / "keys")
                more, listen = (
                    f"""
                    [remote]
                    listen = "{address}"
                    keys_dir = "{tmp_path / "keys"}"
                    shards = [0]
                    """,
                    "127.0.0.1:0",
                )
            unready = partial(cluster_up_unready, listen=listen)
            node = start(unready, tmp_path, etcd, lease_s=60, more=more)
            assert node.wait_exit() == 2
            assert f"cannot listen at {address}" in node.told_reason()
        # Nobody holds its id.
        assert start(cluster_up, tmp_path, etcd).ready["node"] == "1"


@needs_openssl
def test_nodes_prove_who_they_are_to_an_etcd_that_asks(
    cluster_up: StartNode, cluster_up_unready: StartNode, tmp_path: Path
) -> None:
    self_signed(tmp_path)
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text("of game")
    certificates = f"""
        etcd_ca_file = "{tmp_path / "certificate"}"
        etcd_certificate_file = "{tmp_path / "certificate"}"
        etcd_key_file = "{tmp_path / "key"}"
    """
    user = f"""
        etcd_user = "game"
        etcd_password_file = "{password}"
    """
    with run_etcd(tmp_path / "etcd", tmp_path) as etcd:
        users = EtcdUsers(etcd)
        users.enable()
        nodes = [start(cluster_up, tmp_path, etcd, more=certificates + user) for _ in range(2)]
        wait_members(nodes)
        password.write_text("another")
        users.change_password("game", "another")
        nodes.append(start(cluster_up, tmp_path, etcd, more=certificates + user))
        wait_members(nodes)
        check_broadcast(nodes)
        password.chmod(0o644)
        node = start(cluster_up_unready, tmp_path, etcd, more=certificates + user)
        assert node.wait_exit() == 2
        assert f"links.etcd_password_file = {password}: others may" in node.told_reason()


@pytest.mark.long
def test_links_outlive_the_store_and_who_loses_its_lease_comes_back(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    with run_etcd(tmp_path / "etcd") as etcd:
        nodes = [start(cluster_up, tmp_path, etcd, lease_s=3) for _ in range(2)]
        wait_members(nodes)
        etcd.kill()
        for node in nodes:
            node.wait_status(lambda status: told(status, "state") == "lease_lost", "the lost lease")
        check_broadcast(nodes)
        status = nodes[0].wait_status(lambda status: told(status, "failures"), "failures")
        assert told(status, "members") == [1, 2]
        etcd.start()
        wait_members(nodes)
        check_broadcast(nodes)
        client = etcd3gw.client(port=etcd.port, api_path="/v3/")
        for node in nodes:
            status = node.wait_status(lambda status: status["counters"], "counters")
            assert "links_lost" not in status["counters"]
        client.delete("iocp-cluster/game/nodes/00002")
        # It takes its place again at once: the other may read the list only when it is back.
        status = nodes[1].wait_status(
            lambda status: status["counters"].get("membership_lost", 0) >= 2, "that it has lost it"
        )
        nodes[0].wait_status(
            lambda status: {"nodes_left", "links_lost"} & status["counters"].keys(),
            "that the other has begun anew",
        )
        wait_members(nodes)
        assert "links_violations" not in status["counters"]
        # Another node takes its id: it ends this epoch, and goes on as a node of another id.
        foreign = Entry(owner="another", life="ff", address="127.0.0.1:9", takes_keys=True)
        client.put("iocp-cluster/game/nodes/00002", encode_entry(foreign))
        client.session.close()
        status = nodes[1].wait_status(
            lambda status: status["node"] == 3 and told(status, "state") == "member", "node 3"
        )
        assert told(status, "members") == [1, 2, 3]
        assert "belongs to a node at 127.0.0.1:9" in nodes[1].stderr
