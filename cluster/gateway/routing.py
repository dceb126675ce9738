"""Which shard a new session goes to. Each way counts the sessions of each shard; no I/O.

A session keeps its shard for life, so this is the only time that anyone chooses.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from cluster.shared.config import RoutingChoice

__all__ = ["FewestSessions", "RoundRobin", "Routing", "make_routing"]


class Routing(ABC):
    """One way to choose a shard."""

    __slots__ = ("counts",)

    def __init__(self, shard_count: int) -> None:
        self.counts = [0] * shard_count
        """The sessions of each shard."""

    def choose(self, served: Sequence[bool]) -> int:
        """Return the shard for a new session and count it there.

        Only shards that can serve it (`served`) are chosen from, or all when none can.
        """
        shard = self._pick(served if any(served) else [True] * len(self.counts))
        self.counts[shard] += 1
        return shard

    def release(self, shard: int) -> None:
        """A session of `shard` has ended."""
        assert self.counts[shard] > 0
        self.counts[shard] -= 1

    @abstractmethod
    def _pick(self, allowed: Sequence[bool]) -> int:
        """Return one of the shards that are `allowed`; at least one is."""


class FewestSessions(Routing):
    """The shard with the fewest sessions, of several the first one."""

    __slots__ = ()

    def _pick(self, allowed: Sequence[bool]) -> int:
        counts = self.counts
        return min(
            (index for index, is_allowed in enumerate(allowed) if is_allowed),
            key=counts.__getitem__,
        )


class RoundRobin(Routing):
    """One shard after the other, however many sessions each has.

    A shard that comes back empty is not flooded with all that is new, as it is by
    `FewestSessions`; nor does it ever catch up by more than its turns.
    """

    __slots__ = ("_last",)

    def __init__(self, shard_count: int) -> None:
        super().__init__(shard_count)
        self._last = shard_count - 1

    def _pick(self, allowed: Sequence[bool]) -> int:
        count = len(allowed)
        turns = ((self._last + step) % count for step in range(1, count + 1))
        self._last = next(shard for shard in turns if allowed[shard])
        return self._last


_ROUTINGS: dict[RoutingChoice, type[Routing]] = {
    "fewest_sessions": FewestSessions,
    "round_robin": RoundRobin,
}


def make_routing(name: RoutingChoice, shard_count: int) -> Routing:
    """Return the routing that `gateway.routing` names."""
    return _ROUTINGS[name](shard_count)
