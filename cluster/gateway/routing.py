"""Which shard a new session goes to: the one with the fewest sessions."""

from collections.abc import Sequence

__all__ = ["FewestSessions"]


class FewestSessions:
    """Counts the sessions of each shard. No I/O."""

    __slots__ = ("counts",)

    def __init__(self, shard_count: int) -> None:
        self.counts = [0] * shard_count

    def choose(self, served: Sequence[bool]) -> int:
        """Return the shard for a new session and count it there.

        Shards that can serve it (`served`) come first, then the fewest sessions decide, then
        the lower number.
        """
        counts = self.counts
        shard = min(range(len(counts)), key=lambda index: (not served[index], counts[index]))
        counts[shard] += 1
        return shard

    def release(self, shard: int) -> None:
        """A session of `shard` has ended."""
        assert self.counts[shard] > 0
        self.counts[shard] -= 1
