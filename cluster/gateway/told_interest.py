"""What one other node has been told of the groups here, and what it has settled. No I/O, no clock.

Changes of a group that follow one another before they are told are one, or none. What is on its
way is bounded: the rest waits here, each group once, until something is settled. A node that is
away for long costs no more than the groups that there are, and those that there were when it left.
"""

from collections import deque
from collections.abc import Callable, Iterable

from cluster.gateway.interest import GroupChange, pack_interest

__all__ = ["ToldInterest"]

RECORD_BYTES_MAX = 16_384
"""About, of one record: a few hundred groups."""

RECORDS_MAX = 8
"""Records that are on their way to one node: enough for a link of 80 ms to carry 1 MB/s."""


class ToldInterest:
    """For one life of one other node, to which all groups are to be told at first."""

    __slots__ = ("_is_complete", "_on_the_way", "_taken", "_told", "_untold")

    def __init__(self, names: Iterable[bytes]) -> None:
        """Begin with the groups that there are."""
        self._untold = dict.fromkeys(names)
        self._on_the_way: deque[list[bytes]] = deque()
        self._taken: list[GroupChange] = []
        self._told: set[bytes] = set()  # the groups that there are by what was sent
        self._is_complete = False  # whether the last record that was sent said so

    def changed(self, name: bytes, is_there: bool) -> None:
        """A group has begun or ended."""
        if is_there == (name in self._told):
            self._untold.pop(name, None)
        else:
            self._untold[name] = None

    def next_record(self, is_there: Callable[[bytes], bool]) -> bytes | None:
        """Return what is to be told next, by what `is_there` says of each group.

        None if there is nothing, or too much is on its way. It counts as told with `sent`.
        """
        if (self._is_complete and not self._untold) or len(self._on_the_way) >= RECORDS_MAX:
            return None
        taken = self._taken = []
        num_bytes = 0
        for name in self._untold:
            taken.append((name, is_there(name)))
            num_bytes += len(name)
            if num_bytes >= RECORD_BYTES_MAX:
                break
        is_complete = len(taken) == len(self._untold)
        return pack_interest(taken, is_complete)

    def sent(self) -> None:
        """The last record that was asked for is on its way."""
        for name, is_there in self._taken:
            del self._untold[name]
            if is_there:
                self._told.add(name)
            else:
                self._told.discard(name)
        self._is_complete = not self._untold
        self._on_the_way.append([name for name, _ in self._taken])
        self._taken = []

    def settled(self) -> list[bytes]:
        """The other node has settled the oldest record; return the groups that it was about."""
        return self._on_the_way.popleft() if self._on_the_way else []

    def knows(self, name: bytes) -> bool:
        """Whether the other node knows of the group what is so here."""
        return name not in self._untold and not any(name in names for names in self._on_the_way)
