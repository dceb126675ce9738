"""The payload of a `keys` record: the nodes that own keys, those that began anew, and the others.

u16 number of owners, u16 number of those of them that began anew, u16 each of the owners, of those
that began anew, and of the others
"""

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from cluster.shared.records import RecordError

__all__ = ["KeyOwners", "pack_keys", "read_anew", "read_keys"]

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


def pack_keys(keys: KeyOwners, anew: tuple[int, ...] = ()) -> bytes:
    """Return the payload that tells `keys`, and which of the owners have begun `anew`."""
    nodes = (len(keys.owners), len(anew), *keys.owners, *anew, *keys.others)
    return b"".join(map(_NODE.pack, nodes))


def read_keys(payload: bytes) -> KeyOwners:
    """Return what `pack_keys` made into `payload`; RecordError for anything else."""
    return _read(payload)[0]


def read_anew(payload: bytes) -> tuple[int, ...]:
    """Return which of the owners have begun anew; RecordError as `read_keys`."""
    return _read(payload)[1]


def _read(payload: bytes) -> tuple[KeyOwners, tuple[int, ...]]:
    try:
        count, anew_count, *nodes = (number for (number,) in _NODE.iter_unpack(payload))
    except (StructError, ValueError):
        raise RecordError(f"a `keys` record of {len(payload)} bytes") from None
    end = count + anew_count
    if end > len(nodes):
        raise RecordError(
            f"a `keys` record of {len(nodes)} nodes, {count} of them owners, {anew_count} anew"
        )
    return KeyOwners(tuple(nodes[:count]), tuple(nodes[end:])), tuple(nodes[count:end])
