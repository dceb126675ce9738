"""The lane inside one process: both ends in the same thread, for tests of applications.

Kept to the same contract, by the same plain objects, as the lanes between processes.
"""

from collections import deque
from collections.abc import Callable

from cluster.iocp.wake_pair import WakePair
from cluster.shared.kept_lane import KeptLane
from cluster.shared.lane import (
    Commit,
    Freed,
    InboundChunk,
    LaneClosedError,
    LaneState,
    OutboundBatch,
)
from cluster.shared.lane_inbound import InboundCursor
from cluster.shared.lane_outbound import OutboundWindow

__all__ = ["LocalGatewayLane", "LocalWorkerLane"]


class LocalGatewayLane(KeptLane):
    """`GatewayLane`; `open_worker` makes the other end."""

    kind = "local"

    def __init__(self, capacity_bytes: int, max_batch_bytes: int) -> None:
        super().__init__(capacity_bytes, max_batch_bytes)
        self._worker: LocalWorkerLane | None = None
        self._inbox: deque[OutboundBatch] = deque()
        self._position = 1
        self.dropped_batches = 0
        """Batches of incarnations that do not have the lane any more."""

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    @property
    def needs_flush(self) -> bool:
        # Room is told at once here.
        return self._worker is not None and self._log.has_unsent

    @property
    def has_received(self) -> bool:
        return bool(self._inbox)

    def open_worker(self) -> "LocalWorkerLane":
        """Return the end of the incarnation that was granted last."""
        if self._state is not LaneState.GRANTED:
            raise ValueError(f"the lane is {self._state.value}; grant it first")
        self._worker = LocalWorkerLane(self, self._sequence.incarnation, self._position)
        return self._worker

    def flush(self) -> bool:
        worker, log = self._worker, self._log
        if worker is None:
            return not log.has_unsent
        while log.has_unsent:
            records = log.unsent(log.capacity_bytes)
            worker._deliver(InboundChunk(log.sent_position + 1, b"".join(records)), len(records))
            log.mark_sent(len(records))
        return True

    def grant(self, incarnation: int, identity: bytes) -> Commit:
        self._check_vacant()
        commit = self._begin(incarnation)
        self._position = commit.position
        return commit

    def revoke(self) -> None:
        if self._state is LaneState.GRANTED:
            self.dropped_batches += len(self._inbox)
            self._inbox.clear()
            self._sequence.revoke()
            if self._worker is not None:
                self._worker._fenced = True
                self._worker = None
            self._state = LaneState.VACANT

    def receive(self) -> OutboundBatch | None:
        if not self._inbox:
            return None
        batch = self._inbox.popleft()
        self._sequence.take(batch)
        self._log.check(batch.commit)
        return batch

    def apply(self, batch: OutboundBatch) -> list[Freed]:
        self._sequence.applied(batch)
        if self._worker is not None:
            self._worker.taken(self._sequence.serial_applied)
        return self._log.commit(batch.commit)


class LocalWorkerLane:
    """`WorkerLane` on a `LocalGatewayLane`. Once fenced it publishes into the void."""

    def __init__(self, gateway: LocalGatewayLane, incarnation: int, position: int) -> None:
        self.on_publish: Callable[[], None] = lambda: None
        """Called ahead of each batch: if it raises, `publish` does, and nothing is published."""
        self._gateway = gateway
        self._incarnation = incarnation
        self._cursor = InboundCursor(position)
        self._window = OutboundWindow(gateway.log.capacity_bytes)
        self._inbox: deque[tuple[InboundChunk, int]] = deque()
        self._doorbell: WakePair | None = None
        self._was_refused = False
        self._has_room_again = False
        self._fenced = False
        self._closed = False

    @property
    def position_received(self) -> int:
        """The last inbound position that has come."""
        return self._cursor.position

    @property
    def serial_published(self) -> int:
        """The last batch that was published."""
        return self._window.serial_published

    @property
    def is_drained(self) -> bool:
        return False

    def fileno(self) -> int:
        if self._doorbell is None:
            self._doorbell = WakePair()
            if self._inbox or self._has_room_again:
                self._ring()
        return self._doorbell.fileno()

    def has_events(self) -> bool:
        if self._doorbell is not None:
            self._doorbell.drain()
        has_room_again, self._has_room_again = self._has_room_again, False
        return bool(self._inbox) or has_room_again

    def receive(self) -> InboundChunk | None:
        if not self._inbox:
            return None
        chunk, count = self._inbox.popleft()
        self._cursor.advance(chunk.first_position, count)
        return chunk

    def publish(self, commit: Commit, records: list[bytes]) -> bool:
        self.on_publish()
        if self._closed:
            raise LaneClosedError("the lane is closed")
        chunk = b"".join(records)
        if not self._window.has_room(len(chunk)):
            self._was_refused = True
            return False
        self._was_refused = self._has_room_again = False
        serial = self._window.publish(len(chunk))
        if self._fenced:
            self._gateway.dropped_batches += 1
        else:
            batch = OutboundBatch(self._incarnation, serial, commit, chunk)
            self._gateway._inbox.append(batch)
        return True

    def taken(self, serial: int) -> None:
        self._window.taken(serial)
        if self._was_refused:
            self._was_refused = False
            self._has_room_again = True
            self._ring()

    def close(self) -> None:
        self._closed = True
        if self._doorbell is not None:
            self._doorbell.close()
            self._doorbell = None

    def _deliver(self, chunk: InboundChunk, count: int) -> None:
        self._inbox.append((chunk, count))
        self._ring()

    def _ring(self) -> None:
        if self._doorbell is not None:
            self._doorbell.wake()
