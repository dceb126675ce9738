"""Joins, leaves and publishes across shards: real sessions, scripted workers."""

from collections.abc import Iterator

import pytest

from cluster.gateway.fan_out import FAN_OUT_SLICE
from cluster.iocp.driver.memory import MemoryDriver, MemoryNetwork
from cluster.shared.group_records import GROUPS_MAX, pack_join, pack_publish
from cluster.shared.records import (
    BROADCAST,
    CLOSED,
    DISCONNECT,
    JOIN,
    LEAVE,
    PUBLISH,
    SEND,
    make_record,
)
from cluster.shared.takeover import ReplayedSession
from tests.gateway.conftest import MakeGateway
from tests.gateway.test_user_requests import Two, successor
from tests.gateway.world import GatewayWorld


def join(session: int, name: str = "room", request: int = 0) -> bytes:
    return make_record(JOIN, session, pack_join(request, name.encode()))


def leave(session: int, name: str = "room") -> bytes:
    return make_record(LEAVE, session, name.encode())


def publish(data: bytes, name: str = "room", excluded: int = 0) -> bytes:
    return make_record(PUBLISH, excluded, pack_publish(name.encode(), data))


def send(session: int, data: bytes) -> bytes:
    return make_record(SEND, session, data)


def told(two: Two) -> dict[int, ReplayedSession]:
    """Let a successor begin in shard 0; return what it was told of each session."""
    return {session.id: session for session in successor(two).grant.sessions}


@pytest.fixture
def two(gateway: MakeGateway) -> Two:
    return Two(gateway(shard_count=2))


@pytest.fixture
def memory_two(memory_gateway: MakeGateway) -> Two:
    return Two(memory_gateway(shard_count=2))


def test_a_publish_reaches_the_members_in_all_shards_and_nobody_else(two: Two):
    for _ in range(2):
        two.connect()
    one, other, third, _ = two.ids
    two.do(1, join(other))
    two.do(0, join(one), join(third), publish(b"to all of them"))
    two.do(1, publish(b", and again"))
    two.world.wait_received(two.peers[:3], 25)
    assert [bytes(peer.received) for peer in two.peers] == [b"to all of them, and again"] * 3 + [
        b""
    ]
    assert two.world.count("publishes") == 2
    assert two.world.count("sends") == 6
    assert two.world.count("bytes_sent") == 3 * 25


def test_who_is_excluded_gets_nothing_and_is_a_member_all_the_same(two: Two):
    one, other = two.ids
    two.do(1, join(other))
    two.do(0, join(one), publish(b"not for one", excluded=one), publish(b"for both"))
    two.world.wait_received(two.peers[0], 8)
    two.world.wait_received(two.peers[1], 19)
    assert two.peers[0].received == b"for both"
    assert two.peers[1].received == b"not for onefor both"


@pytest.mark.parametrize("excluded", [99, 1 << 63])
def test_to_exclude_who_is_no_member_changes_nothing(memory_two: Two, excluded: int):
    two = memory_two
    two.do(0, join(two.ids[0]), publish(b"a", excluded=excluded))
    two.do(0, publish(b"b", excluded=two.ids[1]))
    two.world.wait_received(two.peers[0], 2)
    assert two.peers[0].received == b"ab"


def test_joins_and_leaves_take_effect_at_their_place_in_the_batch(two: Two):
    one, other = two.ids
    two.do(1, join(other))
    two.do(
        0,
        publish(b"1"),
        join(one),
        publish(b"2"),
        send(one, b"reply"),
        leave(one),
        publish(b"3"),
        leave(other),  # only its own worker asks for that, but a lane must not depend on it
        publish(b"4"),
    )
    two.world.wait_received(two.peers[0], 6)
    two.world.wait_received(two.peers[1], 3)
    assert two.peers[0].received == b"2reply"
    assert two.peers[1].received == b"123"
    assert len(two.world.table.groups) == 0


def test_who_has_the_reply_sent_after_a_join_gets_what_other_shards_publish(two: Two):
    two.workers[0].read()
    two.workers[0].commit(join(two.ids[0]), send(two.ids[0], b"you are in. "))
    two.world.wait_received(two.peers[0], 12)
    two.do(1, publish(b"hello"))
    two.world.wait_received(two.peers[0], 17)
    assert two.peers[0].received == b"you are in. hello"


@pytest.mark.parametrize("how", ["reset", "disconnect"])
def test_a_session_that_ends_leaves_all_its_groups(two: Two, how: str):
    world = two.world
    one, other = two.ids
    two.do(0, join(one), join(one, "only one"))
    two.do(1, join(other))
    assert len(world.table.groups) == 2
    if how == "reset":
        two.peers[0].reset()
    else:
        two.do(0, make_record(DISCONNECT, one, b"kicked"), publish(b"after its end"))
        world.wait_ended(two.peers[0])
        assert two.peers[0].received == b""
        two.peers[0].close()
    world.run_until(lambda: one not in world.table.sessions, "the end")
    assert len(world.table.groups) == 1
    two.do(1, publish(b"."))
    world.wait_received(two.peers[1], 1 if how == "reset" else 14)
    assert world.violations == []


