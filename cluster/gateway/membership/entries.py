"""What the store holds of each node, and which id a node takes. No I/O.

An entry lives as long as its node's lease. It is there, without an address, from the moment in
which an id is taken; it counts for others once it says where the node is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from cluster.shared.shard_ids import NODE_ID_MAX

__all__ = [
    "Choice",
    "Entry",
    "NodeTakenError",
    "StoredEntry",
    "choose_node",
    "decode_entry",
    "encode_entry",
]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a node writes of itself."""

    owner: str
    """A random name that stays with a run directory: its lives know each other by it."""
    life: str
    """The life that other nodes meet, in hexadecimal digits."""
    address: str | None
    """`HOST:PORT` where other nodes reach it; None until it listens."""
    takes_keys: bool
    """Whether keys are its to own; a node that drains is there, and takes none."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry as the store has it."""

    node: int
    revision: int
    """Of its last change; what a transaction compares."""
    entry: Entry | None
    """None for what cannot be read: the id is taken, and nobody is called there."""


class NodeTakenError(Exception):
    """The id that is wanted belongs to another node; the message is one line."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The id to take, if its entry is still at `revision`; 0 if there must be none."""

    node: int
    revision: int
    earlier: Entry | None = None
    """What an earlier life of this node has written there."""


def encode_entry(entry: Entry) -> bytes:
    """Return `entry` as JSON."""
    return msgspec.json.encode(entry)


def decode_entry(data: bytes) -> Entry | None:
    """Return the entry that `data` holds; None for anything else."""
    try:
        return msgspec.json.decode(data, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def choose_node(stored: Iterable[StoredEntry], owner: str, wanted: int, last: int) -> Choice:
    """Return which id the node named `owner` takes.

    The id `wanted`, if that is not 0. Else the one that it still has from an earlier life, else
    the one that it had `last` (0: none), if that is free, else the smallest free one. Raises
    NodeTakenError when that is none.
    """
    entries = {each.node: each for each in stored}
    own = [each for each in entries.values() if each.entry and each.entry.owner == owner]
    if wanted:
        held = entries.get(wanted)
        if held is None:
            return Choice(wanted, 0)
        if held in own:
            return Choice(wanted, held.revision, held.entry)
        where = (held.entry and held.entry.address) or "an address that it has not told yet"
        raise NodeTakenError(f"node.id = {wanted} belongs to a node at {where}")
    if own:
        first = min(own, key=lambda each: each.node)
        return Choice(first.node, first.revision, first.entry)
    if last and last not in entries:
        return Choice(last, 0)
    for node in range(1, NODE_ID_MAX + 1):
        if node not in entries:
            return Choice(node, 0)
    raise NodeTakenError(f"all {NODE_ID_MAX} node ids are taken")
