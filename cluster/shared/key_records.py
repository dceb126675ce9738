"""The payload of a `keys` record: which nodes own keys, and which others there are.

u16 number of owners, u16 each of them, u16 each of the others
"""

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from cluster.shared.records import RecordError

__all__ = ["KeyOwners", "pack_keys", "read_keys"]

_NODE = Struct("<H")


class KeyOwners(NamedTuple):
    """The nodes of a cluster, by whether keys are theirs to own; ids in order."""

    owners: tuple[int, ...]
    others: tuple[int, ...] = ()
    """Those that may be told messages and own no keys: one that drains, or has lost its lease."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(sorted({*self.owners, *self.others}))


def pack_keys(keys: KeyOwners) -> bytes:
    """Return the payload that tells `keys`."""
    nodes = (len(keys.owners), *keys.owners, *keys.others)
    return b"".join(map(_NODE.pack, nodes))


def read_keys(payload: bytes) -> KeyOwners:
    """Return what `pack_keys` made into `payload`; RecordError for anything else."""
    try:
        count, *nodes = (number for (number,) in _NODE.iter_unpack(payload))
    except (StructError, ValueError):
        raise RecordError(f"a `keys` record of {len(payload)} bytes") from None
    if count > len(nodes):
        raise RecordError(f"a `keys` record of {len(nodes)} nodes, {count} of them owners")
    return KeyOwners(tuple(nodes[:count]), tuple(nodes[count:]))
