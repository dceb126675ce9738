"""Records as tests read and write them: one after the other, each checked by itself."""

from collections.abc import Iterator
from typing import NamedTuple

from cluster.shared.records import (
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD,
    RECORD_BYTES,
    RecordError,
    pack_packets,
)

__all__ = ["Record", "iter_records", "make_packets_record"]


class Record(NamedTuple):
    """One record of a chunk; `payload` is a view into it."""

    kind: int
    packet_count: int
    session: int
    payload: memoryview


def make_packets_record(
    session: int, first_sequence: int, packets: bytes, packet_count: int
) -> bytes:
    """Return the bytes of a `packets` record."""
    length = PACKETS_OVERHEAD + len(packets)
    return pack_packets(length, PACKETS, packet_count, session, first_sequence) + packets


def iter_records(chunk: bytes | memoryview) -> Iterator[Record]:
    """Yield the records of `chunk`; RecordError when a length does not fit in it."""
    view = memoryview(chunk)
    offset, end = 0, len(view)
    while offset < end:
        if end - offset < RECORD_BYTES:
            raise RecordError(f"{end - offset} bytes after the last record")
        length, kind, packet_count, session = RECORD.unpack_from(view, offset)
        if not RECORD_BYTES <= length <= end - offset:
            raise RecordError(f"a record of {length} bytes where {end - offset} are left")
        yield Record(kind, packet_count, session, view[offset + RECORD_BYTES : offset + length])
        offset += length
