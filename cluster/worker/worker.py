"""The worker's loop: receive, handle, publish, beat, wait.

One thread does everything, so its heartbeats tell the truth: they stop when a handler hangs.
Output and commit are published when nothing more is to be handled, or the batch is 1 ms old,
or 64 KiB. A worker that finds no room to publish waits, alive, and says so.
"""

import gc
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.lane import Commit, InboundChunk, WorkerLane
from cluster.shared.liveness import Liveness
from cluster.shared.messages import (
    ControlMessage,
    GatewayHeartbeat,
    Grant,
    LaneState,
    Refuse,
    Stop,
    WorkerHeartbeat,
    decode_message,
    encode_message,
)
from cluster.shared.note import NoteWriter
from cluster.shared.records import BROADCAST, SEND_TO
from cluster.shared.user_records import pack_send_to
from cluster.worker.app import App
from cluster.worker.careful_dispatcher import CarefulDispatcher
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.outbox import Outbox

__all__ = ["GatewayLostError", "StartHandlerError", "Worker", "WorkerRefusedError"]

logger = logging.getLogger("cluster.worker")

PUBLISH_AGE_S = 0.001

FAREWELL_S = 0.5
"""Longest wait, at the end, for the gateway to take what was published last."""

FAREWELL_ASK_MS = 10
"""How often it is asked meanwhile; one that works has mostly taken it by the first answer."""


class WorkerRefusedError(Exception):
    """The gateway will not have this worker, or not any more; the message says why."""


class GatewayLostError(Exception):
    """The gateway is gone or cannot be heard; the message says since when."""


class StartHandlerError(Exception):
    """The application's `on_start` raised; the message, one line, says what, its cause is it."""


SETTLE_ASK_S = 0.005
"""How often the gateway is asked whether it has the last batch, before a suspect runs."""


class _StoppedBeforeSuspect(Exception):
    """Told to stop while what comes before a suspect is on its way; a successor meets it."""


class _StoppedWithoutRoom(Exception):
    """Told to stop while the lane takes nothing: a successor will do again what is unpublished."""


