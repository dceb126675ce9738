"""The payloads of the records that carry messages between shards, in one place for all sides.

    tell          u16 node, u16 shard, u8 purpose, u64 request, u8 length of the key, key, content
    message       as the tell that it was, but for node and shard
    undelivered   as the tell that it was
    credit        u16 node, u64 bytes

A tell names whom it is for, a message whom it is from. A tell by key has a key and no shard
(0xFFFF): the node that it is for finds the shard, which gets the key as well. `request` is the
asker's number of a question, also in the answer to it. The content is the message: u8 length of its
type's name, the name, and what the application's codec made of it; of a failure it is the reason,
as text.

A credit is the sum of what a shard was ever given back for a node, so that the last one says it
all, however often it is heard.
"""

from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from cluster.shared.names import NAME_BYTES_MAX
from cluster.shared.records import RecordError
from cluster.shared.rendezvous import KEY_BYTES_MAX
from cluster.shared.shard_ids import SHARDS_MAX, ShardId

__all__ = [
    "BY_KEY",
    "CONTENT_BYTES_MAX",
    "REASON_BYTES_MAX",
    "TELL_BYTES_MAX",
    "TELL_WINDOW_BYTES_MAX",
    "Message",
    "Purpose",
    "Tell",
    "content_bytes_max",
    "credit_step",
    "is_answer",
    "pack_content",
    "pack_credit",
    "pack_message",
    "pack_tell",
    "read_content",
    "read_credit",
    "read_message",
    "read_tell",
    "tell_cost",
    "tell_window_bytes",
    "window_for",
]

_TELL = Struct("<HHBQB")
_CREDIT = Struct("<HQ")

BY_KEY = 0xFFFF
"""The shard of a tell by key."""

CONTENT_BYTES_MAX = 65_536
"""The largest message, with the name of its type; a small window allows less."""

REASON_BYTES_MAX = 500
"""Of a failure's reason."""

TELL_BYTES_MAX = _TELL.size + KEY_BYTES_MAX + CONTENT_BYTES_MAX
"""The largest payload of a `tell` record."""

TELL_WINDOW_BYTES_MAX = 1 << 20
"""What one shard may have on its way to one node, however much the links may retain."""

_COST_BYTES = 64
"""What a message counts for beside its record, so that empty ones are not free."""


class Purpose(IntEnum):
    """What a message is for."""

    TELL = 0
    """To be handled."""
    ASK = 1
    """To be handled and answered."""
    REPLY = 2
    """The answer to a question; without content if the handler returned nothing."""
    FAILURE = 3
    """There is no answer; the content is why."""

    @property
    def is_answer(self) -> bool:
        """Whether a question waits for it."""
        return self >= Purpose.REPLY


_PURPOSES = tuple(Purpose)

_PURPOSE_AT = 4
"""Where a `message` record has its purpose."""


class Tell(NamedTuple):
    """A message on its way to a shard, or to the owner of a key."""

    node: int
    shard: int
    purpose: Purpose
    request: int
    key: bytes
    content: bytes

    @property
    def receiver(self) -> ShardId | bytes:
        """The shard, or the key, that it is for."""
        return self.key or ShardId(self.node, self.shard)


class Message(NamedTuple):
    """A message that has come from a shard."""

    sender: ShardId
    purpose: Purpose
    request: int
    key: bytes
    """The one that it was told by; empty if it was told this shard."""
    content: bytes


# -- bytes and windows -----------------------------------------------------------------------------


