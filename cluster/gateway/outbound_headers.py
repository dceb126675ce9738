"""The headers of a batch, looked at as a whole before any of its records is carried out.

A batch may be hostile input, and one that lies in shared memory may change while it is read. So
each header is read once, and what was checked is what is used; only a batch of very many records
is read a second time, in slices and with the same checks, so that the headers kept stay bounded.
"""

from itertools import repeat

from cluster.iocp.packet_framing import PACKET_BYTES_MAX
from cluster.shared.group_records import JOIN_BYTES_MAX
from cluster.shared.lane import LaneViolation
from cluster.shared.names import NAME_BYTES_MAX
from cluster.shared.records import (
    ACCEPT,
    BIND,
    BROADCAST,
    DEFER,
    DEFERRED,
    DISCONNECT,
    DONE,
    FINISHED,
    JOIN,
    KICK_USER,
    LEAVE,
    PUBLISH,
    RECORD,
    RECORD_BYTES,
    SAVE,
    SAVE_BYTES_MAX,
    SEND,
    SEND_TO,
    TELL,
    UNBIND,
)
from cluster.shared.tell_records import TELL_BYTES_MAX
from cluster.shared.user_records import BIND_BYTES_MAX, UNBIND_BYTES

__all__ = ["HEADERS_MAX", "Header", "check_headers", "read_headers"]

Header = tuple[int, int, int, int]
"""length, kind, count, session"""

HEADERS_MAX = 4_096
"""Headers kept at a time."""

CAUSE_BYTES_MAX = 255

_LENGTH_MAX = {
    SEND: 0xFFFF_FFFF,
    BROADCAST: RECORD_BYTES + PACKET_BYTES_MAX,
    DISCONNECT: RECORD_BYTES + CAUSE_BYTES_MAX,
    SAVE: RECORD_BYTES + SAVE_BYTES_MAX,
    BIND: RECORD_BYTES + BIND_BYTES_MAX,
    UNBIND: RECORD_BYTES + UNBIND_BYTES,
    SEND_TO: RECORD_BYTES + 1 + NAME_BYTES_MAX + PACKET_BYTES_MAX,
    KICK_USER: RECORD_BYTES + 1 + NAME_BYTES_MAX + PACKET_BYTES_MAX,
    JOIN: RECORD_BYTES + JOIN_BYTES_MAX,
    LEAVE: RECORD_BYTES + NAME_BYTES_MAX,
    ACCEPT: RECORD_BYTES,
    PUBLISH: RECORD_BYTES + 1 + NAME_BYTES_MAX + PACKET_BYTES_MAX,
    DEFER: RECORD_BYTES + DEFERRED.size,
    DONE: RECORD_BYTES + FINISHED.size,
    TELL: RECORD_BYTES + TELL_BYTES_MAX,
}
"""The largest record of each outbound kind. What may be for other nodes or is kept for many holds
one packet, which a record of a link can carry; the rest is bounded by its batch."""


def read_headers(view: memoryview, offset: int) -> tuple[list[Header], int]:
    """Return at most HEADERS_MAX headers from `offset` on, and where the next one is.

    Raises LaneViolation for a record that cannot be.
    """
    unpack = RECORD.unpack_from
    length_max = _LENGTH_MAX
    headers: list[Header] = []
    add = headers.append
    end = len(view)
    last = end - RECORD_BYTES
    length = kind = 0
    try:
        for _ in repeat(None, HEADERS_MAX):
            if offset > last:
                break
            header = unpack(view, offset)
            length, kind, _, _ = header
            if not RECORD_BYTES <= length <= length_max[kind]:
                raise LaneViolation(f"an outbound record of {length} bytes, kind {kind}")
            offset += length
            add(header)
    except KeyError:
        raise LaneViolation(f"an outbound record of unknown kind {kind}") from None
    if offset > end:
        raise LaneViolation(
            f"an outbound record of {length} bytes where {end - offset + length} are left"
        )
    if last < offset < end:
        raise LaneViolation(f"{end - offset} bytes after the last record of a batch")
    return headers, offset


def check_headers(view: memoryview, offset: int) -> None:
    """Read all headers from `offset` on and keep none; LaneViolation for one that cannot be."""
    while offset < len(view):
        offset = read_headers(view, offset)[1]