def test_a_session_that_is_gone_or_was_never_there_joins_nothing(memory_two: Two):
    two = memory_two
    two.peers[0].reset()
    two.world.run_until(lambda: two.ids[0] not in two.world.table.sessions, "the end")
    two.do(0, join(two.ids[0]), join(99), leave(two.ids[0]), leave(99, "another"))
    assert len(two.world.table.groups) == 0
    assert two.world.violations == []


def test_a_publish_to_a_group_without_members_goes_to_nobody(memory_two: Two):
    memory_two.do(0, publish(b"hello?", "nobody"))
    assert memory_two.world.count("publishes") == 1
    assert memory_two.world.count("sends") == 0


def test_one_group_too_many_is_refused_and_counted(memory_two: Two):
    two = memory_two
    one = two.ids[0]
    names = [f"room {number}" for number in range(GROUPS_MAX + 2)]
    two.do(0, *[join(one, name) for name in names])
    assert two.world.count("joins_refused") == 2
    assert len(two.world.table.groups) == GROUPS_MAX
    assert told(two)[one].groups == tuple(names[:GROUPS_MAX])


# -- fan-out ---------------------------------------------------------------------------------------


class Crowd:
    """A world with so many members of one group that a publish takes three slices."""

    def __init__(self, world: GatewayWorld) -> None:
        self.world = world
        self.workers = [world.start_worker(shard) for shard in range(2)]
        self.peers = [world.connect() for _ in range(2 * FAN_OUT_SLICE + 3)]
        self.ids = list(world.table.sessions)
        for worker in self.workers:
            worker.read()
        self.workers[0].commit(*[join(number) for number in self.ids])
        world.settle()

    def begin(self, *records: bytes) -> None:
        """Publish as worker 0, and carry out what one turn of its lane does."""
        assert self.workers[0].commit(*records)
        self.world.runner.receive()
        assert self.world.appliers[0].batch is not None


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    network = MemoryNetwork(buffer_bytes=16_384)
    world = GatewayWorld(MemoryDriver(network), shard_count=2, max_sessions=1_000)
    yield Crowd(world)
    world.close()


def test_a_publish_goes_out_in_slices_to_the_members_as_of_its_beginning(crowd: Crowd):
    world = crowd.world
    latecomer = world.connect()
    crowd.begin(publish(b"slow"), send(crowd.ids[0], b" and then"))
    assert world.count("sends") == FAN_OUT_SLICE
    # Meanwhile the other shard's worker is served, and what it does is no part of that.
    crowd.workers[1].commit(
        join(world.newest().id), leave(crowd.ids[-1]), send(crowd.ids[-2], b"quick, ")
    )
    world.settle()
    world.wait_received(crowd.peers, 4)
    assert latecomer.received == b""
    assert crowd.peers[0].received == b"slow and then"
    assert crowd.peers[-2].received == b"quick, slow"
    assert all(peer.received == b"slow" for peer in [*crowd.peers[1:-2], crowd.peers[-1]])


def test_who_closes_while_a_publish_is_on_its_way_is_passed_over(crowd: Crowd):
    world = crowd.world
    crowd.begin(publish(b"hello"))
    reset, ended = crowd.peers[-1], crowd.peers[-2]
    world.table.sessions[crowd.ids[-1]].abort("gone")
    world.table.sessions[crowd.ids[-2]].disconnect("kicked")
    world.settle()
    world.wait_received(crowd.peers[:-2], 5)
    assert reset.received == ended.received == b""
    assert world.count("sends") == len(crowd.ids) - 2


def test_publishes_of_one_lane_follow_each_other_and_broadcasts(crowd: Crowd):
    crowd.begin(publish(b"1"), make_record(BROADCAST, 0, b"2"), publish(b"3"))
    crowd.workers[0].commit(publish(b"4"))
    crowd.world.settle()
    crowd.world.wait_received(crowd.peers, 4)
    assert all(peer.received == b"1234" for peer in crowd.peers)


def test_a_publish_of_a_worker_that_dies_in_the_middle_is_carried_out_to_its_end(crowd: Crowd):
    crowd.begin(publish(b"last words"), leave(crowd.ids[0]))
    crowd.world.kill(0)
    assert crowd.world.appliers[0].batch is None
    worker = crowd.world.start_worker(0)
    crowd.world.wait_received(crowd.peers, 10)
    assert all(peer.received == b"last words" for peer in crowd.peers)
    groups = {session.id: session.groups for session in worker.grant.sessions}
    mine = {one for one in crowd.ids if crowd.world.table.sessions[one].shard.index == 0}
    assert groups == {one: () if one == crowd.ids[0] else ("room",) for one in mine}


