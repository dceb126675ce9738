"""Keys move between nodes, as processes, whose workers die at each instant: nothing counts twice.

Also what others hear of a node that begins anew.
"""

import json
import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.applications.moving_keys import KEYS, SHOW, TELL
from tests.etcd_server import EtcdServer, needs_etcd, run_etcd
from tests.support import wait_until
from tests.system.cluster_node import ROOT, ClusterNode
from tests.system.conftest import StartNode
from tests.system.linked_nodes import free_ports, wait_linked, write_configs, write_etcd_config
from tests.system.packet_client import PacketClient

APP = "tests.applications.moving_keys:app"
INSTANTS = ["told", "before save", "behind save", "on_keys", "handed over"]
NOTES_MAX = 5_000


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    """The directory in which workers say that they die."""
    path = tmp_path / "deaths"
    path.mkdir()
    return path


class Teller:
    """A client that tells notes, one after the other."""

    def __init__(self, port: int) -> None:
        self.client = PacketClient(port)
        self.told = 0
        self.news: list[Any] = []
        """What it has heard of keys."""

    def tell(self) -> None:
        """Tell one note; it is committed on return."""
        self.told += 1
        assert self.told <= NOTES_MAX
        assert self._ask(TELL, b"%d" % self.told) == b"%d" % self.told

    def show(self) -> dict[str, int]:
        """Return what the client's shard keeps."""
        counts: dict[str, int] = json.loads(self._ask(SHOW, b""))
        return counts

    def has_news(self) -> bool:
        """Whether anything is to be heard of keys."""
        self._ask(SHOW, b"")
        return bool(self.news)

    def _ask(self, packet_id: int, payload: bytes) -> bytes:
        self.client.send(packet_id, payload)
        while True:
            found, answer = self.client.receive()
            if found != KEYS:
                assert found == packet_id
                return answer
            self.news.append(json.loads(answer))

    def close(self) -> None:
        self.client.socket.close()


def wait_all(tellers: list[Teller], told: int) -> int:
    """Wait until each note counts, at one of the nodes of `tellers`, or is undelivered.

    None counts twice. Returns how many count.
    """
    seen: list[Counter[str]] = []

    def is_complete() -> bool:
        counts: Counter[str] = Counter()
        for teller in tellers:
            counts.update(teller.show())
        seen[:] = [counts]
        return {abs(int(name)) for name in counts} == {*range(1, told + 1)}

    wait_until(is_complete, timeout_s=30, interval_s=0.1, what=f"{told} notes")
    assert set(seen[0].values()) == {1}
    return sum(int(name) > 0 for name in seen[0])


def died(deaths: Path, node: int) -> set[str]:
    return {path.name.partition(" ")[2] for path in deaths.glob(f"{node} *")}


def test_a_list_of_nodes_tells_who_began_anew_whatever_workers_die(
    cluster_up: StartNode, tmp_path: Path, deaths: Path
) -> None:
    with free_ports(2) as ports:
        nodes = [
            cluster_up("--config", str(path), "--app", APP, cwd=ROOT, env={"DEATHS": str(deaths)})
            for path in write_configs(tmp_path, ports)
        ]
    wait_linked(nodes)
    with ExitStack() as stack:
        one, two = [Teller(node.port) for node in nodes]
        for teller in (one, two):
            stack.callback(teller.close)
        for _ in range(200):
            one.tell()
        assert wait_all([one, two], 200) == 200
        for node in (1, 2):
            assert died(deaths, node) >= {"before save", "behind save"}
        assert one.news == two.news == []
        kept = len(one.show())
        os.kill(nodes[1].status()["gateway"]["pid"], signal.SIGKILL)
        two.client.receive_end()
        wait_until(one.has_news, timeout_s=30, interval_s=0.05, what="the news")
        wait_linked(nodes)
        assert one.news == [[[1, 2], [2]]], "once, although the worker died twice of it"
        assert died(deaths, 1) == set(INSTANTS)
        assert len(one.show()) == kept
        again = Teller(nodes[1].port)
        stack.callback(again.close)
        assert (again.show(), again.news) == ({}, [])
        assert "lane_violations" not in nodes[0].counters()


def start(start_node: StartNode, tmp_path: Path, etcd: EtcdServer, deaths: Path) -> ClusterNode:
    config = write_etcd_config(tmp_path, etcd, lease_s=10)
    arguments = ("--config", str(config), "--app", APP)
    return start_node(*arguments, cwd=ROOT, env={"DEATHS": str(deaths)})


@needs_etcd
def test_each_note_counts_once_while_nodes_join_and_leave_and_workers_die(
    cluster_up: StartNode, cluster_up_unready: StartNode, tmp_path: Path, deaths: Path
) -> None:
    with run_etcd(tmp_path / "etcd") as etcd, ExitStack() as stack:
        nodes = [start(cluster_up, tmp_path, etcd, deaths) for _ in range(2)]
        wait_linked(nodes)
        one = Teller(nodes[0].port)
        stack.callback(one.close)
        for _ in range(100):
            one.tell()
        three = start(cluster_up_unready, tmp_path, etcd, deaths)  # keys move as it tells
        while not one.news or len(one.news[-1][0]) < 3:
            one.tell()
        three.wait_ready()
        wait_linked([*nodes, three])
        nodes[1].signal(signal.SIGTERM)  # and move again, what node 2 has handed over as well
        while len(one.news[-1][0]) == 3:
            one.tell()
        for _ in range(50):
            one.tell()
        assert nodes[1].wait_exit() == 0
        last = Teller(three.port)
        stack.callback(last.close)
        # What came when the node had gone already, before others heard of that, is undelivered.
        counted = wait_all([one, last], one.told)
        assert counted >= one.told - nodes[0].counters().get("tells_undelivered", 0)
        assert one.show()
        assert last.show()
        assert died(deaths, 1) == set(INSTANTS)
        assert died(deaths, 2) >= {"on_keys", "handed over"}
        assert died(deaths, 3) >= {"before save", "behind save"}
        for node in (nodes[0], three):
            assert "lane_violations" not in node.counters()
