"""The worker's loop: receive, handle, publish, beat, wait.

One thread does everything, so its heartbeats tell the truth: they stop when a handler hangs.
Output and commit are published when nothing more is to be handled, or the batch is 1 ms old,
or 64 KiB. A worker that finds no room to publish waits, alive, and says so.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.group_records import pack_publish
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
)
from cluster.shared.note import NoteWriter
from cluster.shared.records import BROADCAST, PUBLISH, SEND_TO
from cluster.shared.user_records import pack_send_to
from cluster.worker.app import App
from cluster.worker.app_timers import AppTimers, TimerHandle
from cluster.worker.careful_dispatcher import CarefulDispatcher
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.gateway_link import GatewayLink
from cluster.worker.outbox import Outbox
from cluster.worker.session import Session

__all__ = ["GatewayLostError", "StartHandlerError", "Worker", "WorkerRefusedError"]

logger = logging.getLogger("cluster.worker")

PUBLISH_AGE_S = 0.001

TIMERS_SLICE_S = 0.001
"""How long timers run before packets get their turn, and packets before timers get theirs."""

FAREWELL_S = 0.5
"""Longest wait, at the end, for the gateway to take what was published last."""

FAREWELL_ASK_S = 0.01
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
        link: GatewayLink,
        note: NoteWriter | None = None,
        now: Callable[[], float] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Run `app` on a shard that was granted. The lane stays the caller's; `run` closes `link`.

        What is in hand is told in `note`, if there is one. `now` is a clock in seconds that never
        goes back; without one it is the system's. `on_error` hears of what a function of the
        application raised, behind what is done about it.
        """
        self._app = app
        self._grant = grant
        self._lane = lane
        self._link = link
        self._now = now if now is not None else time.monotonic
        self._timers = AppTimers()
        self._timers_turn = 0.0
        """When timers get their next turn while there are packets."""
        self._outbox = Outbox(grant.lane.max_batch_bytes)
        self._published = Commit(grant.position, grant.index)
        self._note = note if note is not None else NoteWriter()
        self._dispatcher = self._make_dispatcher()
        self._backlog: deque[InboundChunk] = deque()
        self._is_blocked = False
        self._serial_taken = 0
        self._decode_errors_before = app.decode_errors.count
        self._stopping = False
        self._dispatcher.now = self._now
        self._dispatcher.on_error = on_error
        self._dispatcher.publish_bytes = PUBLISH_BYTES
        self._dispatcher.redelivered_through = grant.redelivered_through
        self._has_batch = False
        started = self._now()
        self._liveness = Liveness(grant.worker_timeout_s, started)
        self._beat_interval_s = min(1.0, grant.worker_timeout_s / 4)
        self._next_beat = started

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

    def send_group(self, name: bytes, packet: bytes, left_out: int) -> None:
        """Send one packet to every member of a group but one session (`App.publish`)."""
        self._check_packet(packet)
        self._outbox.add(PUBLISH, left_out, pack_publish(name, packet))

    def _check_packet(self, packet: bytes) -> None:
        if len(packet) > self._grant.max_packet_bytes:
            raise ValueError(
                f"a packet of {len(packet)} bytes; gateway.max_packet_bytes allows "
                f"{self._grant.max_packet_bytes}"
            )

    def call_later(
        self, seconds: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> TimerHandle:
        """Call a function when `seconds` have passed (`App.call_later`)."""
        return self._timers.call_at(self._now() + seconds, function, *args)

    def wake(self) -> None:
        """Make the loop look at what was posted; any thread."""
        self._link.wake()

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
        try:
            self._work()
            self._await_last_words()
        finally:
            self._link.close()

    def _work(self) -> None:
        try:
            self.begin()
            while not self._stopping:
                if not self.turn():
                    self._wait(self._time_to_timers())
        except _StoppedWithoutRoom:
            pass  # what is left is tried once more
        except _StoppedBeforeSuspect:
            logger.info("stopped before a handler call in which a predecessor died")
        try:
            self.end()
        except _StoppedWithoutRoom:
            logger.info("stopped with output for which the lane has no room")

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions that the application knows, by id. Look, do not touch."""
        return self._dispatcher.sessions

    # -- the loop in pieces, for who turns it without waiting --------------------------------------

    def begin(self) -> None:
        """Start the application, tell the gateway that this worker is there, take over sessions.

        Raises StartHandlerError.
        """
        self._app.attach(self)
        self._take_over()
        self._timers.start(self._app.repeated, self._now())

    def turn(self) -> bool:
        """Handle the next that has come; False, and all is published, when there was nothing."""
        # Each question to a ZeroMQ socket costs system calls, so each is asked once: a receive
        # that finds nothing also arms the descriptor.
        chunk = self._backlog.popleft() if self._backlog else self._lane.receive()
        if chunk is not None:
            self._begin_batch()
            self._dispatcher.run(chunk)
            self._run_posted()
            self._take_timers_turn()
            return True
        self._run_posted()
        self._run_timers()
        self._publish()
        self._has_batch = False
        return bool(self._backlog)

    def next_timer(self) -> float | None:
        """Return when the application's next timer is due, by the clock, or None."""
        return self._timers.next_due()

    def end(self) -> None:
        """Tell the application, and publish what is done; nothing is to be turned any more."""
        self._timers.clear()
        if self._app.stop_handler is not None:
            self._dispatcher.call(self._app.stop_handler, "the application's on_stop")
        self._app.decode_errors.log_unlogged(is_last=True)
        self._publish()

    # -- its parts ---------------------------------------------------------------------------------

    def _await_last_words(self) -> None:
        """Stay, for a bounded time, until the gateway has taken what was published last.

        What is still in the lane's socket when that closes is lost; a successor would do it
        again.
        """
        deadline = self._now() + FAREWELL_S
        while self._serial_taken < self._lane.serial_published:
            if self._now() >= deadline:
                logger.warning(
                    "the gateway has not taken the last batch within %g s; it may be done again",
                    FAREWELL_S,
                )
                return
            self._send_heartbeat("stopping")
            self._link.wait_for_message(FAREWELL_ASK_S)
            self._take_control()

    def _take_over(self) -> None:
        # Before the gateway hears that this end is open: a worker whose start fails never was.
        self._start()
        self._publish(is_first=True)  # empty: it tells the gateway that this end is open
        self._begin_batch()
        self._publish_if_due()  # what `on_start` has put out is not counted with another call
        with _no_collections():
            for session in self._grant.sessions:
                self._dispatcher.resume(session)
                if self._outbox.entries or self._now() >= self._dispatcher.publish_at:
                    self._publish_if_due()

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

    def _begin_batch(self) -> None:
        # A batch goes on over chunks: its age counts from the first of them.
        if not self._has_batch:
            self._has_batch = True
            self._dispatcher.publish_at = self._now() + PUBLISH_AGE_S

    def _between_packets(self) -> None:
        """Publish if it is time to, and let timers have their turn."""
        self._publish_if_due()
        if self._take_timers_turn():
            self._dispatcher.publish_at = self._now() + PUBLISH_AGE_S
            self._note.begin()

    def _publish_if_due(self) -> None:
        dispatcher = self._dispatcher
        now = self._now()
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
            self._publish_if_due()

    def _take_timers_turn(self) -> bool:
        """Run timers, beside packets that wait, if it is their turn; return whether any ran."""
        due = self._timers.next_due()
        if due is None or self._now() < max(due, self._timers_turn):
            return False
        self._run_timers()
        return True

    def _run_timers(self) -> None:
        """Run what is due, until a slice of time is over; at least one."""
        timers = self._timers
        due, now = timers.next_due(), self._now()
        if due is None or now < due:
            return
        self._note.clear()
        if self._dispatcher.commit != self._published:
            self._publish()  # as for posted functions
        newest, until = timers.newest(), now + TIMERS_SLICE_S
        while now < until and (function := timers.take_due(now, newest)) is not None:
            self._begin_batch()
            self._dispatcher.call(function, "a function that a timer called")
            self._publish_if_due()
            now = self._now()
        self._timers_turn = now + TIMERS_SLICE_S

    def _time_to_timers(self) -> float | None:
        due = self._timers.next_due()
        return None if due is None else max(0.0, due - self._now())

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
        left = max(0.0, self._next_beat - self._now())
        if timeout_s is not None:
            left = min(left, timeout_s)
        for source in self._link.wait(left):
            self._attend(source)
        self._beat()

    def _attend(self, source: int) -> None:
        """See to one of the descriptors that are waited on."""
        if self._link.attend(source):
            self._take_control()

    # -- control plane -----------------------------------------------------------------------------

    def _beat(self) -> None:
        now = self._now()
        if now < self._next_beat:
            return
        self._next_beat = now + self._beat_interval_s
        self._take_control()
        reason = self._liveness.verdict(now)
        if reason is not None:
            raise GatewayLostError(f"the gateway is lost: {reason}")
        self._app.decode_errors.log_unlogged()
        self._send_heartbeat("blocked" if self._is_blocked else "idle")
        self._take_control()  # the send may have swallowed the announcement of a message

    def _send_heartbeat(self, state: LaneState) -> None:
        heartbeat = WorkerHeartbeat(
            incarnation=self._grant.incarnation,
            position_received=self._lane.position_received,
            serial_sent=self._lane.serial_published,
            state=state,
            decode_errors=self._app.decode_errors.count - self._decode_errors_before,
        )
        self._link.send(heartbeat)

    def _take_control(self) -> None:
        while (message := self._link.receive()) is not None:
            self._take_message(message)

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
        self._liveness.heard(self._now(), (lane.position_received,), behind)
