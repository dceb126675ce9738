"""The lane over ZeroMQ: one message for each flush and for each batch.

The gateway has one ROUTER socket for the lanes of all its shards; each incarnation has a name
of its own on it, so what a fenced one still sends is told apart and dropped (no
ROUTER_HANDOVER, which would drop what the predecessor had delivered and nobody has read yet).
Full is counted in bytes, because ZeroMQ's high-water mark counts messages. Linger is 0: what
matters is never in a socket alone. Records are kept by the gateway until committed, and a
worker is told to stop only when everything was.
"""

from collections import deque
from collections.abc import Sequence

import zmq

from cluster.shared.endpoints import Curve
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
from cluster.shared.lane_inbound import InboundCursor
from cluster.shared.lane_messages import INBOUND, decode_batch, encode_batch
from cluster.shared.lane_outbound import OutboundWindow
from cluster.shared.zmq_sockets import open_lane_socket

__all__ = ["ZmqGatewayLane", "ZmqLaneHub", "ZmqWorkerLane"]

# Plain integers: on every message the conversion of an enum costs as much as the call.
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE_NOBLOCK = int(zmq.SNDMORE | zmq.NOBLOCK)
_RCVMORE = int(zmq.RCVMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)

MESSAGE_BYTES_MAX = 1 << 20
"""Records that go in one inbound message, so that a long backlog arrives in steps."""


