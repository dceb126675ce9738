"""Control messages: each goes round, and nothing that a peer sends raises anything unforeseen."""

import struct
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared import messages
from cluster.shared.messages import (
    PROTOCOL_VERSION,
    Assign,
    ControlMessage,
    Drain,
    Drained,
    EndWorker,
    GatewayAlive,
    GatewayHeartbeat,
    GatewayReady,
    Grant,
    Hello,
    LaneOffer,
    ProtocolError,
    ProtocolVersionError,
    Refuse,
    Reload,
    Reloaded,
    ShardGivenUp,
    ShardReport,
    SpareAlive,
    SpareGone,
    SpareHello,
    SpareReport,
    StatusReply,
    StatusRequest,
    Stop,
    SupervisorHello,
    WorkerGone,
    WorkerHeartbeat,
    WorkerReport,
    decode_message,
    encode_message,
)
from cluster.shared.node_status import (
    CommitWaits,
    GatewayStatus,
    InHand,
    LinkStatus,
    MembershipStatus,
    NodeStatus,
    RemoteWorker,
    SpareStatus,
    WorkerStatus,
)
from cluster.shared.takeover import DeferredRecord, PastCall, ReplayedSession, Suspect, TellState

U64_MAX = (1 << 64) - 1

MESSAGES: list[ControlMessage] = [
    Hello(shard=0, pid=4_000_000, create_time=1_700_000_000.25, public_ids=[0, 0xFFFF]),
    Hello(
        shard=0,
        pid=1,
        create_time=0.5,
        past=[PastCall(nonce=U64_MAX, incarnation=2, position=0, index=0, session=5)],
    ),
    SpareHello(pid=1, create_time=0.5),
    SpareAlive(),
    Grant(
        node=1,
        nonce=U64_MAX,
        shard=3,
        incarnation=7,
        lane=LaneOffer(
            kind="zmq",
            endpoint="ipc:///run/lane.sock",
            identity=b"\x00\xff binary",
            capacity_bytes=4 << 20,
            max_batch_bytes=16 << 20,
        ),
        position=U64_MAX,
        index=65_535,
        sessions=[
            ReplayedSession(id=U64_MAX, address="127.0.0.1:5"),
            ReplayedSession(id=1, address="[::1]:5", closing=True),
            ReplayedSession(
                id=2,
                address="[::1]:6",
                sequence=U64_MAX,
                saved=b"\x00\xff binary",
                user="ünïcode",
                bind_request=2,
                unbind_request=1,
                groups=("a", "b"),
                send_blocked=True,
                group_requests=(0, 4),
                join_request=4,
            ),
        ],
        deferred=[
            DeferredRecord(session=1, position=2, index=3, kind=4, sequence=5, payload=b"\xff"),
        ],
        max_packet_bytes=65_535,
        worker_timeout_s=10.0,
        note="note-3-7",
        suspects=[
            Suspect(position=1, index=2, is_set_aside=True),
            Suspect(position=U64_MAX, index=65_535, is_set_aside=False),
        ],
        nodes=[1, 2],
        key_owners=[2],
        shard_count=4,
        tells=[TellState(node=2, told=U64_MAX, returned=1)],
    ),
    Refuse(reason="shard 9 does not exist"),
    WorkerHeartbeat(position_received=2, serial_sent=3, wants_answer=True),
    GatewayHeartbeat(incarnation=1, position_sent=2, serial_received=3),
    Stop(serial_received=3),
    SupervisorHello(),
    SupervisorHello(candidates_max=4),
    GatewayReady(pid=1, node=2, epoch=3, listen="[::1]:7777", driver="io_uring", lane="shm"),
    GatewayAlive(),
    ShardReport(shard=0, pid=1, state="stuck", committed=True, silent_s=0.5),
    ShardReport(shard=0, pid=1, state="fenced", committed=True, reason="rules"),
    ShardReport(shard=0, pid=1, state="ended", committed=False, set_aside=True),
    WorkerReport(shard=0, pid=None, state="backoff", restarts=4),
    SpareReport(pid=1, state="ready"),
    EndWorker(shard=0, pid=1),
    WorkerGone(shard=0, pid=1),
    WorkerGone(shard=0, pid=1, was_replaced=True),
    ShardGivenUp(shard=1),
    SpareGone(pid=1),
    Assign(shard=0, pid=1),
    Reload(),
    Reload(number=2),
    Reloaded(succeeded=False),
    Reloaded(succeeded=False, reason="NameError: no such name", number=2),
    Drain(timeout_s=0.5),
    Drained(),
    StatusRequest(),
    StatusReply(
        status=NodeStatus(
            node=1,
            epoch=2,
            gateway=GatewayStatus(pid=1, driver="readiness", sessions=3, remote_listen="[::]:1"),
            workers=[
                WorkerStatus(
                    shard=0,
                    pid=2,
                    state="ready",
                    restarts=0,
                    lane="zmq",
                    in_hand=InHand(session=U64_MAX, packet_id=3, sequence=4, for_s=0.25),
                    awaiting=InHand(session=U64_MAX, packet_id=4, sequence=5, for_s=7.5),
                    waits=CommitWaits(median_s=None, worst_s=0.5, counts=[0, 1], sum_s=0.5),
                ),
                WorkerStatus(
                    shard=1,
                    pid=None,
                    state="starting",
                    restarts=1,
                    lane="zmq",
                    in_hand=InHand(session=1, packet_id=None, sequence=None, for_s=0.0),
                    remote=RemoteWorker(key="far", address="10.0.0.3:5"),
                ),
            ],
            spares=[SpareStatus(pid=5)],
            links=[
                LinkStatus(
                    node=2,
                    address="10.0.0.2:7800",
                    state="backoff",
                    waiting_records=1,
                    waiting_bytes=70,
                    failures=3,
                    reason="cannot connect to 10.0.0.2:7800: refused",
                )
            ],
            counters={"sessions_opened": 1 << 40, "ünïcode": 0},
            membership=MembershipStatus(
                source="etcd",
                state="lease_lost",
                members=[1, 2],
                heard_s_ago=0.5,
                failures=3,
                reason="no answer",
            ),
        )
    ),
]

