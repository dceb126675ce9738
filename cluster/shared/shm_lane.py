"""The lane in shared memory: a ring in each direction, and a doorbell for an end that sleeps.

Each incarnation has a segment and a doorbell of its own, which it gets over a Unix socket; the
gateway has one doorbell for all. Nobody rings while the other end is awake: an end says that it
sleeps, looks once more, and only then waits (see `ring`). Records are kept by the gateway until
committed, as on the lane over ZeroMQ, so a successor gets them again in a segment that no
predecessor can write to. To the gateway the outbound ring is hostile input: what it takes is
copied before it is looked at.
"""

import contextlib
import os
from collections.abc import Sequence

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
from cluster.shared.shm_handover import Handover, receive_descriptors
from cluster.shared.shm_segment import Segment, ring_bytes_for

__all__ = ["ShmGatewayLane", "ShmLaneHub", "ShmWorkerLane"]

_TAKEN = 640 // 8
"""Word of the inbound ring's head: the last serial that the gateway has applied."""

_MESSAGE_BYTES_MAX = 1 << 62
"""The gateway is trusted by its workers; what it sends is bounded by what it holds."""


class _Doorbell:
    """An eventfd that one end rings and the other waits on."""

    __slots__ = ("fd",)

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd

    def ring(self) -> None:
        """Make the descriptor readable."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass  # full only after 2^64 rings that nobody heard, or if somebody wrote that much

    def clear(self) -> None:
        """Make the descriptor unreadable until it rings again."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ShmLaneHub:
    """The gateway's doorbell for the lanes of all shards, and where workers get theirs."""

    kind = "shm"
    is_edge_triggered = False

    def __init__(self, path: str, bell: int | None = None) -> None:
        """Listen at `path` for workers; raises OSError when it cannot be had.

        They ring at the eventfd `bell`, if there is one whose owner is woken by it and then looks
        at the lanes. It stays the caller's, who is not told of it by `descriptors`.
        """
        self.endpoint = path
        self.dropped_batches = 0
        """Batches that were published and not yet looked at when their incarnation was fenced.

        What it publishes later is seen by nobody: its segment has no reader any more.
        """
        self._lanes: list[ShmGatewayLane] = []
        self._own_bell: _Doorbell | None = None
        if bell is None:
            self._own_bell = _Doorbell()
            bell = self._own_bell.fd
        self._bell_fd = bell
        try:
            self._handover = Handover(path, self._descriptors_for)
        except BaseException:
            if self._own_bell is not None:
                self._own_bell.close()
            raise

    def descriptors(self) -> Sequence[int]:
        """Return what to wait on: the hub's own doorbell, and workers that come for their lanes."""
        if self._own_bell is None:
            return (self._handover.fileno(),)
        return (self._own_bell.fd, self._handover.fileno())

    def clear(self, fd: int) -> None:
        """Attend to `fd`, which was readable, so that it is not any more."""
        if self._own_bell is not None and fd == self._own_bell.fd:
            self._own_bell.clear()
        else:
            self._handover.serve()

    def may_wait(self) -> bool:
        """Have the doorbell rung from now on; False if there is something already."""
        for lane in self._lanes:
            end = lane._end
            if end is not None and not end.reader.sleep():
                self.has_waited()
                return False
        return True

    def has_waited(self) -> None:
        """Have the doorbell rung no more."""
        for lane in self._lanes:
            end = lane._end
            if end is not None:
                end.reader.wake()

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> "ShmGatewayLane":
        """Return a new vacant lane; OSError when there is no memory for it."""
        lane = ShmGatewayLane(self, capacity_bytes, max_batch_bytes)
        self._lanes.append(lane)
        return lane

    def pump(self, messages_max: int) -> bool:
        """What workers publish is in the lanes already; workers that come may be waited for."""
        self._handover.go_on()
        return False

    def close(self) -> None:
        """Close the doorbell and the socket. Idempotent."""
        self._lanes.clear()
        self._handover.close()
        if self._own_bell is not None:
            self._own_bell.close()

    def _descriptors_for(self, identity: bytes) -> Sequence[int]:
        for lane in self._lanes:
            if lane.state is LaneState.GRANTED and lane._identity == identity:
                return lane._hand_over(self._bell_fd)
        return ()