@contextmanager
def _no_collections() -> Iterator[None]:
    """Hold off the cyclic collector, which among many new sessions finds no garbage, but takes a
    quarter of the time in which they are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Worker:
    """One incarnation. `run` returns when the gateway says stop or `request_stop` was called."""

    def __init__(
        self,
        app: App,
        grant: Grant,
        lane: WorkerLane,
        control: "zmq.Socket[bytes]",
        note: NoteWriter | None = None,
    ) -> None:
        """Run `app` on a shard that was granted. Lane and control socket stay the caller's.

        What is in hand is told in `note`, if there is one.
        """
        self._app = app
        self._grant = grant
        self._lane = lane
        self._control = control
        self._outbox = Outbox(grant.lane.max_batch_bytes)
        self._published = Commit(grant.position, grant.index)
        self._note = note if note is not None else NoteWriter()
        self._dispatcher = self._make_dispatcher()
        self._backlog: deque[InboundChunk] = deque()
        self._is_blocked = False
        self._serial_taken = 0
        self._stopping = False
        self._dispatcher.publish_bytes = PUBLISH_BYTES
        self._dispatcher.redelivered_through = grant.redelivered_through
        self._has_batch = False
        now = time.monotonic()
        self._liveness = Liveness(grant.worker_timeout_s, now)
        self._beat_interval_s = min(1.0, grant.worker_timeout_s / 4)
        self._next_beat = now
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._control_fd = int(control.getsockopt(zmq.FD))
        self._wake_fd = self._wake_reader.fileno()
        self._poller = zmq.Poller()
        for source in (lane.fileno(), self._control_fd, self._wake_fd):
            self._poller.register(source, zmq.POLLIN)

    def _make_dispatcher(self) -> Dispatcher:
        grant = self._grant
        common = (
            self._app,
            self._outbox,
            self._published,
            grant.max_packet_bytes - 4,
            self._between_packets,
            self._note,
        )
        if grant.suspects:
            return CarefulDispatcher(*common, grant.suspects, self._settle)
        return Dispatcher(*common)

    # -- what the application uses -----------------------------------------------------------------

    def broadcast(self, packet: bytes) -> None:
        """Send one packet to every session of the node (`App.broadcast`)."""
        self._check_packet(packet)
        self._outbox.add(BROADCAST, 0, packet)

    def send_to(self, user: bytes, packet: bytes) -> None:
        """Send one packet to a user of the node (`App.send_to`)."""
        self._check_packet(packet)
        self._outbox.add(SEND_TO, 0, pack_send_to(user, packet))

    def _check_packet(self, packet: bytes) -> None:
        if len(packet) > self._grant.max_packet_bytes:
            raise ValueError(
                f"a packet of {len(packet)} bytes; gateway.max_packet_bytes allows "
                f"{self._grant.max_packet_bytes}"
            )

    def wake(self) -> None:
        """Make the loop look at what was posted; any thread."""
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            return  # full of wake-ups already, or the loop has ended

    def request_stop(self) -> None:
        """End after what is in hand is handled and, if there is room, published and taken.

        From a signal handler or any thread.
        """
        self._stopping = True
        self.wake()

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop.

        Raises WorkerRefusedError, GatewayLostError, LaneViolation, and StartHandlerError before
        anything was done. Not reusable.
        """
        self._app.attach(self)
        try:
            self._work()
            self._await_last_words()
        finally:
            self._wake_reader.close()
            self._wake_writer.close()

    def _work(self) -> None:
        try:
            self._take_over()
            while not self._stopping:
                self._turn()
            self._publish()
        except _StoppedWithoutRoom:
            logger.info("stopped with output for which the lane has no room")
        except _StoppedBeforeSuspect:
            logger.info("stopped before a handler call in which a predecessor died")

    def _await_last_words(self) -> None:
        """Stay, for a bounded time, until the gateway has taken what was published last.

        What is still in the lane's socket when that closes is lost; a successor would do it
        again.
        """
        deadline = time.monotonic() + FAREWELL_S
        while self._serial_taken < self._lane.serial_published:
            if time.monotonic() >= deadline:
                logger.warning(
                    "the gateway has not taken the last batch within %g s; it may be done again",
                    FAREWELL_S,
                )
                return
            self._send_heartbeat("stopping")
            self._control.poll(FAREWELL_ASK_MS)
            self._take_control()

    def _take_over(self) -> None:
        # Before the gateway hears that this end is open: a worker whose start fails never was.
        self._start()
        self._publish(is_first=True)  # empty: it tells the gateway that this end is open
        self._begin_batch()
        self._between_packets()  # what `on_start` has put out is not counted with another call
        with _no_collections():
            for session in self._grant.sessions:
                self._dispatcher.resume(session)
                if self._outbox.entries or time.monotonic() >= self._dispatcher.publish_at:
                    self._between_packets()

    def _start(self) -> None:
        handler = self._app.start_handler
        if handler is None:
            return
        try:
            handler()
        except (Exception, SystemExit) as error:
            name = getattr(handler, "__qualname__", repr(handler))
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise StartHandlerError(f"the application's on_start, {name}, raised {what}") from error

    def _turn(self) -> None:
        # Each question to a ZeroMQ socket costs system calls, so each is asked once: a receive
        # that finds nothing also arms the descriptor.
        chunk = self._backlog.popleft() if self._backlog else self._lane.receive()
        if chunk is not None:
            self._begin_batch()
            self._dispatcher.run(chunk)
            self._run_posted()
            return
        self._run_posted()
        self._publish()
        self._has_batch = False
        if not self._backlog:
            self._wait(None)

    def _begin_batch(self) -> None:
        # A batch goes on over chunks: its age counts from the first of them.
        if not self._has_batch:
            self._has_batch = True
            self._dispatcher.publish_at = time.monotonic() + PUBLISH_AGE_S

    def _between_packets(self) -> None:
        """Publish if it is time to."""
        dispatcher = self._dispatcher
        now = time.monotonic()
        if self._outbox.num_bytes >= dispatcher.publish_bytes or now >= dispatcher.publish_at:
            self._note.clear()  # what is waited for here is no fault of a packet
            self._publish()
            dispatcher.publish_at = now + PUBLISH_AGE_S
            self._note.begin()

    def _settle(self) -> None:
        """Publish, and stay until the gateway has it: what follows may end this process."""
        self._note.clear()
        self._publish()
        while self._serial_taken < self._lane.serial_published:
            if self._stopping:
                raise _StoppedBeforeSuspect
            self._send_heartbeat("settling")
            self._wait(SETTLE_ASK_S)
            self._receive_to_backlog()
            self._take_control()
        self._note.begin()

    def _run_posted(self) -> None:
        posted = self._app.take_posted()
        if posted and self._dispatcher.commit != self._published:
            self._publish()  # what is done stays done, whatever a posted function does
        for function in posted:
            self._begin_batch()
            self._dispatcher.call(function)
            self._between_packets()

    def _publish(self, is_first: bool = False) -> None:
        """Publish output and commit as one; wait, alive, until there is room."""
        commit = self._dispatcher.commit
        outbox = self._outbox
        if commit == self._published and not outbox.entries and not is_first:
            self._beat()
            return
        records = [] if is_first else outbox.records()
        while not self._lane.publish(commit, records):
            if self._stopping:
                raise _StoppedWithoutRoom
            self._is_blocked = True
            self._wait(0.01)
            self._receive_to_backlog()
        self._is_blocked = False
        self._published = commit
        if not is_first:
            outbox.clear()
        self._beat()

    def _receive_to_backlog(self) -> None:
        # Inbound messages also tell what the gateway has applied, which is what makes room.
        # What they bring is bounded by the inbound capacity of the lane.
        while (chunk := self._lane.receive()) is not None:
            self._backlog.append(chunk)

    def _wait(self, timeout_s: float | None) -> None:
        """Sleep until something comes, the next heartbeat is due, or `timeout_s` has passed."""
        if self._stopping or self._lane.has_events():
            return
        left = max(0.0, self._next_beat - time.monotonic())
        if timeout_s is not None:
            left = min(left, timeout_s)
        for source, _ in self._poller.poll(math.ceil(left * 1000)):
            if source == self._control_fd:
                self._take_control()
            elif source == self._wake_fd:
                self._drain_wake_ups()
        self._beat()

    def _drain_wake_ups(self) -> None:
        try:
            while len(self._wake_reader.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return

    # -- control plane -----------------------------------------------------------------------------

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self._beat_interval_s
        self._take_control()
        reason = self._liveness.verdict(now)
        if reason is not None:
            raise GatewayLostError(f"the gateway is lost: {reason}")
        self._send_heartbeat("blocked" if self._is_blocked else "idle")
        self._take_control()  # the send may have swallowed the announcement of a message

    def _send_heartbeat(self, state: LaneState) -> None:
        heartbeat = WorkerHeartbeat(
            incarnation=self._grant.incarnation,
            position_received=self._lane.position_received,
            serial_sent=self._lane.serial_published,
            state=state,
        )
        try:
            self._control.send(encode_message(heartbeat), zmq.NOBLOCK)
        except zmq.Again:
            return  # the gateway takes nothing; its silence decides

    def _take_control(self) -> None:
        while True:
            try:
                frame = self._control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take_message(decode_message(frame))

    def _take_message(self, message: ControlMessage) -> None:
        match message:
            case GatewayHeartbeat(incarnation=incarnation):
                if incarnation == self._grant.incarnation:
                    self._heard(message)
            case Refuse(reason=reason):
                raise WorkerRefusedError(reason)
            case Stop(serial_received=serial):
                self._stopping = True
                self._serial_taken = max(self._serial_taken, serial)
            case _:
                logger.warning("unexpected control message %s", type(message).__name__)

    def _heard(self, heartbeat: GatewayHeartbeat) -> None:
        lane = self._lane
        lane.taken(heartbeat.serial_received)
        self._serial_taken = heartbeat.serial_received
        self._receive_to_backlog()  # whoever works on a long chunk is busy, not behind
        behind = lane.position_received < heartbeat.position_sent
        self._liveness.heard(time.monotonic(), (lane.position_received,), behind)
