"""The payloads of what shards tell each other: as they went in, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.records import RecordError
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import (
    BY_KEY,
    CONTENT_BYTES_MAX,
    TELL_WINDOW_BYTES_MAX,
    Message,
    Purpose,
    Tell,
    content_bytes_max,
    credit_step,
    is_answer,
    pack_content,
    pack_message,
    pack_tell,
    read_content,
    read_message,
    read_tell,
    tell_cost,
    tell_window_bytes,
    window_for,
)

nodes = st.integers(1, 65_535)
shards = st.integers(0, 255)
purposes = st.sampled_from(Purpose)
requests = st.integers(0, (1 << 64) - 1)
SENDER = ShardId(3, 1)


@given(nodes, shards, purposes, requests, st.binary(max_size=100))
def test_a_tell_for_a_shard_comes_out_as_it_went_in_and_becomes_a_message(
    node: int, shard: int, purpose: Purpose, request: int, content: bytes
) -> None:
    tell = read_tell(pack_tell(ShardId(node, shard), purpose, request, content))
    assert tell == Tell(node, shard, purpose, request, b"", content)
    assert tell.receiver == ShardId(node, shard)
    message = read_message(pack_message(SENDER, tell))
    assert message == Message(SENDER, purpose, request, b"", content)
    assert is_answer(pack_message(SENDER, tell)) == purpose.is_answer


@given(nodes, st.binary(min_size=1, max_size=255), st.binary(max_size=100))
def test_a_tell_by_key_keeps_its_key(node: int, key: bytes, content: bytes) -> None:
    tell = read_tell(pack_tell(ShardId(node, BY_KEY), Purpose.TELL, 0, content, key))
    assert (tell.receiver, tell.shard, tell.content) == (key, BY_KEY, content)
    message = read_message(pack_message(SENDER, tell))
    assert message == Message(SENDER, Purpose.TELL, 0, key, content)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(13),
        pack_tell(ShardId(1, 0), Purpose.TELL, 0, b"")[:4] + b"\x04" + bytes(9),  # no purpose
        pack_tell(ShardId(1, 0), Purpose.TELL, 0, b"", b"key"),  # a key, and a shard
        pack_tell(ShardId(1, BY_KEY), Purpose.TELL, 0, b"content"),  # no key, and no shard
        pack_tell(ShardId(1, BY_KEY), Purpose.TELL, 0, b"", b"key")[:-1],
        pack_tell(ShardId(1, 256), Purpose.TELL, 0, b""),
    ],
)
def test_what_no_worker_may_tell_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError):
        read_tell(payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_tell_or_an_error(payload: bytes) -> None:
    try:
        tell = read_tell(payload)
    except RecordError:
        return
    to = ShardId(tell.node, tell.shard)
    assert pack_tell(to, tell.purpose, tell.request, tell.content, tell.key) == payload


def test_content_has_the_name_of_its_type() -> None:
    assert read_content(pack_content(b"Move", b"body")) == ("Move", b"body")
    for content in (b"", b"\x00", b"\x05Move", b"\x04\xff\xff\xff\xff"):
        with pytest.raises(ValueError):
            read_content(content)


@pytest.mark.parametrize("retained", [1 << 20, 16 << 20, 1 << 30])
@pytest.mark.parametrize("shard_count", [1, 2, 7, 256])
def test_all_windows_of_a_node_leave_half_of_a_link_to_others(
    retained: int, shard_count: int
) -> None:
    window = tell_window_bytes(retained, shard_count)
    assert 0 < window <= TELL_WINDOW_BYTES_MAX
    assert shard_count * window_for(Purpose.REPLY, window) <= retained // 2
    # The largest message has room beside everything that may have come back untold.
    largest = pack_tell(
        ShardId(1, BY_KEY), Purpose.TELL, 0, bytes(content_bytes_max(window)), b"k" * 255
    )
    assert 0 < content_bytes_max(window) <= CONTENT_BYTES_MAX
    assert tell_cost(len(largest)) <= window - credit_step(window)
