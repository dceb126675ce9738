"""The frames of a link: a header of 16 bytes and, for a record, a payload.

`RESUME` is the first frame of each side and says how far it is; `RECORD` carries one record;
`ALIVE` says, in one, that the sender lives and how far it is. They go under seals (`seals`).
"""

from struct import Struct

from cluster.gateway.links.link_log import LinkViolation, Progress

__all__ = [
    "ALIVE",
    "FRAME_BYTES",
    "RECORD",
    "RECORD_BYTES_MAX",
    "RESUME",
    "make_frame",
    "make_progress_frame",
    "read_frames",
    "read_progress",
]

_FRAME = Struct("<IB3xQ")
"""bytes of payload, kind, position"""
FRAME_BYTES = _FRAME.size

_SETTLED = Struct("<Q")
"""The payload of `RESUME` and `ALIVE`, whose position is what was received."""

RESUME = 1
RECORD = 2
ALIVE = 3

RECORD_BYTES_MAX = 1 << 20
"""The largest payload of a record."""


def make_frame(kind: int, position: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return _FRAME.pack(len(payload), kind, position) + payload


def make_progress_frame(kind: int, progress: Progress) -> bytes:
    """Return a frame, `RESUME` or `ALIVE`, that tells `progress`."""
    return make_frame(kind, progress.received, _SETTLED.pack(progress.settled))


def read_progress(position: int, payload: bytes) -> Progress:
    """Return what a `RESUME` or `ALIVE` tells."""
    return Progress(position, _SETTLED.unpack(payload)[0])


def read_frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the frames of which `data` consists, as (kind, position, payload).

    Raises LinkViolation for a kind or a length that no frame has.
    """
    frames: list[tuple[int, int, bytes]] = []
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < FRAME_BYTES:
            raise LinkViolation("what it sent ends within a frame")
        length, kind, position = _FRAME.unpack_from(data, offset)
        if not RESUME <= kind <= ALIVE:
            raise LinkViolation(f"a frame of unknown kind {kind}")
        if length > RECORD_BYTES_MAX or (kind != RECORD and length != _SETTLED.size):
            raise LinkViolation(f"a frame of kind {kind} with {length} bytes")
        first, offset = offset + FRAME_BYTES, offset + FRAME_BYTES + length
        if offset > end:
            raise LinkViolation("what it sent ends within a frame")
        frames.append((kind, position, data[first:offset]))
    return frames
