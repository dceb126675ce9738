"""Records go through a chunk unchanged; a chunk that is none ends in an error, never in a loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.records import (
    CLOSED,
    OPENED,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD,
    RECORD_BYTES,
    SEND,
    SEQUENCE,
    RecordError,
    RecordKind,
    make_record,
)
from tests.record_reader import Record, iter_records, make_packets_record

_U16 = st.integers(0, 0xFFFF)
_U64 = st.integers(0, (1 << 64) - 1)


def test_the_layout_stays_as_it_is() -> None:
    assert make_record(SEND, 0x0102030405060708, b"ab", 3) == (
        b"\x12\x00\x00\x00\x10\x00\x03\x00\x08\x07\x06\x05\x04\x03\x02\x01ab"
    )
    assert make_packets_record(1, 2, b"abcd", 1) == (
        b"\x1c\x00\x00\x00\x02\x00\x01\x00\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0abcd"
    )
    assert RECORD_BYTES + SEQUENCE.size == PACKETS_OVERHEAD


def test_the_kinds_of_the_two_directions_are_apart() -> None:
    assert [kind.value for kind in RecordKind] == [*range(1, 13), *range(16, 33)]


@given(st.lists(st.tuples(_U16, _U64, st.binary(max_size=80), _U16)))
def test_records_come_out_as_they_went_in(
    records: list[tuple[int, int, bytes, int]],
) -> None:
    chunk = b"".join(
        make_record(kind, session, payload, count) for kind, session, payload, count in records
    )
    for view in (chunk, memoryview(chunk), memoryview(bytearray(chunk))):
        assert [
            (record.kind, record.session, bytes(record.payload), record.packet_count)
            for record in iter_records(view)
        ] == records


@given(session=_U64, sequence=_U64, packets=st.binary(max_size=80), count=_U16)
def test_a_packets_record_is_a_sequence_and_packets(
    session: int, sequence: int, packets: bytes, count: int
) -> None:
    (record,) = iter_records(make_packets_record(session, sequence, packets, count))
    assert record[:3] == (PACKETS, count, session)
    assert SEQUENCE.unpack_from(record.payload) == (sequence,)
    assert bytes(record.payload[SEQUENCE.size :]) == packets


def test_an_empty_chunk_has_no_records() -> None:
    assert list(iter_records(b"")) == []


def test_a_payload_is_a_view_and_no_copy() -> None:
    memory = bytearray(make_record(OPENED, 1, b"before"))
    (record,) = iter_records(memoryview(memory))
    memory[-6:] = b"after!"
    assert bytes(record.payload) == b"after!"


@pytest.mark.parametrize("length", [0, 1, 15, 17, 18, 0xFFFF_FFFF])
def test_a_length_that_does_not_fit_is_an_error(length: int) -> None:
    good = make_record(CLOSED, 1, b"eof")
    records = iter_records(good + RECORD.pack(length, SEND, 0, 1))
    assert bytes(next(records).payload) == b"eof"
    with pytest.raises(RecordError, match=str(length)):
        next(records)


@pytest.mark.parametrize("rest", range(1, RECORD_BYTES))
def test_bytes_after_the_last_record_are_an_error(rest: int) -> None:
    with pytest.raises(RecordError, match=str(rest)):
        list(iter_records(make_record(CLOSED, 1, b"eof") + bytes(rest)))


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(chunk: bytes) -> None:
    _read_hostile(chunk)


@given(
    lengths=st.lists(st.integers(0, 40) | _U16, min_size=1, max_size=8),
    cut=st.integers(0, 40),
)
def test_any_lengths_are_records_or_an_error(lengths: list[int], cut: int) -> None:
    chunk = b"".join(RECORD.pack(length, SEND, 0, 1) + bytes(length % 24) for length in lengths)
    _read_hostile(chunk[: len(chunk) - cut])


def _read_hostile(chunk: bytes) -> None:
    read: list[Record] = []
    try:
        for record in iter_records(chunk):
            read.append(record)
            assert len(read) <= len(chunk) // RECORD_BYTES
    except RecordError:
        pass
    else:
        assert sum(RECORD_BYTES + len(record.payload) for record in read) == len(chunk)
