"""What the workers of a shard have saved for the shard itself, as of the commit.

A worker that is granted the shard has all of it from the first moment. It is gone with the gateway:
it is there for what clients that stay connected depend on.
"""

from cluster.shared.lane import LaneViolation
from cluster.shared.saved_records import saved_bytes

__all__ = ["ShardSaves"]


class ShardSaves:
    """What one shard has saved, under names. For the dispatching thread.

    Bounded: `num_bytes` by what is allowed, and what is pending by a batch.
    """

    __slots__ = ("_blobs", "_pending", "max_bytes", "num_bytes")

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes`, as `saved_bytes` counts them."""
        self.max_bytes = max_bytes
        self._blobs: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self.num_bytes = 0
        """What is saved, as of the commit."""

    @property
    def has_pending(self) -> bool:
        """Whether the batch in hand saves or forgets anything."""
        return bool(self._pending)

    def save(self, name: bytes, blob: bytes | None) -> None:
        """Have `blob` under `name`, or nothing for None, once the batch in hand is committed."""
        self._pending[name] = blob

    def check(self) -> None:
        """Raise LaneViolation if the batch in hand, which is whole, saves more than is allowed."""
        num_bytes = self.num_bytes + self._growth()
        if num_bytes > self.max_bytes:
            raise LaneViolation(
                f"{num_bytes} bytes saved for a shard; workers.saved_bytes_max allows "
                f"{self.max_bytes}"
            )

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        self._pending.clear()

    def commit(self) -> None:
        """The batch in hand is committed."""
        self.num_bytes += self._growth()
        for name, blob in self._pending.items():
            if blob is None:
                self._blobs.pop(name, None)
            else:
                self._blobs[name] = blob
        self._pending.clear()

    def replay(self) -> dict[str, bytes]:
        """Return what a successor is told."""
        return {name.decode("utf-8", "replace"): blob for name, blob in self._blobs.items()}

    def _growth(self) -> int:
        find = self._blobs.get
        return sum(
            saved_bytes(name, blob) - saved_bytes(name, find(name))
            for name, blob in self._pending.items()
        )

    def check_invariants(self) -> None:
        """Raise AssertionError unless what is counted is what is there."""
        assert self.num_bytes == sum(map(saved_bytes, self._blobs, self._blobs.values()))
        assert self.num_bytes <= self.max_bytes
