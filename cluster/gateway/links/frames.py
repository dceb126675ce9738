"""The frames of a link, behind its handshake: a header of 16 bytes and, for a record, a payload.

`RESUME` is the first frame of each side and says how far it is; `RECORD` carries one record;
`ALIVE` says, in one, that the sender lives and how far it is.
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
    "read_progress",
    "scan_frames",
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


def scan_frames(data: bytes | memoryview) -> tuple[list[tuple[int, int, bytes]], int]:
    """Return the complete frames of `data`, as (kind, position, payload), and how long they are.

    Raises LinkViolation for a kind or a length that no frame has, before any of its payload has
    come.
    """
    frames: list[tuple[int, int, bytes]] = []
    offset, end = 0, len(data)
    while end - offset >= FRAME_BYTES:
        length, kind, position = _FRAME.unpack_from(data, offset)
        if not RESUME <= kind <= ALIVE:
            raise LinkViolation(f"a frame of unknown kind {kind}")
        if length > RECORD_BYTES_MAX or (kind != RECORD and length != _SETTLED.size):
            raise LinkViolation(f"a frame of kind {kind} with {length} bytes")
        first, offset_next = offset + FRAME_BYTES, offset + FRAME_BYTES + length
        if offset_next > end:
            break
        frames.append((kind, position, bytes(data[first:offset_next])))
        offset = offset_next
    return frames, offset
