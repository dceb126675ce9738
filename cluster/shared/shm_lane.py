"""The lane in shared memory: a ring in each direction, and a doorbell for an end that sleeps.

Nobody rings while the other end is awake: an end says that it sleeps, looks once more, and only
then waits (see `ring`). Records are kept by the gateway until committed, as on the lane over
ZeroMQ, so a successor gets them again, in a segment of its own that no predecessor can write to.
To the gateway the outbound ring is hostile input: what it takes is copied before it is looked at.
"""

import contextlib
from collections.abc import Callable

from cluster.shared.kept_lane import KeptLane
from cluster.shared.lane import (
    Commit,
    Freed,
    InboundChunk,
    LaneClosedError,
    LaneState,
    LaneViolation,
    OutboundBatch,
)
from cluster.shared.lane_inbound import InboundCursor, InboundLog
from cluster.shared.lane_messages import INBOUND, OUTBOUND_BYTES, decode_batch, encode_batch
from cluster.shared.lane_outbound import OutboundWindow
from cluster.shared.ring import RingReader, RingViolation, RingWriter
from cluster.shared.ring_messages import MessageReceiver, MessageSender
from cluster.shared.shm_doorbell import Doorbell
from cluster.shared.shm_handover import receive_descriptors
from cluster.shared.shm_segment import Segment

__all__ = ["ShmGatewayLane", "ShmWorkerLane"]

_TAKEN = 640 // 8
"""Word of the inbound ring's head: the last serial that the gateway has applied."""

_MESSAGE_BYTES_MAX = 1 << 62
"""The gateway is trusted by its workers; what it sends is bounded by what it holds."""


class GatewayEnd:
    """The gateway's ends of one incarnation's rings."""

    __slots__ = ("bell", "reader", "receiver", "segment", "sender", "taken_words", "writer")

    def __init__(self, segment: Segment, message_bytes_max: int) -> None:
        self.segment = segment
        self.bell = Doorbell()
        self.writer = RingWriter(segment.inbound)
        self.reader = RingReader(segment.outbound)
        self.sender = MessageSender(self.writer, self.bell.ring)
        self.receiver = MessageReceiver(self.reader, message_bytes_max, self.bell.ring)
        self.taken_words = segment.inbound[: (_TAKEN + 1) * 8].cast("Q")

    def close(self) -> None:
        self.taken_words.release()
        self.writer.close()
        self.reader.close()
        self.segment.close()
        self.bell.close()


class ShmGatewayLane(KeptLane):
    """`GatewayLane` of a hub."""

    kind = "shm"

    def __init__(
        self, is_granted: Callable[[bytes], bool], capacity_bytes: int, max_batch_bytes: int
    ) -> None:
        """Be vacant, with memory for the first incarnation; OSError when there is none.

        `is_granted` tells which names are those of lanes that are granted.
        """
        super().__init__(capacity_bytes, max_batch_bytes)
        self._is_granted = is_granted
        self.identity = b""
        """What its incarnation asks for it by; nothing while it is vacant."""
        self.end: GatewayEnd | None = None
        """For the hub, which puts it to sleep and hands over what the other end needs."""
        self.dropped_batches = 0
        """Those that incarnations had published and nobody had looked at when they were fenced."""
        self._is_open = False
        self._violation: str | None = None
        self._full_at: int | None = None
        # Made here, so that memory that is missing shows when the node starts.
        self._next_segment: Segment | None = Segment.create(capacity_bytes)

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def needs_flush(self) -> bool:
        end = self.end
        return end is not None and self._is_open and (self._log.has_unsent or bool(end.sender.rest))

    @property
    def has_received(self) -> bool:
        end = self.end
        return end is not None and (end.reader.has_unread or self._violation is not None)

    def flush(self) -> bool:
        log, end = self._log, self.end
        if not self._is_open or end is None:
            return not log.has_unsent
        try:
            return self._flush(log, end)
        except RingViolation as error:
            self._violation = str(error)  # `receive` will tell
            return False

    def _flush(self, log: InboundLog, end: GatewayEnd) -> bool:
        if self._full_at is not None:
            if end.writer.look() == self._full_at:
                return False  # without gathering again what will not fit
            self._full_at = None
        sender = end.sender
        if sender.rest and not sender.push():
            return False
        records_max = end.writer.message_bytes_max - INBOUND.size
        while log.has_unsent:
            records = log.unsent(records_max)
            header = INBOUND.pack(
                self._sequence.incarnation, log.sent_position + 1, 0, len(records)
            )
            if not sender.send(b"".join((header, *records))):
                self._full_at = end.writer.freed
                return False
            log.mark_sent(len(records))
        return not sender.rest

    def grant(self, incarnation: int, identity: bytes) -> Commit:
        """As the contract says; OSError when there is no memory or no descriptor left."""
        self._check_vacant()
        if self._is_granted(identity):
            raise ValueError(f"another lane was granted to {identity!r}")
        segment = self._next_segment or Segment.create(self._log.capacity_bytes)
        self._next_segment = None
        try:
            end = GatewayEnd(segment, OUTBOUND_BYTES + self._sequence.max_batch_bytes)
        except BaseException:
            segment.close()
            raise
        commit = self._begin(incarnation)
        self.end = end
        self.identity = identity
        return commit

    def revoke(self) -> None:
        if self._state is LaneState.GRANTED:
            self.dropped_batches += self._count_unread()
            self._drop_end()
            self._sequence.revoke()
            self._violation = self._full_at = None
            self._is_open = False
            self.identity = b""
            self._state = LaneState.VACANT

    def receive(self) -> OutboundBatch | None:
        end = self.end
        if end is None:
            return None
        violation, message = self._violation, None
        if violation is None:
            try:
                message = end.receiver.receive()
            except RingViolation as error:
                violation = str(error)
        if violation is not None:
            # Not while the other error is handled: it holds on to the memory that is closed now.
            raise LaneViolation(violation)
        if message is None:
            return None
        batch = decode_batch(message)
        self._sequence.take(batch)
        # The worker's first batch proves that its end is there to be sent to.
        self._is_open = True
        self._log.check(batch.commit)
        return batch

    def apply(self, batch: OutboundBatch) -> list[Freed]:
        self._sequence.applied(batch)
        end = self.end
        if end is not None:
            # Before the room is freed: whoever sees that it was has to find this.
            end.taken_words[_TAKEN] = self._sequence.serial_applied
            end.receiver.free()
        return self._log.commit(batch.commit)

    def close(self) -> None:
        super().close()
        if self._next_segment is not None:
            self._next_segment.close()
            self._next_segment = None

    def _count_unread(self) -> int:
        count = 0
        end = self.end
        if end is not None:
            with contextlib.suppress(RingViolation):
                while end.reader.read() is not None:
                    count += not end.reader.is_fragment
        return count

    def _drop_end(self) -> None:
        if self.end is not None:
            self.end.close()
            self.end = None


