"""The records of a batch, looked at as a whole before any of them is carried out.

A batch may be hostile input, and one that lies in shared memory may change while it is read. So
each header is read once, and what was checked is what is used; only a batch of very many records
is read a second time, in slices and with the same checks, so that what is kept stays bounded.
Packets for several sessions that follow one another are one step, because most batches are that.
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
    FORGET,
    JOIN,
    KEEP,
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
from cluster.shared.saved_records import KEEP_BYTES_MAX
from cluster.shared.tell_records import TELL_BYTES_MAX
from cluster.shared.user_records import BIND_BYTES_MAX, UNBIND_BYTES

__all__ = ["RECORDS_MAX", "Step", "check_records", "read_steps"]

Step = tuple[int, int, memoryview] | tuple[int, int, dict[int, memoryview]]
"""kind, session, payload; of a `send` no session and, for each of a run of them, its packets"""

RECORDS_MAX = 4_096
"""Records kept at a time."""

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
    KEEP: RECORD_BYTES + KEEP_BYTES_MAX,
    FORGET: RECORD_BYTES + NAME_BYTES_MAX,
}
"""The largest record of each outbound kind. What may be for other nodes or is kept for many holds
one packet, which a record of a link can carry; the rest is bounded by its batch."""


def read_steps(view: memoryview, offset: int) -> tuple[list[Step], int]:
    """Return what at most RECORDS_MAX records from `offset` on ask for, and where the next one is.

    Raises LaneViolation for a record that cannot be.
    """
    unpack = RECORD.unpack_from
    length_max = _LENGTH_MAX
    steps: list[Step] = []
    run: dict[int, memoryview] = {}
    is_run = False
    end = len(view)
    last = end - RECORD_BYTES
    length = kind = 0
    try:
        for _ in repeat(None, RECORDS_MAX):
            if offset > last:
                break
            length, kind, _, session = unpack(view, offset)
            first = offset + RECORD_BYTES
            offset += length
            if kind == SEND and length >= RECORD_BYTES:
                if not is_run or session in run:
                    is_run, run = True, {}
                    steps.append((SEND, 0, run))
                run[session] = view[first:offset]
                continue
            if not RECORD_BYTES <= length <= length_max[kind]:
                raise LaneViolation(f"an outbound record of {length} bytes, kind {kind}")
            is_run = False
            steps.append((kind, session, view[first:offset]))
    except KeyError:
        raise LaneViolation(f"an outbound record of unknown kind {kind}") from None
    if offset > end:
        raise LaneViolation(
            f"an outbound record of {length} bytes where {end - offset + length} are left"
        )
    if last < offset < end:
        raise LaneViolation(f"{end - offset} bytes after the last record of a batch")
    return steps, offset


def check_records(view: memoryview, offset: int) -> None:
    """Look at all records from `offset` on and keep none; LaneViolation for one that cannot be."""
    while offset < len(view):
        offset = read_steps(view, offset)[1]
