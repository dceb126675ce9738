"""Nodes in a real etcd, in one process: they join, leave, crash, lose their lease or the store."""

import logging
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import etcd3gw
import pytest

from cluster.gateway.membership.entries import Entry, encode_entry
from cluster.gateway.membership.etcd_store import EtcdStore
from cluster.gateway.membership.membership import Membership, MembershipUser
from cluster.iocp import IocpCore
from cluster.shared.config import LinksConfig
from tests.etcd_server import EtcdServer, needs_etcd, run_etcd
from tests.support import wait_until

pytestmark = needs_etcd

LEASE_S = 60
SHORT_LEASE_S = 3
"""Of nodes whose lease is to end by itself, but not before they have it."""

LIVES = count(1)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with run_etcd(tmp_path / "etcd") as server:
        yield server


class StoredNode(MembershipUser):
    """One node's membership, on a core of its own that the test turns."""

    def __init__(self, url: str, name: str, node: int = 0, last: int = 0, lease_s: int = LEASE_S):
        self.core = IocpCore()
        self.name = name
        self.lives: list[int] = []
        self.changes: list[tuple[list[int], bool]] = []
        self.lost_to = ""
        links = LinksConfig(membership="etcd", etcd=[url], lease_s=lease_s, cluster="game")
        self.membership = Membership(
            links,
            self.core,
            lambda: EtcdStore(links.etcd, links.cluster, 1.0),
            lambda: next(LIVES),
            owner=name,
            node=node,
            last_node=last,
            first_epoch=100,
        )
        self.membership.user = self
        self.membership.start()

    def members_changed(self) -> None:
        self.changes.append((self.members, self.membership.is_member))

    def begin_life(self, life: int) -> None:
        assert not self.membership.is_member
        self.lives.append(life)

    def identity_lost(self, reason: str) -> None:
        self.lost_to = reason

    @property
    def members(self) -> list[int]:
        return [member.node for member in self.membership.members]

    def announce(self) -> None:
        self.membership.announce(f"127.0.0.1:{7800 + self.membership.node}")

    def leave(self) -> None:
        self.membership.close()
        self.core.close()

    def crash(self) -> None:
        """End without a word: the lease is left to end by itself."""
        self.membership._lease._has_lease = False
        self.leave()


