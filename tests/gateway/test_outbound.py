"""What a batch of output does to sessions, and what becomes of one that cannot be."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE
from cluster.gateway.groups import GroupTable
from cluster.gateway.joined_answers import JoinedAnswers
from cluster.gateway.node_broadcasts import NodeBroadcasts
from cluster.gateway.node_fan_outs import NodeFanOuts
from cluster.gateway.node_groups import NodeGroups
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.outbound_steps import RECORDS_MAX
from cluster.gateway.session import GatewaySession
from cluster.gateway.shard import Shard, ShardBounds
from cluster.gateway.users import UserTable
from cluster.iocp import IocpCore
from cluster.iocp.driver.memory import MemoryDriver
from cluster.shared.lane import START, LaneViolation, OutboundBatch
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.records import (
    BROADCAST,
    DISCONNECT,
    OPENED,
    PUBLISH,
    RECORD,
    RECORD_BYTES,
    SAVE,
    SAVE_BYTES_MAX,
    SEND,
    SEND_TO,
    RecordError,
    make_record,
)
from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.shard_ids import ShardId


class RecordingSession:
    """Takes what the applier does to a session."""

    _send_registered = True  # so that also in a fan-out all goes through `send_now`

    def __init__(self, number: int) -> None:
        self.id = number
        self.shard = SimpleNamespace(joined=JoinedAnswers())
        self.calls: list[Any] = []
        self.is_connected = True

    def send_now(self, data: bytes | memoryview) -> bool:
        if self.is_connected:
            self.calls.append(bytes(data))
        return self.is_connected

    def disconnect(self, cause: str) -> bool:
        self.calls.append(("disconnect", cause))
        was_connected, self.is_connected = self.is_connected, False
        return was_connected


class Applying:
    """A worker's end and the applier of what comes from it."""

    def __init__(self, session_count: int = 3) -> None:
        self.lane = LocalGatewayLane(1 << 20, 1 << 20)
        self.lane.grant(1, b"one")
        self.worker = self.lane.open_worker()
        self.sessions = {number: RecordingSession(number) for number in range(1, session_count + 1)}
        self.counters = Counters()
        bounds = ShardBounds(65_535, 1 << 20, 1 << 20, SAVED_BYTES_MAX)
        core = IocpCore(driver=MemoryDriver())
        shard = Shard(ShardId(1, 0), self.lane, self.counters, bounds, core.now)
        self.succession = shard.succession
        sessions: Any = self.sessions
        groups: GroupTable[GatewaySession] = GroupTable()
        traffic = NodeTraffic(1, self.counters)
        fan_outs = NodeFanOuts(traffic, core, self.counters)
        self.applier = OutboundApplier(
            shard,
            sessions,
            NodeUsers(traffic, core, sessions, UserTable(), self.counters, 10.0),
            groups,
            self.counters,
            NodeBroadcasts(traffic, fan_outs, sessions, self.counters),
            NodeGroups(traffic, fan_outs, core, groups, self.counters),
        )

    def start(self, *records: bytes) -> bool:
        """Publish `records` and begin to apply them."""
        assert self.worker.publish(START, list(records))
        batch = self.lane.receive()
        assert batch is not None
        finished = self.applier.start(batch)
        if finished:
            self.lane.apply(batch)
        return finished

    def calls(self, number: int) -> list[Any]:
        return self.sessions[number].calls

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


def test_sends_reach_their_sessions_in_order():
    applying = Applying()
    assert applying.start(
        make_record(SEND, 1, b"a"), make_record(SEND, 2, b"b"), make_record(SEND, 1, b"c")
    )
    assert applying.calls(1) == [b"a", b"c"]
    assert applying.calls(2) == [b"b"]
    assert applying.calls(3) == []
    assert applying.count("sends") == 3
    assert applying.count("bytes_sent") == 3
    assert applying.applier.batch is None


def test_a_batch_without_records_is_done_at_once():
    assert Applying().start()


