"""Which nodes have members in which groups, and how they tell each other. No I/O, no clock.

    interest   u8 INTEREST, u8 whether it is complete, then for each group: u8 whether the sender
               has members, u8 length of the name, name

A node tells each other one which of its groups begin and end, after it has told, at the beginning
of a link's life, all that it has. It is complete with each record behind which the sender had
nothing more to tell. Until the first of those nobody knows what the sender has not got.

Of each node a bounded number of names is kept. A node that has more may have members anywhere, as
one of which nothing is known yet, until it has taken back as many as were not kept.
"""

from collections.abc import Iterable

__all__ = ["INTEREST", "NAMES_MAX", "GroupChange", "Interest", "pack_interest", "read_interest"]

INTEREST = 3
"""The kind of these records among those of links."""

NAMES_MAX = 131_072
"""Names that are kept of one node: at most 80 MB, with names of 255 bytes."""

GroupChange = tuple[bytes, bool]
"""A group's name, and whether the sender has members."""

_HEADER_BYTES = 2


def pack_interest(changes: Iterable[GroupChange], is_complete: bool) -> bytes:
    """Return the record that tells `changes`."""
    parts = [bytes((INTEREST, is_complete))]
    for name, is_there in changes:
        parts += (bytes((is_there, len(name))), name)
    return b"".join(parts)


def read_interest(record: bytes) -> tuple[list[GroupChange], bool]:
    """Return the changes in a record, and whether it is complete; ValueError if it cannot be."""
    changes = []
    offset = _HEADER_BYTES
    while offset < len(record):
        if offset + 2 > len(record):
            raise ValueError("an interest ends within a group")
        is_there, length = record[offset], record[offset + 1]
        offset += 2 + length
        if not length or offset > len(record) or is_there > 1:
            raise ValueError(f"an interest has a group of {length} bytes, which is {is_there}")
        changes.append((record[offset - length : offset], bool(is_there)))
    if len(record) < _HEADER_BYTES or record[1] > 1:
        raise ValueError("an interest does not say whether it is complete")
    return changes, bool(record[1])


class Interest:
    """What the other nodes have told. Bounded by `NAMES_MAX` for each."""

    __slots__ = ("_names", "_nodes", "_unkept", "_unknown")

    def __init__(self) -> None:
        self._nodes: dict[bytes, dict[int, None]] = {}
        self._names: dict[int, set[bytes]] = {}
        self._unknown: dict[int, None] = {}
        self._unkept: dict[int, int] = {}  # how many names are not kept, of nodes that have more

    def begin(self, node: int) -> None:
        """`node` has begun a life, of which nothing is known yet."""
        self.forget(node)
        self._unknown[node] = None

    def learn(self, node: int, changes: Iterable[GroupChange], is_complete: bool) -> int:
        """Take what `node` has told; return how many names of it were not kept."""
        names = self._names.setdefault(node, set())
        unkept = 0
        for name, is_there in changes:
            if name in names:
                if not is_there:
                    names.discard(name)
                    self._drop(node, name)
            elif not is_there:
                self._take_back_unkept(node)
            elif len(names) < NAMES_MAX:
                names.add(name)
                self._nodes.setdefault(name, {})[node] = None
            else:
                self._unkept[node] = self._unkept.get(node, 0) + 1
                unkept += 1
        if is_complete:
            self._unknown.pop(node, None)
        return unkept

    def _take_back_unkept(self, node: int) -> None:
        unkept = self._unkept.pop(node, 0)
        if unkept > 1:
            self._unkept[node] = unkept - 1

    def forget(self, node: int) -> None:
        """`node` has nothing any more."""
        self._unknown.pop(node, None)
        self._unkept.pop(node, None)
        for name in self._names.pop(node, ()):
            self._drop(node, name)

    def _drop(self, node: int, name: bytes) -> None:
        nodes = self._nodes[name]
        del nodes[node]
        if not nodes:
            del self._nodes[name]

    def nodes(self, name: bytes) -> list[int]:
        """Return the nodes that have members in the group, or may have for all that is known."""
        nodes = list(self._nodes.get(name, ()))
        if self._unknown or self._unkept:
            anywhere = self._unknown.keys() | self._unkept.keys()
            nodes += sorted(anywhere.difference(nodes))
        return nodes

    def check_invariants(self) -> None:
        """Raise AssertionError unless names and nodes know each other, and no group is empty."""
        pairs = {(node, name) for name, nodes in self._nodes.items() for node in nodes}
        assert pairs == {(node, name) for node, names in self._names.items() for name in names}
        assert all(self._nodes.values())
        assert all(len(names) <= NAMES_MAX for names in self._names.values())
        assert all(unkept > 0 for unkept in self._unkept.values())
