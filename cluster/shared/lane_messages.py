"""The messages of lanes between processes, in one layout whatever carries them."""

from struct import Struct

from cluster.shared.lane import Commit, LaneViolation, OutboundBatch

__all__ = ["INBOUND", "OUTBOUND_BYTES", "decode_batch", "encode_batch"]

INBOUND = Struct("<QQQI4x")
"""incarnation, position of the first record, last serial applied, number of records; then these"""

_OUTBOUND = Struct("<QQQI4x")
"""incarnation, serial, position, index; then the records"""
OUTBOUND_BYTES = _OUTBOUND.size


def encode_batch(incarnation: int, serial: int, commit: Commit, records: list[bytes]) -> bytes:
    """Return the message of a batch."""
    header = _OUTBOUND.pack(incarnation, serial, commit[0], commit[1])
    return b"".join((header, *records))


def decode_batch(message: bytes) -> OutboundBatch:
    """Return the batch in `message`, whose records are a view of it; LaneViolation."""
    if len(message) < OUTBOUND_BYTES:
        raise LaneViolation(f"an outbound message of {len(message)} bytes")
    incarnation, serial, position, index = _OUTBOUND.unpack_from(message)
    records = memoryview(message)[OUTBOUND_BYTES:]
    return OutboundBatch(incarnation, serial, Commit(position, index), records)