class Nodes:
    """The nodes of a test, all turned by its thread."""

    def __init__(self, etcd: EtcdServer) -> None:
        self.etcd = etcd
        self.living: list[StoredNode] = []

    def begin(self, name: str, **options: int) -> StoredNode:
        self.living.append(StoredNode(self.etcd.url, name, **options))
        return self.living[-1]

    def join(self, name: str, **options: int) -> StoredNode:
        """Begin a node and wait until it is a member."""
        node = self.begin(name, **options)
        self.run(lambda: node.membership.has_id, "an id")
        node.announce()
        self.run(lambda: node.membership.is_member, "that it is a member")
        return node

    def end(self, node: StoredNode, *, crash: bool = False) -> None:
        self.living.remove(node)
        if crash:
            node.crash()
        else:
            node.leave()

    def run(self, until: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
        def holds() -> bool:
            for node in self.living:
                node.core.dispatch(0.002)
            return until()

        wait_until(holds, timeout_s=timeout_s, interval_s=0, what=what)


@pytest.fixture
def nodes(etcd: EtcdServer) -> Iterator[Nodes]:
    made = Nodes(etcd)
    yield made
    for node in made.living:
        node.leave()


def test_nodes_that_join_at_once_take_different_ids_and_see_each_other(nodes: Nodes):
    three = [nodes.begin(name) for name in "abc"]
    nodes.run(lambda: all(node.membership.has_id for node in three), "ids")
    assert sorted(node.membership.node for node in three) == [1, 2, 3]
    assert {node.membership.epoch for node in three} == {100}
    assert all(node.members == [] for node in three)  # nobody listens yet
    for node in three:
        node.announce()
    nodes.run(lambda: all(node.members == [1, 2, 3] for node in three), "the list")
    status = three[0].membership.status()
    assert (status.source, status.state, status.members) == ("etcd", "member", [1, 2, 3])
    assert status.lease_left_s is not None
    assert 0 < status.lease_left_s <= LEASE_S
    assert status.heard_s_ago is not None


@pytest.mark.parametrize("key", ["00000", "65536", "99999", "1", "000001", "00001x", "nobody"])
def test_what_stands_in_the_list_under_no_node_s_id_is_no_member(
    nodes: Nodes, etcd: EtcdServer, key: str
) -> None:
    client = etcd3gw.client(port=etcd.port, api_path="/v3/")
    entry = Entry(owner="nobody", life="ff", address="127.0.0.1:7800", takes_keys=True)
    client.put(f"iocp-cluster/game/nodes/{key}", encode_entry(entry))
    client.session.close()
    first, second = nodes.join("a"), nodes.join("b")
    nodes.run(lambda: first.members == second.members == [1, 2], "the list")


@pytest.mark.parametrize("address", ["a\x1b[31m:7800", "a\n2026-01-01 INFO:7800", "a\0b:7800", "a"])
def test_an_entry_with_an_address_that_no_node_writes_is_no_member(
    nodes: Nodes, etcd: EtcdServer, address: str
) -> None:
    """Addresses go to the log and to terminals."""
    client = etcd3gw.client(port=etcd.port, api_path="/v3/")
    entry = Entry(owner="nobody", life="ff", address=address, takes_keys=True)
    client.put("iocp-cluster/game/nodes/00009", encode_entry(entry))
    client.session.close()
    first, second = nodes.join("a"), nodes.join("b")
    nodes.run(lambda: first.members == second.members == [1, 2], "the list")


def test_who_leaves_is_gone_at_once_and_its_id_begins_another_epoch(nodes: Nodes):
    first, second = nodes.join("a"), nodes.join("b")
    nodes.run(lambda: first.members == [1, 2], "the list")
    nodes.end(second)
    nodes.run(lambda: first.members == [1], "a list without it")  # the watch told of it
    third = nodes.join("c")
    assert (third.membership.node, third.membership.epoch) == (2, 101)


def test_who_crashes_is_gone_when_its_lease_ends_unless_its_next_life_comes_before(nodes: Nodes):
    first, second = nodes.join("a"), nodes.join("b")
    nodes.run(lambda: first.members == [1, 2], "the list")
    first.changes.clear()
    nodes.end(second, crash=True)
    back = nodes.join("b")  # of the same run directory
    assert (back.membership.node, back.membership.epoch) == (2, 101)
    nodes.run(lambda: len(first.changes) > 0, "the other life")
    assert all(change == ([1, 2], True) for change in first.changes)  # it was never out of the list
    nodes.end(back, crash=True)
    third = nodes.join("c", lease_s=SHORT_LEASE_S)
    assert third.membership.node == 3
    nodes.end(third, crash=True)
    nodes.run(lambda: first.members == [1, 2], "a list without the third, whose lease has ended")


def logged(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """Return the levels of the lines of the log that begin with `what`."""
    return [each.levelname for each in caplog.records if each.getMessage().startswith(what)]


def test_a_lease_that_is_revoked_is_lost_and_the_node_comes_back_as_another_life(
    nodes: Nodes, etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cluster.gateway")
    first, second = nodes.join("a"), nodes.join("b")
    nodes.run(lambda: first.members == [1, 2], "the list")
    first.changes.clear()
    EtcdStore([etcd.url], "game", 10.0).leave(first.membership._lease_id)
    nodes.run(lambda: bool(first.lives), "the loss")
    assert first.changes == [([1, 2], False)]  # the last list stands
    nodes.run(lambda: first.membership.is_member, "another lease")
    life = first.membership.life
    assert first.lives == [life]
    assert first.changes == [([1, 2], False), ([1, 2], True)]
    nodes.run(lambda: second.membership.members[0].life == f"{life:016x}", "its life")
    assert (first.membership.node, first.membership.epoch) == (1, 100)
    assert logged(caplog, "node 1 has ") == ["ERROR", "INFO"]
    assert "node 1 has a lease again" in caplog.messages
    assert logged(caplog, "the store ") == []


def test_a_store_that_is_down_for_less_than_the_lease_is_not_noticed(
    nodes: Nodes, etcd: EtcdServer
) -> None:
    first, second = nodes.join("a", lease_s=30), nodes.join("b", lease_s=30)
    nodes.run(lambda: first.members == [1, 2], "the list")
    etcd.kill()
    second.membership._lease.list_changed()
    second.membership._turn()
    nodes.run(lambda: bool(second.membership.status().failures), "a failure")
    assert second.membership.status().reason.startswith(etcd.url)
    etcd.start()
    third = nodes.join("c", lease_s=30)
    nodes.run(lambda: first.members == second.members == [1, 2, 3], "the list")
    assert third.membership.node == 3
    assert first.lives == second.lives == []
    assert all(is_member for _, is_member in first.changes + second.changes)


def test_a_store_that_is_down_for_longer_costs_the_lease_and_nobody_s_life(
    nodes: Nodes, etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cluster.gateway")
    first = nodes.join("a", lease_s=SHORT_LEASE_S)
    nodes.run(lambda: first.members == [1], "the list")
    etcd.kill()
    nodes.run(lambda: not first.membership.is_member, "the end of the lease, by the clock")
    assert first.changes[-1] == ([1], False)
    assert first.membership.status().state == "lease_lost"
    etcd.start()
    nodes.run(lambda: first.membership.is_member, "the lease")
    assert first.changes[-1] == ([1], True)
    assert first.membership.status().failures == 0
    assert logged(caplog, "the store of the cluster's members") == ["WARNING", "INFO"]
    assert "the store of the cluster's members has answered again" in caplog.messages
    assert logged(caplog, "node 1 has ") == ["ERROR", "INFO"]


def test_an_id_that_another_node_has_taken_meanwhile_is_lost(nodes: Nodes, etcd: EtcdServer):
    first = nodes.join("a")
    store = EtcdStore([etcd.url], "game", 10.0)
    store.leave(first.membership._lease_id)
    other = nodes.begin("b")  # the first is not turned meanwhile
    wait_until(lambda: other.core.dispatch(0.01) and other.membership.has_id, what="its id")
    assert other.membership.node == 1
    nodes.run(lambda: bool(first.lost_to), "that it is lost")
    assert first.lost_to.startswith("node.id = 1 belongs to a node at")
    refused = nodes.begin("c", node=1)
    nodes.run(lambda: bool(refused.membership.taken), "the refusal")
    assert not refused.membership.has_id
