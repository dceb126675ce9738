"""SendBuffer and `join_small`: the same bytes in fewer pieces, and no copy that is not needed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp import SendBuffer, make_packet
from cluster.iocp.send_buffer import JOIN_BYTES_MAX, SMALL_BYTES_MAX, join_small

# Sizes around the two bounds, made of few distinct bytes so that examples stay cheap.
sizes = st.one_of(
    st.integers(0, 80),
    st.integers(SMALL_BYTES_MAX - 2, SMALL_BYTES_MAX + 2),
    st.integers(JOIN_BYTES_MAX - 2, JOIN_BYTES_MAX + 2),
)


def pieces(lengths: list[int]) -> list[bytes | bytearray | memoryview]:
    return [bytes([index % 256]) * length for index, length in enumerate(lengths)]


@given(st.lists(sizes, min_size=1, max_size=60))
def test_joining_keeps_every_byte_in_its_place(lengths: list[int]):
    buffers = pieces(lengths)
    stream = b"".join(buffers)
    joined = join_small(list(buffers), len(stream))
    assert b"".join(joined) == stream
    assert len(joined) <= len(buffers)


@given(st.lists(sizes, min_size=2, max_size=60))
def test_large_buffers_are_not_copied_and_small_neighbours_do_not_stay_apart(lengths: list[int]):
    buffers = pieces(lengths)
    total = sum(lengths)
    joined = join_small(list(buffers), total)
    if total <= JOIN_BYTES_MAX:
        assert len(joined) == 1
        return
    kept = {id(buffer) for buffer in joined}
    assert all(id(buffer) in kept for buffer in buffers if len(buffer) > SMALL_BYTES_MAX)
    for first, second in pairwise(joined):
        assert len(first) > SMALL_BYTES_MAX or len(second) > SMALL_BYTES_MAX


def test_a_megabyte_of_small_packets_goes_out_in_one_piece():
    packets: list[bytes | bytearray | memoryview] = [make_packet(1, bytes(60))] * 16_384
    joined = join_small(packets, 64 * 16_384)
    assert joined == [b"".join(packets)]


def test_a_single_buffer_is_left_alone():
    buffer = b"alone"
    assert join_small([buffer], 5)[0] is buffer


def test_bytes_are_taken_as_they_are():
    data = b"shared"
    assert SendBuffer(data).data is data


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_what_its_owner_may_change_is_copied(kind: type):
    source = bytearray(b"before")
    buffer = SendBuffer(kind(source))
    source[:] = b"after!"
    assert buffer.data == b"before"
    assert len(buffer) == 6


def test_a_packet_is_made_with_its_header():
    assert SendBuffer.packet(9, b"abc").data == make_packet(9, b"abc")
    with pytest.raises(ValueError):
        SendBuffer.packet(70_000, b"")
