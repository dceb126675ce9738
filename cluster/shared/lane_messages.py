"""The messages of lanes between processes, in one layout whatever carries them."""

from struct import Struct

from cluster.shared.lane import Commit, LaneViolation, OutboundBatch

__all__ = ["INBOUND", "OUTBOUND_BYTES", "decode_batch", "encode_batch"]

INBOUND = Struct("<QQQI4x")
"""incarnation, position of the first record, last serial applied, number of records; then these"""

_OUTBOUND = Struct("<QQQII")
"""incarnation, serial, position, index, flags; then the records"""
OUTBOUND_BYTES = _OUTBOUND.size

_MORE = 1


def encode_batch(
    incarnation: int, serial: int, commit: Commit, records: list[bytes], more: bool
) -> bytes:
    """Return the message of a batch."""
    header = _OUTBOUND.pack(incarnation, serial, commit[0], commit[1], _MORE if more else 0)
    return b"".join((header, *records))


def decode_batch(message: bytes) -> OutboundBatch:
    """Return the batch in `message`, whose records are a view of it; LaneViolation."""
    if len(message) < OUTBOUND_BYTES:
        raise LaneViolation(f"an outbound message of {len(message)} bytes")
    incarnation, serial, position, index, flags = _OUTBOUND.unpack_from(message)
    return OutboundBatch(
        incarnation,
        serial,
        Commit(position, index),
        memoryview(message)[OUTBOUND_BYTES:],
        bool(flags & _MORE),
    )
