"""Which member of a cluster owns a key: rendezvous hashing (highest random weight).

Every member has a weight for every key, a hash of both, and the heaviest owns the key. So all who
know the same members agree without a word, the keys spread evenly, and a member that joins or
leaves moves only the keys that it gets or had. The hash is BLAKE2b: the same in every process, on
every machine, and nobody who chooses keys can aim at a member cheaply.
"""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["KEY_BYTES_MAX", "Key", "encode_key", "owner"]

Key = str | bytes | int
"""What an application may use as a key."""

KEY_BYTES_MAX = 255

_PERSON = b"cluster.owner"
_WEIGHT_BYTES = 8

_Member = TypeVar("_Member", bound=int | tuple[int, ...])


def encode_key(key: Key) -> bytes:
    """Return `key` as the bytes that are hashed: a str in UTF-8, an int in decimal digits.

    So 7, "7" and b"7" are one key. Raises TypeError for anything else, ValueError for what is
    empty, no text, or longer than `KEY_BYTES_MAX` bytes.
    """
    try:
        data = _to_bytes(key)
    except UnicodeEncodeError:
        raise ValueError(f"key {key!r} cannot be written as UTF-8") from None
    if not 0 < len(data) <= KEY_BYTES_MAX:
        raise ValueError(f"a key of {len(data)} bytes; give 1 to {KEY_BYTES_MAX}")
    return data


def _to_bytes(key: Key) -> bytes:
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    if isinstance(key, int):
        return b"%d" % key
    raise TypeError(f"a key is a str, bytes or an int, not {type(key).__name__}: {key!r}")


def owner(key: Key, members: Iterable[_Member]) -> _Member:
    """Return the one of `members` that owns `key`, whatever the order in which they are given.

    A member is an int, such as the id of a node, or a tuple of ints, such as a node's id and the
    index of one of its shards; the weights of these are independent of each other. Two levels, of
    nodes and then of one node's shards, are two calls. Raises ValueError when there is no member,
    and what `encode_key` raises.
    """
    from hashlib import blake2b  # not at the top: a process that owns no keys starts faster

    weigh = blake2b(encode_key(key), digest_size=_WEIGHT_BYTES, person=_PERSON)
    best: tuple[bytes, bytes, _Member] | None = None
    for member in members:
        name = b"/" + _name(member)
        weight = weigh.copy()
        weight.update(name)
        candidate = (weight.digest(), name, member)
        if best is None or candidate[:2] > best[:2]:
            best = candidate
    if best is None:
        raise ValueError(f"no member can own key {key!r}: there is none")
    return best[2]


def _name(member: int | tuple[int, ...]) -> bytes:
    if isinstance(member, int):
        return b"%d" % member
    return b".".join(b"%d" % part for part in member)
