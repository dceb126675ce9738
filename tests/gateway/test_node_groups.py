"""Publishes to groups across nodes: who gets them, once and in order, and who is not even asked."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import BROADCAST, make_record
from tests.gateway.linked_worlds import LinkedWorlds
from tests.gateway.test_groups_across_shards import join, leave, publish
from tests.gateway.world import ScriptedWorker
from tests.iocp.peers import Peer


class Cluster:
    """Linked nodes with one worker each, and clients."""

    def __init__(self, count: int, **options: Any) -> None:
        self.nodes = LinkedWorlds(count, **options)
        self.workers: dict[int, ScriptedWorker] = {}
        for node in self.nodes.worlds:
            self.start_worker(node)
        self.nodes.run_linked()

    def start_worker(self, node: int) -> None:
        self.workers[node] = self.nodes[node].start_worker()

    def connect(self, node: int) -> tuple[int, Peer]:
        """Return the id of a new session at `node`, and its client."""
        world = self.nodes[node]
        peer = world.connect()
        return world.newest().id, peer

    def members(self, *nodes: int, name: str = "room") -> list[Peer]:
        """Have a member of a group at each of `nodes`, known everywhere."""
        peers = []
        for node in nodes:
            session, peer = self.connect(node)
            self.do(node, join(session, name))
            peers.append(peer)
        self.nodes.run_linked()
        return peers

    def do(self, node: int, *records: bytes) -> None:
        """Let what the worker of `node` publishes take effect there."""
        worker, world = self.workers[node], self.nodes[node]
        worker.read()
        worker.commit(*records)
        lane, serial = world.lanes[0], worker.lane.serial_published
        self.nodes.run(lambda: lane.serial_applied == serial, "the batch")

    def count(self, node: int, name: str) -> int:
        return self.nodes[node].count(name)


@pytest.fixture
def three() -> Iterator[Cluster]:
    cluster = Cluster(3)
    yield cluster
    cluster.nodes.close()


def test_a_publish_reaches_members_everywhere_by_one_copy_for_each_node_that_has_any(
    three: Cluster,
):
    peers = three.members(1, 2, 2)
    bystander = three.connect(3)[1]
    three.do(1, publish(b"hello"))
    three.nodes.run_linked()
    assert [bytes(peer.received) for peer in peers] == [b"hello"] * 3
    assert not bystander.received
    assert three.count(1, "publishes_to_other_nodes") == 1
    assert three.count(2, "publishes_of_other_nodes") == 1
    assert three.count(3, "publishes_of_other_nodes") == 0


def test_who_publishes_is_left_out_at_home_alone(three: Cluster):
    (other,) = three.members(2)
    session, own = three.connect(1)
    three.do(1, join(session), publish(b"hello", excluded=session))
    three.nodes.run_linked()
    assert not own.received
    assert other.received == b"hello"


def test_a_node_whose_last_member_is_gone_is_sent_nothing(three: Cluster):
    first, leaver = three.connect(2)
    second, ender = three.connect(2)
    three.do(2, join(first), join(second))
    three.nodes.run_linked()
    three.do(2, leave(first))
    three.nodes.run_linked()
    three.do(1, publish(b"one"))
    three.nodes.run_linked()
    assert (bytes(leaver.received), bytes(ender.received)) == (b"", b"one")
    ender.reset()
    three.nodes.run(lambda: second not in three.nodes[2].table.sessions, "its end")
    three.nodes.run_linked()
    three.do(1, publish(b"two"))
    three.nodes.run_linked()
    assert three.count(1, "publishes_to_other_nodes") == 1


def test_what_a_sender_has_for_a_group_and_for_everybody_comes_in_order(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cluster.gateway.node_fan_outs.FAN_OUT_SLICE", 2)
    peers = three.members(2, 2, 2, 2, 2)
    wanted = b""
    records = []
    for number in range(20):
        packet = make_packet(number, b"x")
        wanted += packet
        records.append(make_record(BROADCAST, 0, packet) if number % 3 == 1 else publish(packet))
    three.do(1, *records)
    three.nodes.run_linked()
    assert [bytes(peer.received) for peer in peers] == [wanted] * 5


def test_a_cut_loses_and_doubles_nothing(three: Cluster):
    (peer,) = three.members(2)
    for number in range(10):
        three.do(1, publish(b"%d" % number))
        three.nodes.cut(number % 2 + 1, 2 - number % 2)
        three.nodes.run_for(0.03)
    three.nodes.run_linked()
    assert peer.received == b"0123456789"
    assert three.count(1, "links_lost") > 0


def test_what_is_joined_and_left_during_a_cut_is_known_behind_it(three: Cluster):
    first, leaver = three.connect(2)
    three.do(2, join(first))
    three.nodes.run_linked()
    three.nodes.cut(1, 2)
    three.nodes.run(lambda: not three.nodes.links(2).is_linked(1), "the cut")
    second, joiner = three.connect(2)
    three.do(2, leave(first), join(second, "hall"))
    three.nodes.run_linked()
    three.do(1, publish(b"room"), publish(b"hall", "hall"))
    three.nodes.run_linked()
    assert (bytes(leaver.received), bytes(joiner.received)) == (b"", b"hall")


def test_a_node_that_begins_anew_is_told_all_and_has_nothing_of_before(three: Cluster):
    survivors = three.members(1, 1, 1)
    three.members(2)
    three.nodes.kill(2)
    three.nodes.begin(2)
    three.start_worker(2)
    # The first moment: it has not been told of any group yet.
    three.nodes.run(lambda: three.nodes.links(2).is_linked(1), "the link")
    three.do(2, publish(b"early"))
    three.nodes.run_linked()
    three.do(2, publish(b"late"))
    three.nodes.run_linked()
    three.do(1, publish(b"back"))
    three.nodes.run_linked()
    assert [bytes(peer.received) for peer in survivors] == [b"earlylateback"] * 3
    assert three.count(2, "publishes_of_other_nodes") == 0
    (newcomer,) = three.members(2)
    three.do(1, publish(b"again"))
    three.nodes.run_linked()
    assert newcomer.received == b"again"


def test_a_node_that_has_left_the_list_is_sent_nothing(three: Cluster):
    three.members(2)
    three.nodes.links(1).remove_node(2)
    three.do(1, publish(b"hello"))
    assert three.count(1, "publishes_to_other_nodes") == 0
    assert three.count(1, "links_unlisted") == 0


def test_what_finds_a_log_full_is_counted_and_the_rest_arrives():
    cluster = Cluster(2, retained_bytes_max=10_000)
    try:
        (peer,) = cluster.members(2)
        cluster.nodes.cut(1, 2)
        cluster.nodes.run(lambda: not cluster.nodes.links(1).is_linked(2), "the cut")
        cluster.do(1, *[publish(b"%d" % number + bytes(3_000)) for number in range(5)])
        assert cluster.count(1, "links_full") == 2
        cluster.nodes.run_linked()
        assert bytes(peer.received) == b"".join(b"%d" % each + bytes(3_000) for each in range(3))
    finally:
        cluster.nodes.close()


def test_a_full_log_delays_what_others_are_told_of_groups():
    cluster = Cluster(2, retained_bytes_max=10_000)
    try:
        cluster.members(2)
        session, peer = cluster.connect(1)
        cluster.do(1, publish(bytes(9_900)), join(session, "hall"))
        cluster.nodes.run(lambda: cluster.count(1, "links_full"), "the full log")
        cluster.nodes.run_for(0.5)
        cluster.do(2, publish(b"hello", "hall"))
        cluster.nodes.run_linked()
        assert peer.received == b"hello"
    finally:
        cluster.nodes.close()


def test_thousands_of_groups_are_told_to_a_node_that_begins(three: Cluster):
    names = [f"{number:0250}" for number in range(1_500)]
    peers = []
    for part in (names[:750], names[750:]):
        session, peer = three.connect(1)
        three.do(1, *[join(session, name) for name in part])
        peers.append(peer)
    three.nodes.run_linked()
    three.nodes.kill(3)
    three.nodes.begin(3)
    three.start_worker(3)
    three.nodes.run_linked()
    for node in (2, 3):
        three.do(node, *[publish(b"x", name) for name in (*names, "nobody's")])
    three.nodes.run_linked()
    assert [bytes(peer.received) for peer in peers] == [b"x" * 1_500] * 2
    assert three.count(1, "publishes_of_other_nodes") == 3_000


@pytest.mark.parametrize("record", [b"\2", b"\2\4roo", b"\3", b"\3\1\1\5room"])
def test_what_cannot_be_read_is_counted_and_settled(three: Cluster, record: bytes):
    three.nodes.links(1).send(2, record)
    three.nodes.run_linked()
    assert three.count(2, "links_unreadable_records") == 1


def test_a_node_with_more_groups_than_are_kept_is_sent_every_publish(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.gateway.interest.NAMES_MAX", 1)
    (first,) = three.members(2, name="kept")
    (peer,) = three.members(2)
    assert three.count(1, "group_names_not_kept") == 1
    three.do(1, publish(b"hello"))
    three.nodes.run_linked()
    assert (bytes(peer.received), bytes(first.received)) == (b"hello", b"")
    assert three.count(1, "publishes_to_other_nodes") == 1
