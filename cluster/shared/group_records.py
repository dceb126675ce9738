"""The payloads of the records that groups come with, in one place for both sides.

    join, joined  u32 request, name
    leave         name
    publish       u8 length of the name, name, packets; the session of the record is left out

A name is 1 to 255 bytes of UTF-8; to the gateway it is bytes. `request` is 0 in a join that wants
no answer. Others number a session's joins from 1, also across the lives of its workers: the answer
to a join that was left again is known for what it is.
"""

from struct import Struct

from cluster.shared.names import NAME_BYTES_MAX
from cluster.shared.records import RecordError

__all__ = [
    "GROUPS_MAX",
    "JOIN_BYTES_MAX",
    "check_group",
    "pack_join",
    "pack_publish",
    "read_join",
    "read_publish",
]

_JOIN = Struct("<I")

JOIN_BYTES_MAX = _JOIN.size + NAME_BYTES_MAX

GROUPS_MAX = 1_024
"""Groups that one session may be in."""


def check_group(payload: bytes) -> bytes:
    """Return the name in a `leave`; RecordError if it cannot be one."""
    if not 0 < len(payload) <= NAME_BYTES_MAX:
        raise RecordError(f"a group's name of {len(payload)} bytes")
    return payload


def pack_join(request: int, name: bytes) -> bytes:
    """Return the payload of a `join` or `joined` record."""
    return _JOIN.pack(request) + name


def read_join(payload: bytes) -> tuple[int, bytes]:
    """Return request and name of a `join` or `joined` record; RecordError if it cannot be one."""
    if len(payload) < _JOIN.size:
        raise RecordError(f"a join of {len(payload)} bytes")
    request: int = _JOIN.unpack_from(payload)[0]
    return request, check_group(payload[_JOIN.size :])


def pack_publish(name: bytes, packets: bytes) -> bytes:
    """Return the payload of a `publish` record."""
    return b"%c%b%b" % (len(name), name, packets)


def read_publish(payload: bytes) -> tuple[bytes, bytes]:
    """Return name and packets of a `publish` record; RecordError if it cannot be one."""
    end = 1 + payload[0] if payload else 0
    if not 1 < end < len(payload):
        raise RecordError(f"a publish that cannot be read: {payload[:300]!r}")
    return payload[1:end], payload[end:]
