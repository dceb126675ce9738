"""What a gateway has of other nodes: nothing where it stands alone, else links and keys."""

from collections.abc import Iterator

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.other_nodes import OtherNodes
from cluster.iocp import IocpCore
from cluster.iocp.driver.memory import MemoryDriver
from cluster.shared.config import Config, LinksConfig, NodeConfig
from cluster.shared.node_status import MembershipStatus


@pytest.fixture
def core() -> Iterator[IocpCore]:
    made = IocpCore(driver=MemoryDriver())
    yield made
    made.close()


def make_others(
    core: IocpCore, links: LinksConfig, secret: bytes | None
) -> tuple[OtherNodes, NodeTraffic]:
    config = Config(node=NodeConfig(id=2), links=links)
    counters = Counters()
    traffic = NodeTraffic(2, counters)
    return OtherNodes(config, core, traffic, counters, 5, secret, None), traffic


def test_a_node_that_stands_alone_has_nobody_to_listen_for_and_nobody_to_tell(core: IocpCore):
    others, traffic = make_others(core, LinksConfig(), None)
    others.start()
    others.announce(takes_keys=True)
    assert others.links is None
    assert traffic.members.nodes == (2,)
    assert others.link_status() == []
    assert others.membership_status() is None
    others.end(core.now() + 5)
    others.close()


def test_the_nodes_of_a_list_are_the_members_and_all_own_keys(core: IocpCore):
    links = LinksConfig(listen="127.0.0.1:7001", nodes=["3@127.0.0.1:7002", "1@127.0.0.1:7003"])
    others, traffic = make_others(core, links, b"s" * 32)
    others.start()
    assert traffic.links is others.links
    assert traffic.members.nodes == (1, 2, 3)
    assert sorted(status.node for status in others.link_status()) == [1, 3]
    assert others.membership_status() == MembershipStatus(
        source="static", state="member", members=[1, 2, 3]
    )
    others.end(core.now() + 5)
    assert others.links is not None
    assert others.links.is_over
    others.close()
