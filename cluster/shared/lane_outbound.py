"""Outbound batches at both ends of a lane: what the gateway may apply, what a worker may publish.

No I/O, no clock. The invariant: batches are taken one serial after the other, of one incarnation,
each as a whole, and both ends count the same bytes as not yet taken.
"""

from collections import deque

from cluster.shared.lane import LaneViolation, OutboundBatch

__all__ = ["OutboundSequence", "OutboundWindow"]


class OutboundSequence:
    """Takes the granted incarnation's batches, one serial after the other."""

    __slots__ = (
        "_in_hand",
        "incarnation",
        "max_batch_bytes",
        "serial",
        "serial_applied",
    )

    def __init__(self, max_batch_bytes: int) -> None:
        """Allow batches of up to `max_batch_bytes`."""
        self.max_batch_bytes = max_batch_bytes
        self.incarnation = 0
        self.serial = 0
        """The last batch that was taken."""
        self.serial_applied = 0
        """The last batch that was applied."""
        self._in_hand: OutboundBatch | None = None

    def grant(self, incarnation: int) -> None:
        """Expect the batches of `incarnation`, from serial 1."""
        if incarnation <= self.incarnation:
            raise ValueError(f"incarnation {incarnation} was granted after {self.incarnation}")
        self.incarnation = incarnation
        self.serial = self.serial_applied = 0

    def revoke(self) -> None:
        """Forget the batch in hand."""
        self._in_hand = None

    def take(self, batch: OutboundBatch) -> None:
        """Take the next batch, which is to be `applied` before the one after it.

        Raises LaneViolation when it is not the one expected, or too large.
        """
        if self._in_hand is not None:
            raise ValueError(f"batch {self.serial} is still to be applied")
        if batch.incarnation != self.incarnation:
            raise LaneViolation(
                f"a batch of incarnation {batch.incarnation}, but {self.incarnation} has the lane"
            )
        if batch.serial != self.serial + 1:
            raise LaneViolation(f"batch {batch.serial} came after batch {self.serial}")
        self.serial = batch.serial
        num_bytes = len(batch.records)
        if num_bytes > self.max_batch_bytes:
            raise LaneViolation(f"a batch of {num_bytes} bytes; at most {self.max_batch_bytes}")
        self._in_hand = batch

    def applied(self, batch: OutboundBatch) -> None:
        """`batch`, the last that `take` was given, was carried out."""
        if batch is not self._in_hand:
            raise ValueError(f"batch {batch.serial} was not received last, or its worker is fenced")
        self._in_hand = None
        self.serial_applied = batch.serial


class OutboundWindow:
    """How many outbound bytes a worker may have published that the gateway has not taken.

    The gateway tells what it has taken with the next records, and by itself only once that is
    a quarter of the capacity (`must_tell`). So a batch is refused only while at least as much is
    outstanding: then the gateway will tell, and nobody waits for a heartbeat.
    """

    __slots__ = (
        "_sizes",
        "capacity_bytes",
        "outstanding_bytes",
        "serial_published",
        "serial_taken",
    )

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.outstanding_bytes = 0
        self.serial_published = 0
        self.serial_taken = 0
        self._sizes: deque[int] = deque()

    def has_room(self, num_bytes: int) -> bool:
        """Whether a batch of `num_bytes` may go; however large, while little is outstanding."""
        outstanding_bytes = self.outstanding_bytes
        return outstanding_bytes + num_bytes <= self.capacity_bytes or not self.must_tell(
            outstanding_bytes, self.capacity_bytes
        )

    @staticmethod
    def must_tell(taken_bytes: int, capacity_bytes: int) -> bool:
        """Whether the gateway has to tell that it has taken `taken_bytes` more."""
        return taken_bytes * 4 >= capacity_bytes

    def publish(self, num_bytes: int) -> int:
        """Count a batch that goes now; return its serial."""
        self._sizes.append(num_bytes)
        self.outstanding_bytes += num_bytes
        self.serial_published += 1
        return self.serial_published

    def taken(self, serial: int) -> None:
        """The gateway has applied every batch up to `serial`."""
        if serial > self.serial_published:
            raise LaneViolation(f"batch {serial} was taken, but {self.serial_published} published")
        while self.serial_taken < serial:
            self.serial_taken += 1
            self.outstanding_bytes -= self._sizes.popleft()