PREFIX = struct.Struct("<2sH")
GOOD_PREFIX = PREFIX.pack(b"IC", PROTOCOL_VERSION)


def _name(message: object) -> str:
    return type(message).__name__


# -- good frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=_name)
def test_a_message_comes_out_as_it_went_in(message: ControlMessage) -> None:
    assert decode_message(encode_message(message)) == message


def test_every_message_of_the_protocol_is_tested_here() -> None:
    assert {type(message) for message in MESSAGES} == set(typing.get_args(ControlMessage))
    assert {_name(message) for message in MESSAGES} <= set(messages.__all__)


def test_a_frame_begins_with_protocol_and_version() -> None:
    """An older process must find the version where it looks for it, whatever follows."""
    assert encode_message(Stop()).startswith(b"IC" + PROTOCOL_VERSION.to_bytes(2, "little"))


def test_fields_that_a_newer_process_adds_are_passed_over() -> None:
    content = msgspec.msgpack.encode({"kind": "Refuse", "reason": "no", "new": {"field": [1]}})
    assert decode_message(GOOD_PREFIX + content) == Refuse(reason="no")


@given(st.text(), st.integers(0, U64_MAX), st.floats(allow_nan=False))
def test_any_text_number_and_time_goes_round(text: str, number: int, time_s: float) -> None:
    for message in (
        Refuse(reason=text),
        Hello(shard=number, pid=number, create_time=time_s),
        GatewayHeartbeat(incarnation=number, position_sent=number, serial_received=number),
    ):
        assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize("kind", ["Hello", "SpareHello"])