def test_a_member_that_does_not_read_is_aborted_alone(memory_gateway: MakeGateway):
    world = memory_gateway(shard_count=2, send_queue_bytes_max=50_000)
    two = Two(world)
    two.peers[0].read_no_more()
    two.do(0, join(two.ids[0]), join(two.ids[1]))
    for _ in range(3):
        two.do(0, publish(b"x" * 30_000))
    world.wait_received(two.peers[1], 90_000)
    assert world.count("closed_send_overflow") == 1
    assert two.ids[0] not in world.table.sessions
    assert len(world.table.groups) == 1


def test_what_many_have_to_wait_for_is_kept_once(memory_gateway: MakeGateway):
    two = Two(memory_gateway(shard_count=2))
    for peer in two.peers:
        peer.read_no_more()
    two.do(0, join(two.ids[0]), join(two.ids[1]))
    two.do(0, *[publish(b"x" * 20_000) for _ in range(10)])
    waiting = []
    for session in (two.world.table.sessions[each] for each in two.ids):
        assert session._send_event is not None
        waiting.append([*session._send_event.send_buffers, *session._send_queue])
    assert len(waiting[0]) == len(waiting[1]) > 5
    assert all(one is other for one, other in zip(waiting[0][1:], waiting[1][1:], strict=True))


# -- deaths ----------------------------------------------------------------------------------------


def test_a_successor_is_told_of_the_groups_as_of_the_commit(two: Two):
    one = two.ids[0]
    two.do(0, join(one, "red"), join(one, "green"), leave(one, "red"), join(one, "blue"))
    assert told(two)[one].groups == ("green", "blue")
    two.do(0, leave(one, "green"), leave(one, "blue"))
    assert told(two)[one].groups == ()


def test_groups_stay_while_their_shard_has_no_worker(two: Two):
    two.do(0, join(two.ids[0]))
    two.world.kill(0)
    two.do(1, publish(b"hello"))
    two.world.wait_received(two.peers[0], 5)
    assert two.peers[0].received == b"hello"


def test_a_session_whose_connection_is_gone_is_in_its_groups_until_its_end_is_done(memory_two: Two):
    """`on_disconnected` may tell a group who has left, also in a successor."""
    two = memory_two
    world, one = two.world, two.ids[0]
    two.do(0, join(one, "red"))
    two.peers[0].reset()
    world.run_until(lambda: one not in world.table.sessions, "the end")
    two.workers[0].publish(join(one, "blue"), leave(one, "red"))
    world.settle()
    assert told(two)[one].groups == ("blue",)
    assert len(world.table.groups) == 0
    world.wait_for(two.workers[0], CLOSED)
    two.do(0)
    assert one not in told(two)


@pytest.mark.parametrize("committed", [True, False])
def test_what_a_batch_with_a_mistake_joined_and_left_is_undone(memory_two: Two, committed: bool):
    two = memory_two
    world, one = two.world, two.ids[0]
    if committed:
        two.do(0, join(one, "red"), join(one, "green"))
    two.workers[0].publish(
        leave(one, "red"), join(one, "blue"), publish(b"?", "blue"), make_record(JOIN, one, b"")
    )
    world.run_until(lambda: world.violations, "the violation")
    groups = ["green", "red"] if committed else []
    session = world.table.sessions[one]
    for name in ("red", "green", "blue"):
        is_member = session in world.table.groups.members(name.encode())
        assert is_member is (name in groups)
    world.table.groups.check_invariants()
    replayed = world.start_worker(0).grant.sessions
    assert [sorted(session.groups) for session in replayed] == ([groups] if committed else [])


# -- what no worker of ours does -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        *[(PUBLISH, payload) for payload in (b"", b"\0x", b"\1", b"\1x", b"\5four")],
        *[(LEAVE, name) for name in (b"", b"x" * 256)],
        *[(JOIN, payload) for payload in (b"", b"\1\0\0", bytes(4), bytes(4) + b"x" * 256)],
    ],
)
def test_a_record_that_cannot_be_ends_its_worker_alone(memory_two: Two, kind: int, payload: bytes):
    two = memory_two
    two.do(1, join(two.ids[1]))
    two.workers[0].publish(make_record(kind, two.ids[0], payload))
    two.world.run_until(lambda: two.world.violations, "the violation")
    assert [shard for shard, _ in two.world.violations] == [0]
    assert two.world.workers.life(0) is None
    two.do(1, publish(b"still here"))
    two.world.wait_received(two.peers[1], 10)
