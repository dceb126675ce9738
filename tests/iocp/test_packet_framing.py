"""Packets in a byte stream: any split gives the same packets, and no size is a loop."""

import re
from array import array
from itertools import pairwise
from struct import pack, unpack_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.packet_framing import (
    HEADER_BYTES,
    PACKET_BYTES_MAX,
    PacketFraming,
    Scan,
    iter_packets,
    make_packet,
    split_packets,
)

packets = st.lists(
    st.builds(make_packet, st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=12
)


def feed(framing: PacketFraming, pieces: list[bytes]) -> tuple[list[bytes], int | None]:
    """Frame a stream that arrives in `pieces`, as a session does; stop at a bad size."""
    found: list[bytes] = []
    kept = b""
    for piece in pieces:
        kept += piece
        scan = framing.scan(kept)
        found += [bytes(packet) for packet in iter_packets(kept[: scan.num_bytes])]
        kept = kept[scan.num_bytes :]
        if scan.bad_size is not None:
            return found, scan.bad_size
    return found, None


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(stream) + 1) for place in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(places)]


@given(packets, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_split_of_any_packets_gives_the_same_packets(sent: list[bytes], cuts: list[int]):
    found, bad_size = feed(PacketFraming(), cut(b"".join(sent), cuts))
    assert found == sent
    assert bad_size is None


@given(packets)
def test_one_byte_at_a_time_gives_the_same_packets(sent: list[bytes]):
    stream = b"".join(sent)
    found, _ = feed(PacketFraming(), [stream[i : i + 1] for i in range(len(stream))])
    assert found == sent


@given(packets, st.integers(0, HEADER_BYTES - 1), st.binary(max_size=20))
def test_a_size_below_the_header_is_told_after_the_packets_before_it(
    sent: list[bytes], size: int, rest: bytes
):
    stream = b"".join(sent)
    assert PacketFraming().scan(stream + pack("<H", size) + rest) == Scan(
        len(stream), len(sent), size
    )


@pytest.mark.parametrize("size", [0, 1, 2, 3, 101, 65_535])
def test_a_bad_size_is_told_as_soon_as_its_two_bytes_are_there(size: int):
    framing = PacketFraming(max_packet_bytes=100)
    header = pack("<H", size)
    assert framing.scan(header[:1]) == Scan(0, 0, None)
    assert framing.scan(header) == Scan(0, 0, size)


@pytest.mark.parametrize("size", [4, 5, 99, 100])
def test_a_size_within_the_bounds_waits_for_its_bytes(size: int):
    framing = PacketFraming(max_packet_bytes=100)
    packet = make_packet(7, bytes(size - HEADER_BYTES))
    for length in range(size):
        assert framing.scan(packet[:length]) == Scan(0, 0, None)
    assert framing.scan(packet) == Scan(size, 1, None)


@given(st.binary(max_size=300), st.integers(HEADER_BYTES, 80))
def test_random_bytes_end_in_an_answer_within_what_is_there(data: bytes, size_max: int):
    scan = PacketFraming(size_max).scan(data)
    assert 0 <= scan.num_bytes <= len(data)
    found = list(iter_packets(data[: scan.num_bytes]))
    assert len(found) == scan.packet_count
    assert b"".join(found) == data[: scan.num_bytes]
    assert all(HEADER_BYTES <= len(packet) <= size_max for packet in found)
    rest = data[scan.num_bytes :]
    if len(rest) >= 2:
        size = int.from_bytes(rest[:2], "little")
        if scan.bad_size is None:
            assert HEADER_BYTES <= size <= size_max
            assert size > len(rest)
        else:
            assert size == scan.bad_size
            assert not HEADER_BYTES <= size <= size_max


@given(packets)
def test_views_are_framed_like_bytes_and_not_copied(sent: list[bytes]):
    view = memoryview(b"".join(sent))
    scan = PacketFraming().scan(view)
    found = list(iter_packets(view[: scan.num_bytes]))
    assert all(isinstance(packet, memoryview) for packet in found)
    assert [bytes(packet) for packet in found] == sent


contents = st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=3))


