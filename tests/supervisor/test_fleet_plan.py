"""What the nodes of `cluster up --nodes N` are told; their processes have a system test."""

from pathlib import Path

import pytest

from cluster.shared.config import (
    Config,
    ConfigError,
    LinksConfig,
    NodeConfig,
    RemoteConfig,
    WorkersConfig,
)
from cluster.supervisor import fleet_plan
from cluster.supervisor.fleet_plan import plan_nodes


def test_each_node_gets_an_id_an_address_and_a_folder_and_the_rest_is_the_same():
    config = Config(
        node=NodeConfig(id=5, listen="[::1]:9000", app="a:b"),
        workers=WorkersConfig(count=3),
        links=LinksConfig(cluster="game", timeout_s=3.0),
    )
    plans = plan_nodes(config, Path("/base"), [41, 42], Path("/base/secret"))
    for index, (node, run_directory) in enumerate(plans):
        assert run_directory == Path(f"/base/node-{5 + index}")
        assert node.node == NodeConfig(
            id=5 + index, listen=f"[::1]:{9000 + index}", app="a:b", run_dir=str(run_directory)
        )
        assert node.links == LinksConfig(
            cluster="game",
            timeout_s=3.0,
            listen=f"127.0.0.1:{41 + index}",
            secret_file="/base/secret",
            nodes=["5@127.0.0.1:41", "6@127.0.0.1:42"],
        )
        assert (node.workers, node.gateway, node.lane) == (
            config.workers,
            config.gateway,
            config.lane,
        )


def test_port_0_is_a_free_one_for_each():
    config = Config(node=NodeConfig(listen="127.0.0.1:0"))
    plans = plan_nodes(config, Path("/base"), [41, 42, 43], Path("/secret"))
    assert [node.node.listen for node, _ in plans] == ["127.0.0.1:0"] * 3


def test_where_there_is_no_loopback_address_for_the_links_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fleet_plan, "_PRIVATE_HOST", "192.0.2.1")
    told = pytest.raises(ConfigError, match=r"--nodes: cannot listen at 192\.0\.2\.1, .*links")
    with told, fleet_plan.private_ports(2):
        pass


def test_a_shared_port_is_the_same_for_all():
    config = Config(node=NodeConfig(listen="127.0.0.1:65535", shared_port=True))
    plans = plan_nodes(config, Path("/base"), [41, 42, 43], Path("/secret"))
    assert [node.node.listen for node, _ in plans] == ["127.0.0.1:65535"] * 3
    assert all(node.node.shared_port for node, _ in plans)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Config(node=NodeConfig(id=65_534)), "node.id"),
        (Config(node=NodeConfig(listen="127.0.0.1:65534")), "node.listen"),
        (Config(links=LinksConfig(listen="127.0.0.1:1")), "links.listen"),
        (Config(remote=RemoteConfig(listen="127.0.0.1:1")), "remote.listen"),
    ],
)
def test_what_leaves_no_room_is_told(config: Config, key: str):
    with pytest.raises(ConfigError, match=key):
        plan_nodes(config, Path("/base"), [41, 42, 43], Path("/secret"))
