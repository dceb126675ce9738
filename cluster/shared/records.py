"""Records: the entries of a lane, in one layout for every kind of lane.

A record is a 16-byte header — length with the header, kind, count, session — and its payload,
little-endian. Records stand one behind the other in a chunk; where a chunk lies (a ZeroMQ
message, a ring) is the lane's affair. `count` is the number of packets of a `packets` record
and 0 for all others.
"""

from enum import IntEnum
from struct import Struct

__all__ = [
    "ACCEPT",
    "BIND",
    "BOUND",
    "BROADCAST",
    "CLOSED",
    "CREDIT",
    "DEFER",
    "DEFERRED",
    "DISCONNECT",
    "DONE",
    "DRAIN",
    "FINISHED",
    "FORGET",
    "JOIN",
    "JOINED",
    "KEEP",
    "KEYS",
    "KICK_USER",
    "LEAVE",
    "MESSAGE",
    "OF_SHARDS",
    "OPENED",
    "PACKETS",
    "PACKETS_OVERHEAD",
    "PUBLISH",
    "RECORD",
    "RECORD_BYTES",
    "SAVE",
    "SAVE_BYTES_MAX",
    "SEND",
    "SEND_BLOCKED",
    "SEND_READY",
    "SEND_TO",
    "SEQUENCE",
    "TELL",
    "UNBIND",
    "UNDELIVERED",
    "RecordError",
    "RecordKind",
    "make_record",
    "pack_packets",
]

RECORD = Struct("<IHHQ")
"""length, kind, count, session"""
RECORD_BYTES = RECORD.size

SEQUENCE = Struct("<Q")
"""Sequence number of the first packet of a `packets` record, ahead of the packets themselves."""

_PACKETS_RECORD = Struct("<IHHQQ")
pack_packets = _PACKETS_RECORD.pack
"""Pack what stands ahead of the packets: length, kind, count, session, first sequence."""
PACKETS_OVERHEAD = _PACKETS_RECORD.size
"""Bytes of a `packets` record that are not packets."""


DEFERRED = Struct("<QHH")
"""What a `defer` record names: a position, the index of the first packet, how many packets."""

FINISHED = Struct("<QH")
"""What a `done` record names: a position and the index of a packet."""


class RecordKind(IntEnum):
    """What a record says. Inbound kinds go to the worker, outbound kinds to the gateway."""

    OPENED = 1
    """Inbound: a session has connected; the payload is its address."""
    PACKETS = 2
    """Inbound: a sequence number, then complete packets as they were received."""
    CLOSED = 3
    """Inbound: a session has ended, or will once this is committed; the payload is the cause."""
    BOUND = 4
    """Inbound: the answer to a `bind` of the session (`user_records`)."""
    SEND_BLOCKED = 5
    """Inbound: much waits to be sent to the session; no payload."""
    SEND_READY = 6
    """Inbound: little waits again to be sent to the session; no payload."""
    MESSAGE = 7
    """Inbound: a message of another shard, or of this one (`tell_records`); of no session."""
    CREDIT = 8
    """Inbound: how much of what the shard has told one node has come to its end; of no session."""
    UNDELIVERED = 9
    """Inbound: a tell of the shard of which nobody knows what became; of no session."""
    JOINED = 10
    """Inbound: the linked nodes know of a join of the session (`group_records`)."""
    KEYS = 11
    """Inbound: which nodes own keys from here on (`key_records`); of no session."""
    DRAIN = 12
    """Inbound: the application is to let its sessions go (`drain_records`); of no session."""
    SEND = 16
    """Outbound: complete packets for one session."""
    BROADCAST = 17
    """Outbound: complete packets for every session of the node."""
    DISCONNECT = 18
    """Outbound: end a session in good order; the payload is the cause."""
    SAVE = 19
    """Outbound: what a successor is to know of a session; replaces what was saved before."""
    JOIN = 20
    """Outbound: the session is in a group from here on (`group_records`)."""
    LEAVE = 21
    """Outbound: it is not any more; the payload is the group's name."""
    PUBLISH = 22
    """Outbound: complete packets for every member of a group but the session (`group_records`)."""
    BIND = 23
    """Outbound: the session is to be a user (`user_records`); answered by a `bound`."""
    UNBIND = 24
    """Outbound: the session is no user any more."""
    SEND_TO = 25
    """Outbound: complete packets for the session of a user, whichever shard has it."""
    ACCEPT = 26
    """Outbound: packets of every id of the session get through from now on; no payload."""
    DEFER = 27
    """Outbound: handler calls of one inbound record that are committed and not done (`DEFERRED`).

    An index is 0, and the number 1, where the record is not of packets."""
    DONE = 28
    """Outbound: a deferred handler call is done (`FINISHED`)."""
    TELL = 29
    """Outbound: a message for a shard or the owner of a key (`tell_records`); of no session."""
    KICK_USER = 30
    """Outbound: like `send_to`, and the session of the user is to be ended behind the packets."""
    KEEP = 31
    """Outbound: what a successor is to know under a name (`saved_records`); of no session."""
    FORGET = 32
    """Outbound: nothing is to be known under that name any more; of no session."""


# Plain integers for the paths that look at every record.
OPENED = int(RecordKind.OPENED)
PACKETS = int(RecordKind.PACKETS)
CLOSED = int(RecordKind.CLOSED)
BOUND = int(RecordKind.BOUND)
SEND_BLOCKED = int(RecordKind.SEND_BLOCKED)
SEND_READY = int(RecordKind.SEND_READY)
MESSAGE = int(RecordKind.MESSAGE)
CREDIT = int(RecordKind.CREDIT)
UNDELIVERED = int(RecordKind.UNDELIVERED)
JOINED = int(RecordKind.JOINED)
KEYS = int(RecordKind.KEYS)
DRAIN = int(RecordKind.DRAIN)
SEND = int(RecordKind.SEND)
BROADCAST = int(RecordKind.BROADCAST)
DISCONNECT = int(RecordKind.DISCONNECT)
SAVE = int(RecordKind.SAVE)
JOIN = int(RecordKind.JOIN)
LEAVE = int(RecordKind.LEAVE)
PUBLISH = int(RecordKind.PUBLISH)
BIND = int(RecordKind.BIND)
UNBIND = int(RecordKind.UNBIND)
SEND_TO = int(RecordKind.SEND_TO)
ACCEPT = int(RecordKind.ACCEPT)
DEFER = int(RecordKind.DEFER)
DONE = int(RecordKind.DONE)
TELL = int(RecordKind.TELL)
KICK_USER = int(RecordKind.KICK_USER)
KEEP = int(RecordKind.KEEP)
FORGET = int(RecordKind.FORGET)

OF_SHARDS = frozenset({MESSAGE, CREDIT, UNDELIVERED, KEYS, DRAIN})
"""Inbound kinds that concern no session, but what shards tell each other, who owns keys, and that
the node is about to end."""

SAVE_BYTES_MAX = 65_536
"""The largest payload of a `save` record: the gateway keeps one for each session. So the largest
blob of a `keep` record."""


class RecordError(Exception):
    """A chunk that is not a sequence of records; whoever wrote it cannot be trusted."""


def make_record(kind: int, session: int, payload: bytes, packet_count: int = 0) -> bytes:
    """Return the bytes of one record."""
    return RECORD.pack(RECORD_BYTES + len(payload), kind, packet_count, session) + payload