@given(
    st.lists(contents, min_size=1, max_size=12)
    | st.builds(lambda one, count: [one] * count, contents, st.integers(1, 300)),
    st.binary(max_size=20),
    st.binary(max_size=20),
)
def test_packets_of_any_sizes_are_split_into_ids_and_payloads(
    sent: list[tuple[int, bytes]], before: bytes, behind: bytes
):
    data = b"".join(make_packet(packet_id, payload) for packet_id, payload in sent)
    start = len(before)
    assert list(split_packets(before + data + behind, start, start + len(data))) == sent


def scan_one_by_one(data: bytes, size_max: int) -> Scan:
    """What a scan has to find, by the definition of a packet."""
    offset = count = 0
    while len(data) - offset >= 2:
        (size,) = unpack_from("<H", data, offset)
        if size < HEADER_BYTES or size > size_max:
            return Scan(offset, count, size)
        if size > len(data) - offset:
            break
        offset, count = offset + size, count + 1
    return Scan(offset, count, None)


@given(
    size=st.integers(HEADER_BYTES, 300),
    count=st.integers(1, 12),
    tail=st.binary(max_size=30),
    changes=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=2),
    size_max=st.sampled_from([HEADER_BYTES, 40, 256, 300, PACKET_BYTES_MAX]),
)
def test_packets_that_are_alike_or_nearly_so_are_found_as_if_one_by_one(
    size: int, count: int, tail: bytes, changes: list[tuple[int, int]], size_max: int
):
    data = bytearray(make_packet(258, b"\x04" * (size - HEADER_BYTES)) * count + tail)
    for place, value in changes:
        data[place % len(data)] = value
    for place, value in changes[:1]:  # in a header, more often than by chance
        data[place % count * size + place % 2] = value
    stream = bytes(data)
    expected = scan_one_by_one(stream, size_max)
    assert PacketFraming(size_max).scan(stream) == expected
    assert PacketFraming(size_max).scan(memoryview(stream)) == expected


def test_a_payload_that_looks_like_headers_is_a_payload():
    # Where packets of the first one's size would begin, all but one say that they are.
    sent = [(1, b"ab"), (2, b"cd" + make_packet(3, b"ef") * 2), *[(4, b"gh")] * 3]
    data = b"".join(make_packet(packet_id, payload) for packet_id, payload in sent)
    assert len(data) % 6 == 0
    assert list(split_packets(data, 0, len(data))) == sent


@pytest.mark.parametrize("max_packet_bytes", [-1, 0, HEADER_BYTES - 1, PACKET_BYTES_MAX + 1])
def test_a_maximum_that_no_header_can_say_is_refused(max_packet_bytes: int):
    with pytest.raises(ValueError, match=f"max_packet_bytes={max_packet_bytes}"):
        PacketFraming(max_packet_bytes)


def test_the_largest_packet_holds_65531_payload_bytes():
    packet = make_packet(0xFFFF, bytes(65_531))
    assert len(packet) == PACKET_BYTES_MAX
    assert packet[:4] == b"\xff\xff\xff\xff"
    assert PacketFraming().scan(packet) == Scan(PACKET_BYTES_MAX, 1, None)
    with pytest.raises(ValueError, match="65532 bytes does not fit"):
        make_packet(1, bytes(65_532))


@pytest.mark.parametrize("packet_id", [-1, 65_536, 1.5, "1", None, b"x"])
def test_an_id_that_no_packet_has_is_named(packet_id: Any):
    with pytest.raises(ValueError, match=re.escape(f"packet id {packet_id!r} is not between 0")):
        make_packet(packet_id, b"")


@pytest.mark.parametrize("payload", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_the_header_is_size_and_id_in_little_endian(payload: bytes | bytearray | memoryview):
    assert make_packet(0x0201, payload) == b"\x07\x00\x01\x02abc"


def test_the_size_of_a_view_of_larger_items_is_in_bytes():
    payload = array("I", [1, 2])
    packet = make_packet(3, memoryview(payload))
    assert packet == pack("<HH", 12, 3) + payload.tobytes()
    assert PacketFraming().scan(packet) == Scan(12, 1, None)


@pytest.mark.parametrize("packet_id", [-1, 0x10000])
def test_an_id_out_of_range_is_refused_with_its_value(packet_id: int):
    with pytest.raises(ValueError, match=str(packet_id)):
        make_packet(packet_id, b"")
