"""All places of a node where processes wait for a shard: its spares, and candidates beside them.

A spare's place stays when its process leaves it, and is filled again; a candidate's goes with its
process. A plain object: the node starts the processes, and the supervisor decides when.
"""

from collections.abc import Iterator

from cluster.supervisor.child import Child
from cluster.supervisor.spare import Spare

__all__ = ["Spares"]


class Spares:
    """The places of one node, in order. Times are seconds of any steady clock."""

    __slots__ = ("_refills", "candidates", "holds", "lasting")

    def __init__(self, count: int) -> None:
        """Have `count` places that last, and no candidates."""
        self.lasting = [Spare() for _ in range(count)]
        self.candidates: list[Spare] = []
        """Those that wait beside the spares, until each has taken the shard of a worker."""
        self.holds = False
        """Whether places that spares have left stay empty for now."""
        self._refills = True

    def __iter__(self) -> Iterator[Spare]:
        """Every place, as of now, where a process waits for a shard, or is to."""
        return iter([*self.lasting, *self.candidates])

    @property
    def fillable(self) -> list[Spare]:
        """The places whose next process may be started when it is due."""
        return list(self.candidates) if self.holds else list(self)

    @property
    def are_ready(self) -> bool:
        """Whether a process waits in every place that lasts."""
        return all(spare.is_ready for spare in self.lasting)

    def add_candidate(self) -> Spare:
        """Return a place beside the spares, for one process that replaces a worker."""
        candidate = Spare()
        self.candidates.append(candidate)
        return candidate

    def choose(self) -> Spare | None:
        """Return the spare that can take over first, None where nobody waits or starts.

        That is one that is ready, of these one with the latest version of the application, else
        the one that was started first: a process that is half through its imports is ahead of one
        that is not there yet.
        """
        there = [spare for spare in self if spare.child is not None and not spare.is_retired]
        return min(there, key=_rank, default=None)

    def take(self, spare: Spare, now: float) -> Child:
        """Take out the process of `spare`, which is given a shard."""
        child = spare.take(now)
        if not self._has_gone(spare) and not self._refills:
            spare.restart_due = None
        return child

    def retire(self, spare: Spare) -> None:
        """End a process that waits: it is to have no shard. Its place is filled when it is gone."""
        spare.retire()
        if spare.child is None:
            self._has_gone(spare)

    def retired(self, spare: Spare, now: float) -> None:
        """A process that was retired is reaped."""
        spare.withdraw()
        if not self._has_gone(spare) and self._refills:
            spare.restart_due = now

    def _has_gone(self, spare: Spare) -> bool:
        """Forget the place of a candidate; False for one that lasts."""
        if spare not in self.candidates:
            return False
        self.candidates.remove(spare)
        return True

    def refill_no_more(self) -> None:
        """Keep the processes that are there, and no others: the node is about to end."""
        self._refills = False
        for spare in self:
            spare.restart_due = None


def _rank(spare: Spare) -> tuple[bool, int, float]:
    return not spare.is_ready, -(spare.version or 0), spare.started_at