@pytest.mark.parametrize("ids", [[-1], [0x1_0000], [1.5], ["1"], 7, [0] * 0x1_0001])
def test_packet_ids_that_cannot_be_are_no_message(kind: str, ids: object) -> None:
    fields = {"kind": kind, "shard": 0, "pid": 1, "create_time": 0.0, "public_ids": ids}
    with pytest.raises(ProtocolError, match="public_ids"):
        decode_message(GOOD_PREFIX + msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("count", [-1, (1 << 48) + 1, U64_MAX])
@pytest.mark.parametrize("name", ["decode_errors", "unhandled_packets", "batches_waited"])
def test_a_worker_counts_no_more_than_a_status_can_tell(name: str, count: int) -> None:
    counts: dict[str, Any] = {name: count}
    heartbeat = WorkerHeartbeat(position_received=2, serial_sent=3, **counts)
    with pytest.raises(ProtocolError, match=name):
        decode_message(encode_message(heartbeat))


# -- another version -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 65_535])
@pytest.mark.parametrize("content", [b"", b"\xff garbage", encode_message(Stop())[4:]])
def test_another_version_is_refused_before_anything_else_is_read(
    version: int, content: bytes
) -> None:
    with pytest.raises(ProtocolVersionError) as raised:
        decode_message(PREFIX.pack(b"IC", version) + content)
    assert f"protocol {version}," in str(raised.value)
    assert f"this process {PROTOCOL_VERSION};" in str(raised.value)
    assert isinstance(raised.value, ProtocolError)


# -- garbage ---------------------------------------------------------------------------------------


def _is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode_message(frame)
    assert len(str(raised.value)) < 500  # it goes into a log and back to the peer
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"I",
        b"IC",
        b"IC\x01",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes(1_000),
        b"\xff" * 1_000_000,
    ],
    ids=len,
)
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    _is_refused(frame)


def _pack(content: object) -> bytes:
    return msgspec.msgpack.encode(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        _pack(None),
        _pack(7),
        _pack([]),
        _pack({}),
        _pack({"kind": "Nonsense"}),
        _pack({"kind": "Long and\nbroken " * 1_000}),
        _pack({"kind": 7}),
        _pack({"reason": "no kind"}),
        _pack({"kind": "Refuse"}),
        _pack({"kind": "Refuse", "reason": 7}),
        _pack({"kind": "Refuse", "reason": b"bytes"}),
        _pack({"kind": "Hello", "shard": "0", "pid": 1, "create_time": 1.0}),
        _pack({"kind": "Hello", "shard": 0, "pid": 1.5, "create_time": 1.0}),
        _pack({"kind": "Hello", "shard": 0, "pid": None, "create_time": 1.0}),
        _pack({"kind": "WorkerReport", "shard": 0, "pid": 1, "state": "odd", "restarts": 0}),
        _pack({"kind": "Drain", "timeout_s": "soon"}),
        _pack({1: 2}),
        _pack({"kind": "Stop"}) + b"rest",
        _pack({"kind": "Refuse", "reason": "text"})[:-1],
        b"\x82\xa4kind\xa6Refuse\xa6reason\xa2\xff\xfe",  # text that is not UTF-8
        b"\x82\xa4kind\xa2\xff\xfe\xa6reason\xa1a",
        b"\x81\xa2\xff\xfe\xa1a",
        b"\xdf\xff\xff\xff\xff",  # a map of four billion entries
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffabc",  # a text of four billion bytes
        b"\x82\xa4kind\xa6Refuse\xa3new" + b"\x91" * 100_000,  # nested without end
        b"\x91" * 100_000,
        b"\x81" * 100_000,
    ],
    ids=lambda content: f"{content[:24]!r}",
)
def test_content_that_is_no_message_is_refused(content: bytes) -> None:
    _is_refused(GOOD_PREFIX + content)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_message(frame: bytes) -> None:
    for candidate in (frame, GOOD_PREFIX + frame):
        try:
            message = decode_message(candidate)
        except ProtocolError:
            continue
        assert isinstance(message, msgspec.Struct)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), U64_MAX)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    message=st.sampled_from(MESSAGES),
    changes=st.dictionaries(st.integers(0, 12), _VALUES, min_size=1, max_size=3),
)
def test_fields_of_any_type_are_refused_or_a_message(
    message: ControlMessage, changes: dict[int, object]
) -> None:
    fields = msgspec.msgpack.decode(encode_message(message)[4:])
    names = list(fields)
    for index, value in changes.items():
        fields[names[index % len(names)]] = value
    try:
        decode_message(GOOD_PREFIX + msgspec.msgpack.encode(fields))
    except ProtocolError:
        pass


@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_a_damaged_frame_is_refused_or_a_message(
    message: ControlMessage, data: st.DataObject
) -> None:
    frame = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for candidate in (bytes(frame), bytes(frame[:cut])):
        try:
            decode_message(candidate)
        except ProtocolError:
            pass