def tell_window_bytes(retained_bytes_max: int, shard_count: int) -> int:
    """Return what each of `shard_count` shards of a node may have on its way to one node.

    All of them together, with their answers, take at most half of what a link may retain
    (`links.retained_bytes_max`); the rest is for what else goes to that node.
    """
    return min(TELL_WINDOW_BYTES_MAX, retained_bytes_max // 4 // shard_count)


def window_for(purpose: Purpose, window_bytes: int) -> int:
    """Return up to how much may be on its way once a message of `purpose` is.

    Answers have as much again for themselves: questions wait for them, and must not keep them out.
    """
    return 2 * window_bytes if purpose.is_answer else window_bytes


def content_bytes_max(window_bytes: int) -> int:
    """Return how large a message may be under a window; it is half of it at most."""
    return min(CONTENT_BYTES_MAX, window_bytes // 2 - tell_cost(_TELL.size + KEY_BYTES_MAX))


def credit_step(window_bytes: int) -> int:
    """Return how much has to be given back before a worker is told of it.

    So one that tells little is never woken for that. What is not told keeps nobody out for ever:
    a message of half the window has room beside it.
    """
    return window_bytes // 4


def tell_cost(num_bytes: int) -> int:
    """Return what a tell with a payload of `num_bytes` counts for."""
    return num_bytes + _COST_BYTES


# -- payloads --------------------------------------------------------------------------------------


def pack_tell(
    to: ShardId, purpose: Purpose, request: int, content: bytes, key: bytes = b""
) -> bytes:
    """Return the payload of a `tell` record; with a `key`, the shard is `BY_KEY`."""
    return _TELL.pack(to.node, to.shard, purpose, request, len(key)) + key + content


def read_tell(payload: bytes) -> Tell:
    """Return what a `tell` or `undelivered` record says; RecordError if it cannot be one."""
    try:
        node, shard, number, request, key_bytes = _TELL.unpack_from(payload)
        purpose = _PURPOSES[number]
    except (StructError, IndexError):
        raise RecordError(f"a tell that cannot be read: {payload[:100]!r}") from None
    start = _TELL.size
    end = start + key_bytes
    if end > len(payload) or bool(key_bytes) != (shard == BY_KEY):
        raise RecordError(f"a tell that cannot be read: {payload[:100]!r}")
    if shard >= SHARDS_MAX and not key_bytes:
        raise RecordError(f"a tell for shard {shard}, which no node has")
    return Tell(node, shard, purpose, request, payload[start:end], payload[end:])


def pack_message(sender: ShardId, tell: Tell) -> bytes:
    """Return the payload of the `message` record that `tell` becomes at its receiver."""
    node, shard = sender
    key = tell.key
    return _TELL.pack(node, shard, tell.purpose, tell.request, len(key)) + key + tell.content


def read_message(payload: bytes) -> Message:
    """Return what a `message` record says; it comes from the gateway, which is trusted."""
    node, shard, purpose, request, key_bytes = _TELL.unpack_from(payload)
    end = _TELL.size + key_bytes
    key = payload[_TELL.size : end]
    return Message(ShardId(node, shard), _PURPOSES[purpose], request, key, payload[end:])


def is_answer(payload: bytes) -> bool:
    """Return whether a `message` record is the answer to a question, without reading the rest."""
    return payload[_PURPOSE_AT] >= Purpose.REPLY


def pack_credit(node: int, num_bytes: int) -> bytes:
    """Return the payload of a `credit` record."""
    return _CREDIT.pack(node, num_bytes)


def read_credit(payload: bytes) -> tuple[int, int]:
    """Return node and sum of a `credit` record; it comes from the gateway, which is trusted."""
    node, num_bytes = _CREDIT.unpack(payload)
    return node, num_bytes


def pack_content(name: bytes, body: bytes) -> bytes:
    """Return the content of a message whose type is called `name`."""
    assert 0 < len(name) <= NAME_BYTES_MAX
    return b"%c%b%b" % (len(name), name, body)


def read_content(content: bytes) -> tuple[str, bytes]:
    """Return name and body of a message; ValueError if it cannot be one.

    Other nodes may run other versions of the application, but they are no strangers.
    """
    end = 1 + content[0] if content else 0
    if not 1 < end <= len(content):
        raise ValueError(f"a message of {len(content)} bytes without the name of its type")
    return content[1:end].decode(), content[end:]