class ZmqLaneHub:
    """The gateway's socket for the lanes of all shards. For one thread."""

    kind = "zmq"
    is_edge_triggered = True

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        curve: Curve | None = None,
    ) -> None:
        """Bind `endpoint`, under `curve`; raises zmq.ZMQError when it cannot be had."""
        self._socket = open_lane_socket(context, zmq.ROUTER, curve)
        try:
            self._socket.bind(endpoint)
        except BaseException:
            self._socket.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._lanes: dict[bytes, ZmqGatewayLane] = {}
        self.dropped_batches = 0
        """Messages of incarnations that do not have a lane (any more), or of several frames."""
        self.lanes_refused = 0
        """Nobody has to come for one."""

    def descriptors(self) -> Sequence[int]:
        """Return ZeroMQ's descriptor, which is edge-triggered."""
        return (int(self._socket.getsockopt(zmq.FD)),)

    def clear(self, fd: int) -> None:
        """Do nothing: to pump is to clear."""

    def may_wait(self) -> bool:
        """Do nothing: whatever comes is told."""
        return True

    def has_waited(self) -> None:
        """Do nothing."""

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> "ZmqGatewayLane":
        """Return a new vacant lane."""
        return ZmqGatewayLane(self, capacity_bytes, max_batch_bytes)

    def pump(self, messages_max: int) -> bool:
        """Take up to `messages_max` messages to their lanes; whether more may wait.

        False also means that the descriptor is armed: the socket was found empty.
        """
        recv, get_option, lanes = self._socket.recv, self._socket.getsockopt, self._lanes
        try:
            for _ in range(messages_max):
                identity = recv(_NOBLOCK)
                message = recv(_NOBLOCK)
                lane = lanes.get(identity)
                # A frame too many, read as the next identity, would mix up all that follows.
                has_more = get_option(_RCVMORE)
                if lane is None or has_more:
                    while has_more:
                        recv(_NOBLOCK)
                        has_more = get_option(_RCVMORE)
                    self.dropped_batches += 1
                    continue
                lane._inbox.append(message)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close the socket; what is queued in it is dropped. Idempotent."""
        self._lanes.clear()
        self._socket.close(linger=0)


class ZmqGatewayLane(KeptLane):
    """`GatewayLane` on a hub."""

    kind = "zmq"

    def __init__(self, hub: ZmqLaneHub, capacity_bytes: int, max_batch_bytes: int) -> None:
        self._hub = hub
        self._send = hub._socket.send
        super().__init__(capacity_bytes, max_batch_bytes)
        self._inbox: deque[bytes] = deque()
        self._identity = b""
        self._is_open = False
        self._in_hand_bytes = 0
        self._untold_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def needs_flush(self) -> bool:
        log = self._log
        return (log.has_unsent and self._is_open) or OutboundWindow.must_tell(
            self._untold_bytes, log.capacity_bytes
        )

    @property
    def has_received(self) -> bool:
        return bool(self._inbox)

    def flush(self) -> bool:
        log = self._log
        if not self._is_open:
            return not log.has_unsent
        while log.has_unsent:
            records = log.unsent(MESSAGE_BYTES_MAX)
            if not self._send_records(log.sent_position + 1, records):
                return False
            log.mark_sent(len(records))
        # A worker that only pushes is told what was applied, or its window would stay full.
        if OutboundWindow.must_tell(self._untold_bytes, log.capacity_bytes):
            return self._send_records(log.sent_position + 1, [])
        return True

    def _send_records(self, first_position: int, records: list[bytes]) -> bool:
        sequence = self._sequence
        header = INBOUND.pack(
            sequence.incarnation, first_position, sequence.serial_applied, len(records)
        )
        message = b"".join((header, *records))
        try:
            # Only the first frame can be refused: it is where ZeroMQ looks for the peer and for
            # room. Nothing may fail between the two, or the next identity would be taken for
            # the end of this message.
            self._send(self._identity, _SNDMORE_NOBLOCK)
            self._send(message, _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        self._untold_bytes = 0
        return True

    def grant(self, incarnation: int, identity: bytes) -> Commit:
        self._check_vacant()
        if identity in self._hub._lanes:
            raise ValueError(f"another lane was granted to {identity!r}")
        commit = self._begin(incarnation)
        self._hub._lanes[identity] = self
        self._identity = identity
        self._untold_bytes = 0
        return commit

    def revoke(self) -> None:
        if self._state is LaneState.GRANTED:
            self._hub._lanes.pop(self._identity, None)
            self._hub.dropped_batches += len(self._inbox)
            self._inbox.clear()
            self._sequence.revoke()
            self._is_open = False
            self._state = LaneState.VACANT

    def receive(self) -> OutboundBatch | None:
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        batch = decode_batch(message)
        self._sequence.take(batch)
        # The worker's first batch proves that its end is there to be sent to.
        self._is_open = True
        self._log.check(batch.commit)
        self._in_hand_bytes = len(message)
        return batch

    def apply(self, batch: OutboundBatch) -> list[Freed]:
        self._sequence.applied(batch)
        self._untold_bytes += self._in_hand_bytes
        return self._log.commit(batch.commit)


class ZmqWorkerLane:
    """`WorkerLane` that connects to a hub under the name of its incarnation."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        identity: bytes,
        incarnation: int,
        position: int,
        capacity_bytes: int,
        curve: Curve | None = None,
    ) -> None:
        """Connect to `endpoint` as `identity`; the next inbound record is `position`.

        At most `capacity_bytes` are published that the gateway has not applied. `curve` is what
        the hub was bound with.
        """
        self._socket = open_lane_socket(context, zmq.DEALER, curve)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(endpoint)
        self._incarnation = incarnation
        self._cursor = InboundCursor(position)
        self._window = OutboundWindow(capacity_bytes)
        self._awaited = _POLLIN
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
        return int(self._socket.getsockopt(zmq.FD))

    def has_events(self) -> bool:
        events = int(self._socket.getsockopt(_EVENTS)) & self._awaited
        if events & _POLLOUT:
            self._awaited = _POLLIN  # once for each refusal
        return bool(events)

    def receive(self) -> InboundChunk | None:
        while True:
            try:
                message = self._socket.recv(_NOBLOCK)
            except zmq.Again:
                return None
            if len(message) < INBOUND.size:
                raise LaneViolation(f"an inbound message of {len(message)} bytes")
            incarnation, first_position, serial, count = INBOUND.unpack_from(message)
            if incarnation != self._incarnation:
                raise LaneViolation(f"records for incarnation {incarnation} came here")
            self._cursor.advance(first_position, count)
            self._window.taken(serial)
            if count:
                return InboundChunk(first_position, memoryview(message)[INBOUND.size :])

    def publish(self, commit: Commit, records: list[bytes]) -> bool:
        if self._closed:
            raise LaneClosedError("the lane is closed")
        window = self._window
        serial = window.serial_published + 1
        message = encode_batch(self._incarnation, serial, commit, records)
        if not window.has_room(len(message)):
            return False
        try:
            self._socket.send(message, _NOBLOCK)
        except zmq.Again:
            self._awaited = _POLLIN | _POLLOUT
            return False
        self._awaited = _POLLIN
        window.publish(len(message))
        return True

    def taken(self, serial: int) -> None:
        self._window.taken(serial)

    def close(self) -> None:
        self._closed = True
        self._socket.close(linger=0)
