"""Tells the records that an earlier incarnation may have handled from those that are new."""

from cluster.shared.lane import InboundChunk
from cluster.shared.records import RECORD

__all__ = ["split_redelivered"]


def split_redelivered(
    chunk: InboundChunk, through: int
) -> tuple[list[tuple[int, InboundChunk]], InboundChunk | None]:
    """Return each record up to position `through` with its session, and the rest if there is any.

    For the start of a successor only, so what it costs for each record does not matter.
    """
    data = memoryview(chunk.records)
    again: list[tuple[int, InboundChunk]] = []
    offset, position = 0, chunk.first_position
    while offset < len(data) and position <= through:
        length, _, _, session_id = RECORD.unpack_from(data, offset)
        again.append((session_id, InboundChunk(position, data[offset : offset + length])))
        offset += length
        position += 1
    return again, InboundChunk(position, data[offset:]) if offset < len(data) else None
