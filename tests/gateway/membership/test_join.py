"""A node takes its place before its gateway is made, or says in one line why it cannot."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gateway.membership import join
from cluster.gateway.membership.etcd_store import EtcdStore, StoreMissingError
from cluster.gateway.membership.join import JoinError, join_cluster
from cluster.iocp import IocpCore
from cluster.shared.config import Config, LinksConfig, NodeConfig
from cluster.shared.run_directory import RunDirectory
from tests.etcd_server import needs_etcd, run_etcd


@pytest.fixture
def core() -> Iterator[IocpCore]:
    made = IocpCore()
    yield made
    made.close()


def config_of(url: str, node: int = 0) -> Config:
    links = LinksConfig(membership="etcd", etcd=[url], lease_s=1)
    return Config(node=NodeConfig(id=node), links=links)


def directory_at(path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.create()
    return directory


def test_without_the_client_library_the_remedy_is_told(
    tmp_path: Path, core: IocpCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "etcd3gw", None)
    with pytest.raises(StoreMissingError, match=r"pip install 'iocp-cluster\[etcd\]'"):
        join_cluster(config_of("http://127.0.0.1:1"), directory_at(tmp_path / "run"), core, 1)


def test_a_store_that_does_not_answer_is_named(
    tmp_path: Path, core: IocpCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("etcd3gw")
    monkeypatch.setattr(join, "STORE_WITHIN_S", 0.5)
    with pytest.raises(JoinError) as told:
        join_cluster(config_of("http://127.0.0.1:1"), directory_at(tmp_path / "run"), core, 1)
    assert "no store has let this node in within 0.5 s (http://127.0.0.1:1: " in str(told.value)
    assert "\n" not in str(told.value)


@needs_etcd
def test_a_run_directory_keeps_its_id_and_an_id_of_another_is_refused(
    tmp_path: Path, core: IocpCore
) -> None:
    with run_etcd(tmp_path / "etcd") as etcd:
        mine = directory_at(tmp_path / "mine")
        first = join_cluster(config_of(etcd.url), mine, core, 7)
        assert (first.node, first.epoch) == (1, 7)
        first.close()
        store = EtcdStore([etcd.url], "cluster", 1.0)
        other = join_cluster(config_of(etcd.url), directory_at(tmp_path / "other"), core, 7)
        assert (other.node, other.epoch) == (1, 8)
        again = join_cluster(config_of(etcd.url), mine, core, 8)
        assert (again.node, again.epoch) == (2, 8)
        again.close()
        again = join_cluster(config_of(etcd.url), mine, core, 9)
        assert (again.node, again.epoch) == (2, 9)
        with pytest.raises(JoinError, match=r"node.id = 2 belongs to a node at .*; give each"):
            join_cluster(config_of(etcd.url, 2), directory_at(tmp_path / "third"), core, 7)
        for membership in (other, again):
            membership.close()
        assert store.read() == []
        store.close()