class ShmWorkerLane:
    """`WorkerLane` of an incarnation, on the segment that its gateway made."""

    def __init__(
        self,
        path: str,
        identity: bytes,
        incarnation: int,
        position: int,
        capacity_bytes: int,
        timeout_s: float,
    ) -> None:
        """Get the lane of `identity` from the hub at `path`; the next record is `position`.

        At most `capacity_bytes` are published that the gateway has not applied. Raises
        HandoverRefusedError when there is none, or no answer within `timeout_s`.
        """
        segment_fd, gateway_bell, bell = receive_descriptors(path, identity, 3, timeout_s)
        self._gateway_bell = Doorbell(gateway_bell)
        self._bell = Doorbell(bell)
        try:
            self._segment = Segment(segment_fd, capacity_bytes)
        except BaseException:
            self._gateway_bell.close()
            self._bell.close()
            raise
        self._reader = RingReader(self._segment.inbound)
        self._writer = RingWriter(self._segment.outbound)
        ring = self._gateway_bell.ring
        self._sender = MessageSender(self._writer, ring)
        self._receiver = MessageReceiver(self._reader, _MESSAGE_BYTES_MAX, ring)
        self._taken_words = self._segment.inbound[: (_TAKEN + 1) * 8].cast("Q")
        self._incarnation = incarnation
        self._cursor = InboundCursor(position)
        self._window = OutboundWindow(capacity_bytes)
        # Often enough that there is never much to catch up with.
        self._look_at_bytes = min(65_536, capacity_bytes // 4)
        self._was_refused = False
        self._freed_at_refusal = 0
        self._is_armed = False
        self._waits_for_room = False
        self._may_have_rung = False
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
        return self._closed or not self._reader.has_unread

    def fileno(self) -> int:
        return self._bell.fd

    def has_events(self) -> bool:
        if self._closed:
            return False
        if self._is_armed:
            self._disarm()
        if self._may_have_rung:
            self._may_have_rung = False
            self._bell.clear()
        if self._sender.rest:
            self._sender.push()
        if not self._reader.sleep():
            return True
        self._is_armed = self._may_have_rung = True
        if self._was_refused:
            self._waits_for_room = self._writer.wait_for_room(self._freed_at_refusal)
            return not self._waits_for_room
        if self._sender.rest:
            self._waits_for_room = self._writer.wait_for_room(self._writer.freed)
            return not self._waits_for_room
        return False

    def receive(self) -> InboundChunk | None:
        if self._closed:
            return None
        if self._is_armed:
            self._disarm()
        if self._sender.rest:
            self._sender.push()
        if not self._reader.has_unread:
            return None
        try:
            message = self._receiver.receive()
        except RingViolation as error:
            raise LaneViolation(str(error)) from None
        if message is None:
            return None
        self._receiver.free()
        incarnation, first_position, _, count = INBOUND.unpack_from(message)
        if incarnation != self._incarnation:
            raise LaneViolation(f"records for incarnation {incarnation} came here")
        self._cursor.advance(first_position, count)
        return InboundChunk(first_position, message[INBOUND.size :])

    def publish(self, commit: Commit, records: list[bytes]) -> bool:
        if self._closed:
            raise LaneClosedError("the lane is closed")
        window = self._window
        if window.outstanding_bytes >= self._look_at_bytes:
            window.taken(self._taken_words[_TAKEN])
        serial = window.serial_published + 1
        message = encode_batch(self._incarnation, serial, commit, records)
        if not window.has_room(len(message)) or not self._sender.send(message):
            # The other way round than the gateway stores them, so that no room is overlooked.
            self._freed_at_refusal = self._writer.look()
            window.taken(self._taken_words[_TAKEN])
            if not window.has_room(len(message)) or not self._sender.send(message):
                self._was_refused = True
                return False
        self._was_refused = False
        window.publish(len(message))
        return True

    def taken(self, serial: int) -> None:
        self._window.taken(serial)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._taken_words.release()
            self._reader.close()
            self._writer.close()
            self._segment.close()
            self._bell.close()
            self._gateway_bell.close()

    def _disarm(self) -> None:
        """Say that nobody has to ring: this end is awake."""
        self._is_armed = False
        self._reader.wake()
        if self._waits_for_room:
            self._waits_for_room = False
            self._writer.stop_waiting()