def test_replies_to_sessions_that_are_gone_are_counted_and_harm_nobody():
    applying = Applying()
    applying.sessions[2].is_connected = False  # ending, but known
    assert applying.start(
        make_record(SEND, 99, b"unknown"),
        make_record(SEND, 2, b"ending"),
        make_record(DISCONNECT, 99, b"kicked"),
        make_record(SEND, 1, b"there"),
    )
    assert applying.calls(1) == [b"there"]
    assert applying.count("replies_to_gone_sessions") == 2
    assert applying.count("sends") == 1


def test_a_disconnect_keeps_its_place_among_sends():
    applying = Applying()
    assert applying.start(
        make_record(SEND, 1, b"last words"),
        make_record(DISCONNECT, 1, b"kicked"),
        make_record(SEND, 1, b"too late"),
    )
    assert applying.calls(1) == [b"last words", ("disconnect", "kicked")]
    assert applying.succession.pending == [(DISCONNECT, 1, None)]
    assert applying.count("replies_to_gone_sessions") == 1


def test_a_cause_that_is_no_text_is_replaced_and_not_an_error():
    applying = Applying()
    assert applying.start(make_record(DISCONNECT, 1, b"\xff\xfe"))
    assert applying.calls(1) == [("disconnect", "��")]


def test_a_broadcast_keeps_its_place_among_sends():
    applying = Applying()
    started = applying.start(
        make_record(SEND, 1, b"before"),
        make_record(BROADCAST, 0, b"all"),
        make_record(SEND, 1, b"x"),
    )
    assert started
    assert applying.calls(1) == [b"before", b"all", b"x"]
    assert applying.calls(2) == applying.calls(3) == [b"all"]
    assert applying.count("broadcasts") == 1


def test_a_broadcast_goes_out_in_slices_to_the_members_as_of_its_beginning():
    count = 2 * FAN_OUT_SLICE + 10
    applying = Applying(count)
    assert not applying.start(make_record(BROADCAST, 0, b"all"), make_record(SEND, 1, b"after"))
    applier = applying.applier
    assert applier.batch is not None
    assert applying.calls(FAN_OUT_SLICE) == [b"all"]
    assert applying.calls(FAN_OUT_SLICE + 1) == []
    assert applying.calls(1) == [b"all"]

    late = applying.sessions[count + 1] = RecordingSession(count + 1)
    left = applying.sessions.pop(count)
    left.is_connected = False
    assert not applier.advance()
    assert applier.advance()
    assert applier.batch is None
    assert late.calls == []
    assert left.calls == []
    assert all(applying.calls(n) == [b"all"] for n in range(2, count))
    assert applying.calls(1) == [b"all", b"after"]


def test_two_broadcasts_in_one_batch_follow_each_other():
    count = FAN_OUT_SLICE + 1
    applying = Applying(count)
    finished = applying.start(make_record(BROADCAST, 0, b"1"), make_record(BROADCAST, 0, b"2"))
    while not finished:
        finished = applying.applier.advance()
    assert all(applying.calls(n) == [b"1", b"2"] for n in range(1, count + 1))


@pytest.mark.parametrize("session_count", [0, 1, 10])
def test_many_broadcasts_in_one_batch_share_one_slice(session_count: int):
    applying = Applying(session_count)
    count = 2 * FAN_OUT_SLICE + 1
    records = [make_record(BROADCAST, 0, b"%d." % number) for number in range(count)]
    finished, turns = applying.start(*records), 1
    while not finished:
        before = applying.count("sends")
        finished, turns = applying.applier.advance(), turns + 1
        assert applying.count("sends") - before <= FAN_OUT_SLICE
    assert turns > count * max(1, session_count) // FAN_OUT_SLICE
    assert applying.count("broadcasts") == count
    for calls in (session.calls for session in applying.sessions.values()):
        assert calls == [b"%d." % number for number in range(count)]