class _GatewayEnd:
    """The gateway's ends of one incarnation's rings."""

    __slots__ = ("bell", "reader", "receiver", "segment", "sender", "taken_words", "writer")

    def __init__(self, segment: Segment, message_bytes_max: int) -> None:
        self.segment = segment
        self.bell = _Doorbell()
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
    """`GatewayLane` on a hub."""

    kind = "shm"

    def __init__(self, hub: ShmLaneHub, capacity_bytes: int, max_batch_bytes: int) -> None:
        super().__init__(capacity_bytes, max_batch_bytes)
        self._hub = hub
        self._identity = b""
        self._is_open = False
        self._end: _GatewayEnd | None = None
        self._violation: str | None = None
        self._full_at: int | None = None
        # Made here, so that memory that is missing shows when the node starts.
        self._next_segment: Segment | None = Segment.create(capacity_bytes)

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def needs_flush(self) -> bool:
        end = self._end
        return self._is_open and (self._log.has_unsent or (end is not None and end.sender.has_rest))

    @property
    def has_received(self) -> bool:
        end = self._end
        return end is not None and (end.reader.has_unread or self._violation is not None)

    def flush(self) -> bool:
        log, end = self._log, self._end
        if not self._is_open or end is None:
            return not log.has_unsent
        try:
            return self._flush(log, end)
        except RingViolation as error:
            self._violation = str(error)  # `receive` will tell
            return False

    def _flush(self, log: InboundLog, end: _GatewayEnd) -> bool:
        if self._full_at is not None:
            if end.writer.look() == self._full_at:
                return False  # without gathering again what will not fit
            self._full_at = None
        if end.sender.has_rest and not end.sender.push():
            return False
        records_max = end.writer.message_bytes_max - INBOUND.size
        while log.has_unsent:
            records = log.unsent(records_max)
            header = INBOUND.pack(
                self._sequence.incarnation, log.sent_position + 1, 0, len(records)
            )
            if not end.sender.send(b"".join((header, *records))):
                self._full_at = end.writer.freed
                return False
            log.mark_sent(len(records))
        return not end.sender.has_rest

    def grant(self, incarnation: int, identity: bytes) -> Commit:
        """As the contract says; OSError when there is no memory or no descriptor left."""
        self._check_vacant()
        if any(lane._identity == identity for lane in self._hub._lanes):
            raise ValueError(f"another lane was granted to {identity!r}")
        segment = self._next_segment or Segment.create(self._log.capacity_bytes)
        self._next_segment = None
        try:
            end = _GatewayEnd(segment, OUTBOUND_BYTES + self._sequence.max_batch_bytes)
        except BaseException:
            segment.close()
            raise
        commit = self._begin(incarnation)
        self._end = end
        self._identity = identity
        return commit

    def revoke(self) -> None:
        if self._state is LaneState.GRANTED:
            self._hub.dropped_batches += self._count_unread()
            self._drop_end()
            self._sequence.revoke()
            self._violation = self._full_at = None
            self._is_open = False
            self._identity = b""
            self._state = LaneState.VACANT

    def receive(self) -> OutboundBatch | None:
        end = self._end
        if end is None:
            return None
        violation = self._violation
        while violation is None:
            try:
                message = end.receiver.receive()
            except RingViolation as error:
                violation = str(error)
                break
            if message is None:
                return None
            batch = self._sequence.take(decode_batch(message))
            # The worker's first batch proves that its end is there to be sent to.
            self._is_open = True
            if batch is not None:
                self._log.check(batch.commit)
                return batch
            self._free(end)
        # Not while the other error is handled: it holds on to the memory that is closed now.
        raise LaneViolation(violation)

    def apply(self, batch: OutboundBatch) -> list[Freed]:
        self._sequence.applied(batch)
        if self._end is not None:
            self._free(self._end)
        return self._log.commit(batch.commit)

    def close(self) -> None:
        super().close()
        if self._next_segment is not None:
            self._next_segment.close()
            self._next_segment = None

    def _free(self, end: _GatewayEnd) -> None:
        # Before the room is freed: whoever sees that it was has to find this.
        end.taken_words[_TAKEN] = self._sequence.serial_applied
        end.receiver.free()

    def _count_unread(self) -> int:
        count = 0
        end = self._end
        if end is not None:
            with contextlib.suppress(RingViolation):
                while end.reader.read() is not None:
                    count += not end.reader.is_fragment
        return count

    def _drop_end(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None

    def _hand_over(self, gateway_bell: int) -> Sequence[int]:
        assert self._end is not None
        return (self._end.segment.fd, gateway_bell, self._end.bell.fd)


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
        self._gateway_bell = _Doorbell(gateway_bell)
        self._bell = _Doorbell(bell)
        try:
            self._segment = Segment(segment_fd, ring_bytes_for(capacity_bytes))
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

    def publish(self, commit: Commit, records: list[bytes], more: bool = False) -> bool:
        if self._closed:
            raise LaneClosedError("the lane is closed")
        window = self._window
        if window.outstanding_bytes >= self._look_at_bytes:
            window.taken(self._taken_words[_TAKEN])
        serial = window.serial_published + 1
        message = encode_batch(self._incarnation, serial, commit, records, more)
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
