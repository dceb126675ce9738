"""What a change of the members does to the keys and the links of a node."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.membership.cluster_members import ClusterMembers, IdentityLostError
from cluster.gateway.membership.membership import Member, Membership
from cluster.gateway.node_traffic import NodeTraffic
from cluster.iocp import NetAddress


class FakeLinks:
    """Writes down what is done to the links."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.calls: list[Any] = []

    def add_node(self, node: int, address: NetAddress) -> bool:
        self.calls.append(("add", node, str(address)))
        self.nodes = sorted({*self.nodes, node})
        return True

    def remove_node(self, node: int) -> None:
        self.calls.append(("remove", node))
        self.nodes.remove(node)

    def begin_life(self, life: int) -> None:
        self.calls.append(("life", life))


class Node:
    """Node 2, whose members a test sets."""

    def __init__(self) -> None:
        self.links = FakeLinks()
        self.counters = Counters()
        self.traffic = NodeTraffic(2, self.counters)
        self.membership = SimpleNamespace(members=[], is_member=False, user=None)
        self.user = ClusterMembers(
            cast(Membership, self.membership), cast(Any, self.links), self.traffic, self.counters
        )
        self.owners: list[tuple[tuple[int, ...], list[int]]] = []
        self.traffic.on_members(
            lambda members: self.owners.append((members.nodes, self.links.nodes.copy()))
        )

    def become(self, *nodes: int, is_member: bool = True, draining: int = 0) -> None:
        self.membership.members = [
            Member(node, NetAddress("10.0.0.1", 7800 + node), "ff", node != draining)
            for node in nodes
        ]
        self.membership.is_member = is_member
        self.links.calls.clear()
        self.membership.user.members_changed()

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


@pytest.fixture
def node() -> Node:
    return Node()


def test_before_the_store_has_the_node_it_owns_nothing(node: Node):
    assert (node.traffic.members.nodes, node.traffic.members.others) == ((), (2,))


def test_keys_are_owned_anew_while_there_is_a_link_to_each_node_before_and_after(node: Node):
    node.become(1, 2, 3)
    assert set(node.links.calls) == {("add", 1, "10.0.0.1:7801"), ("add", 3, "10.0.0.1:7803")}
    node.become(2, 3, 4)
    assert node.owners == [((1, 2, 3), [1, 3]), ((2, 3, 4), [1, 3, 4])]
    assert set(node.links.calls) == {
        ("add", 3, "10.0.0.1:7803"),
        ("add", 4, "10.0.0.1:7804"),
        ("remove", 1),
    }
    assert node.links.nodes == [3, 4]
    assert (node.count("nodes_joined"), node.count("nodes_left")) == (3, 1)


def test_a_node_without_a_lease_knows_no_owner_of_keys_and_keeps_links_and_users(node: Node):
    node.become(1, 2, 3, 4, draining=4)
    assert node.traffic.members[1:] == ((1, 2, 3), (4,), (1, 2, 3))
    node.become(1, 2, 3)
    node.become(1, 2, 3, is_member=False)
    assert node.traffic.members[1:] == ((), (1, 2, 3), (1, 2, 3))
    assert node.links.calls == []
    assert node.links.nodes == [1, 3]
    assert node.count("membership_lost") == 1
    node.become(2, 3)
    assert node.traffic.members.nodes == (2, 3)
    assert node.links.nodes == [3]


def test_a_node_that_drains_is_linked_and_owns_nothing(node: Node):
    node.become(1, 2, 3, draining=3)
    assert (node.traffic.members.nodes, node.traffic.members.others) == ((1, 2), (3,))
    assert node.links.nodes == [1, 3]


def test_another_life_is_one_for_the_links_and_a_lost_id_ends_this_one(node: Node):
    node.user.begin_life(77)
    assert node.links.calls == [("life", 77)]
    with pytest.raises(IdentityLostError, match="node 5 has it"):
        node.user.identity_lost("node 5 has it")