def test_a_batch_that_was_abandoned_is_forgotten():
    applying = Applying(FAN_OUT_SLICE + 1)
    assert not applying.start(make_record(BROADCAST, 0, b"all"))
    applying.applier.abandon()
    assert applying.applier.batch is None
    applying.lane.revoke()
    applying.lane.grant(2, b"two")
    applying.worker = applying.lane.open_worker()
    assert applying.start(make_record(SEND, 1, b"from a successor"))
    assert applying.calls(1) == [b"all", b"from a successor"]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (b"\0" * (RECORD_BYTES - 1), "after the last record"),
        (make_record(SEND, 1, b"x") + b"left over", "after the last record"),
        (RECORD.pack(RECORD_BYTES - 1, SEND, 0, 1), "a record of 15 bytes|record of 15 bytes"),
        (RECORD.pack(0, SEND, 0, 1), "record of 0 bytes"),
        (RECORD.pack(RECORD_BYTES + 1, SEND, 0, 1), "record of 17 bytes"),
        (RECORD.pack(0xFFFF_FFFF, SEND, 0, 1) + b"x" * 64, "record of 4294967295 bytes"),
        (make_record(OPENED, 1, b""), "unknown kind 1"),
        (make_record(0xFFFF, 1, b""), "unknown kind 65535"),
        (make_record(DISCONNECT, 1, b"x" * 256), "record of 272 bytes, kind 18"),
        (make_record(SAVE, 1, b"x" * (SAVE_BYTES_MAX + 1)), "record of 65553 bytes, kind 19"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, RECORDS_MAX, 2 * RECORDS_MAX + 1])
def test_a_record_that_cannot_be_is_a_violation_and_nothing_is_carried_out(
    records: bytes, told: str, before: int
):
    applying = Applying()
    good = [
        make_record(SEND, 1, b"x"),
        make_record(SAVE, 1, b"x"),
        make_record(DISCONNECT, 1, b"x"),
    ]
    with pytest.raises(LaneViolation, match=told):
        applying.start(b"".join(good) * before, records)
    assert applying.calls(1) == []
    assert applying.succession.pending == []
    assert applying.count("sends") == 0
    assert applying.applier.batch is None


@pytest.mark.parametrize("count", [RECORDS_MAX - 1, RECORDS_MAX, RECORDS_MAX + 1, 3 * RECORDS_MAX])
def test_a_batch_of_very_many_records_is_carried_out_in_order(count: int):
    applying = Applying()
    assert applying.start(b"".join(make_record(SEND, 1, b"%d" % n) for n in range(count)))
    assert applying.calls(1) == [b"%d" % n for n in range(count)]
    assert applying.count("sends") == count


@pytest.mark.parametrize("kind", [BROADCAST, PUBLISH, SEND_TO])
def test_what_may_be_for_many_is_one_packet_at_most(kind: int):
    """More than a link could carry to other nodes would end the gateway."""
    applying = Applying()
    assert applying.start(make_record(BROADCAST, 0, bytes(65_535)))
    with pytest.raises(LaneViolation, match=f"kind {kind}"):
        applying.start(make_record(kind, 0, bytes(65_535 + 257)))
    assert applying.calls(1) == [bytes(65_535)]


def test_a_batch_that_changes_after_it_was_checked_is_a_violation():
    """In shared memory it may."""
    applying = Applying(FAN_OUT_SLICE)
    records = [make_record(BROADCAST, 0, b"x")] + [make_record(SEND, 1, b"x")] * RECORDS_MAX
    changing = bytearray(b"".join(records))
    assert not applying.applier.start(OutboundBatch(1, 1, START, memoryview(changing)))
    changing[-(RECORD_BYTES + 1) :] = make_record(OPENED, 1, b"x")
    with pytest.raises(LaneViolation, match="unknown kind 1"):
        while not applying.applier.advance():
            pass


def test_a_save_is_noted_with_its_place_among_ends_and_copied_out_of_the_batch():
    applying = Applying()
    data = bytearray(make_record(SAVE, 1, b"blob") + make_record(DISCONNECT, 99, b"gone"))
    assert applying.applier.start(OutboundBatch(1, 1, START, memoryview(data)))
    data[:] = bytes(len(data))
    assert applying.succession.pending == [(SAVE, 1, b"blob"), (DISCONNECT, 99, None)]
    applying.applier.abandon()
    assert applying.succession.pending == []


@given(st.binary(max_size=200))
def test_random_bytes_are_a_violation_or_records_and_never_a_loop(data: bytes):
    applying = Applying(1)
    batch = OutboundBatch(1, 1, START, data)
    try:
        assert applying.applier.start(batch)
    except (LaneViolation, RecordError):
        applying.applier.abandon()
    assert applying.applier.batch is None
