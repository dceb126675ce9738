"""What a shard saves under names of its own, in one place for both sides.

    keep      u8 length of the name, name, blob
    forget    name

A name is 1 to 255 bytes of UTF-8; to the gateway it is bytes. Both sides count what is saved by
`saved_bytes`, so what a worker lets its application save is what the gateway takes.
"""

from cluster.shared.names import NAME_BYTES_MAX
from cluster.shared.records import SAVE_BYTES_MAX, RecordError

__all__ = [
    "KEEP_BYTES_MAX",
    "SAVED_BYTES_MAX",
    "check_forget",
    "pack_keep",
    "read_keep",
    "saved_bytes",
]

SAVED_BYTES_MAX = 16 << 20
"""What a shard may save unless its node says otherwise."""

KEEP_BYTES_MAX = 1 + NAME_BYTES_MAX + SAVE_BYTES_MAX

ENTRY_BYTES = 128
"""What a name and a blob take beside their own bytes, with what finds them."""


def pack_keep(name: bytes, blob: bytes) -> bytes:
    """Return the payload of a `keep` record."""
    return b"%c%b%b" % (len(name), name, blob)


def read_keep(payload: bytes) -> tuple[bytes, bytes]:
    """Return name and blob of a `keep` record; RecordError if it cannot be one."""
    end = 1 + payload[0] if payload else 0
    if not 1 < end <= len(payload) or len(payload) - end > SAVE_BYTES_MAX:
        raise RecordError(f"a keep that cannot be read: {payload[:300]!r}")
    return payload[1:end], payload[end:]


def check_forget(payload: bytes) -> bytes:
    """Return the name in a `forget` record; RecordError if it cannot be one."""
    if not 0 < len(payload) <= NAME_BYTES_MAX:
        raise RecordError(f"the name of something saved of {len(payload)} bytes")
    return payload


def saved_bytes(name: bytes, blob: bytes | None) -> int:
    """Return what counts for `blob` under `name`; nothing for None, which is not saved."""
    return 0 if blob is None else ENTRY_BYTES + len(name) + len(blob)
