"""How many processes the system has killed lately for want of memory.

Their parents hear of a SIGKILL, as anybody may send, and of nothing else. Linux counts them for
the whole machine, those that exceed the limit of a container or a unit included.
"""

from collections.abc import Callable

from cluster.shared.process import count_memory_kills

__all__ = ["LATELY_S", "MemoryKills"]

LATELY_S = 10.0
"""How far back is looked, at most. A large process takes a while to end when it has been killed."""


class MemoryKills:
    """Times are seconds of any steady clock. For the supervisor's main thread."""

    def __init__(self, count: Callable[[], int] = count_memory_kills) -> None:
        """Ask `count` for all since the system began."""
        self._count = count
        self._before = self._latest = count()
        self._look_due = float("-inf")

    def look(self, now: float) -> None:
        """Note how many there are, if it is time to."""
        if now >= self._look_due:
            self._look_due = now + LATELY_S / 2
            self._before, self._latest = self._latest, self._count()

    def lately(self) -> int:
        """Return how many there were in the last `LATELY_S` seconds."""
        return max(0, self._count() - self._before)
