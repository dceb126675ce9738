"""The records by which two nodes tell each other messages of shards, and what became of them.

told      u8 16, u64 number of the first, then each: u32 length, u16 shard that told it, tell
handled   u8 17, u64 numbers
refused   u8 18, u64 numbers
moved     u8 19, u64 numbers
"""

from collections.abc import Iterable
from struct import Struct

from cluster.gateway.moved_tells import MovedTell
from cluster.gateway.shard_tells import ToldTell
from cluster.shared.records import RecordError
from cluster.shared.shard_ids import SHARDS_MAX

__all__ = [
    "HANDLED",
    "MOVED",
    "NUMBER",
    "RECORD_FILL_BYTES",
    "REFUSED",
    "TOLD",
    "pack_told",
    "read_told",
]

TOLD = 16
HANDLED = 17
REFUSED = 18
MOVED = 19

RECORD_FILL_BYTES = 65_536
"""A record of the link takes another message until it holds this much."""

NUMBER = Struct("<Q")
_NUMBER_MAX = (1 << 64) - 1
_FIRST = Struct("<BQ")
_EACH = Struct("<IH")


def pack_told(first: int, told: Iterable[MovedTell]) -> list[bytes]:
    """Return the `told` records with these messages, which are numbered from `first` on."""
    records: list[bytes] = []
    parts: list[bytes] = []
    num_bytes = 0
    for number, (shard, each) in enumerate(told, first):
        if parts and num_bytes + len(each.payload) > RECORD_FILL_BYTES:
            records.append(b"".join(parts))
            parts, num_bytes = [], 0
        if not parts:
            parts.append(_FIRST.pack(TOLD, number))
        parts += (_EACH.pack(len(each.payload), shard), each.payload)
        num_bytes += len(each.payload)
    records.append(b"".join(parts))
    return records


def read_told(payload: bytes) -> list[tuple[int, int, ToldTell]]:
    """Return number, shard and tell of each message in a `told` record of another node.

    Raises RecordError or struct.error if it cannot be one, as for numbers that no answer can have,
    and for shards that nobody could answer.
    """
    number: int = _FIRST.unpack_from(payload)[1]
    offset = _FIRST.size
    told: list[tuple[int, int, ToldTell]] = []
    while offset < len(payload):
        length, shard = _EACH.unpack_from(payload, offset)
        if shard >= SHARDS_MAX:
            raise RecordError(f"a message of shard {shard}, which no node has")
        offset += _EACH.size
        told.append((number + len(told), shard, ToldTell(payload[offset : offset + length])))
        offset += length
    if number + len(told) > _NUMBER_MAX:
        raise RecordError(f"{len(told)} messages from number {number} on")
    return told
