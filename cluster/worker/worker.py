"""The worker's loop: receive, handle, publish, beat, wait.

One thread does everything, so its heartbeats tell the truth: they stop when a handler hangs.
Output and commit are published when nothing more is to be handled, or the batch is 1 ms old,
or 64 KiB. A worker that finds no room to publish waits, alive, and says so.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.deferred_bytes import deferred_bytes_max
from cluster.shared.group_records import pack_publish
from cluster.shared.key_records import KeyOwners
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
from cluster.shared.note import HandlerCall, NoteWriter
from cluster.shared.records import BROADCAST, KICK_USER, OPENED, PUBLISH, SEND_TO
from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import pack_send_to
from cluster.worker.app import App
from cluster.worker.app_timers import AppTimers, TimerHandle
from cluster.worker.careful_dispatcher import CarefulDispatcher
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.gateway_link import GatewayLink
from cluster.worker.inbound_call import InboundCall
from cluster.worker.outbox import Outbox
from cluster.worker.session import Session
from cluster.worker.tells import Tells

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines
    from cluster.worker.task_loop import TaskLoop

__all__ = ["GatewayLostError", "StartHandlerError", "Worker", "WorkerRefusedError"]

logger = logging.getLogger("cluster.worker")

PUBLISH_AGE_S = 0.001

TIMERS_SLICE_S = 0.001
"""How long timers run before packets get their turn, and packets before timers get theirs."""

FAREWELL_S = 0.5
"""Longest wait, at the end, for the gateway to take what was published last."""

CANCEL_S = 0.5
"""Longest time for coroutines that are cancelled, at the end, to clean up."""

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


_T = TypeVar("_T")


class _StoppedBeforeSuspect(Exception):
    """Told to stop while what comes before a suspect is on its way; a successor meets it."""


class _StoppedInCoroutines(Exception):
    """Told to stop while so many coroutines are in progress that nothing more is taken."""


class _StoppedInStart(BaseException):
    """Told to stop while `on_start` awaits: no error of the application's."""


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
        pass_time: Callable[[float], None] | None = None,
    ) -> None:
        """Run `app` on a shard that was granted. The lane stays the caller's; `run` closes `link`.

        What is in hand is told in `note`, if there is one. `now` is a clock in seconds that never
        goes back; without one it is the system's. `on_error` hears of what a function of the
        application raised, behind what is done about it. `pass_time` turns a clock that is turned
        by hand, by some seconds, where the worker itself has to wait for a coroutine.
        """
        self._pass_time = pass_time
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
        self._tasks: TaskLoop | None = None
        """Runs the coroutines of an application that has any."""
        self._has_rounded = False
        self._dispatcher = self._make_dispatcher()
        self.tells = self._make_tells()
        """What goes to other shards."""
        self._dispatcher.connect_shards(self.tells)
        self._backlog: deque[InboundChunk] = deque()
        self._in_hand = InboundChunk(0, b"")
        self._hears_ahead = False
        self._is_blocked = False
        self._serial_taken = 0
        self._decode_errors_before = app.decode_errors.count
        self._stopping = False
        self._dispatcher.now = self._now
        self._dispatcher.calls.on_error = on_error
        self._dispatcher.publish_bytes = PUBLISH_BYTES
        self._dispatcher.redelivered_through = grant.redelivered_through
        self._has_batch = False
        started = self._now()
        self._liveness = Liveness(grant.worker_timeout_s, started)
        self._beat_interval_s = min(1.0, grant.worker_timeout_s / 4)
        self._next_beat = started
        self._beat_at = started
        """When it was last looked whether a beat is due."""

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
        deferred = {(call.position, call.index) for call in grant.deferred}
        in_lane = [call for call in grant.suspects if (call.position, call.index) not in deferred]
        if in_lane:
            return CarefulDispatcher(
                *common, in_lane, self._settle, make_coroutines=self._make_coroutines
            )
        return Dispatcher(*common, make_coroutines=self._make_coroutines)

    def _make_tells(self) -> Tells:
        grant = self._grant
        tells = Tells(
            self._outbox,
            ShardId(grant.node, grant.shard),
            _keys_of(grant),
            grant.shard_count,
            grant.tell_window_bytes,
            grant.tells,
            # Of this life alone: an answer to a question of another one is for nobody.
            (grant.nonce ^ grant.incarnation << 32) % (1 << 64),
        )
        tells.is_in_coroutine = self._is_in_coroutine
        return tells

    def _is_in_coroutine(self) -> bool:
        return self._tasks is not None and self._tasks.is_in_task

    def _make_coroutines(self) -> "Coroutines":
        # Only an application that awaits pays for asyncio.
        from cluster.worker.coroutines import Coroutines
        from cluster.worker.task_loop import TaskLoop

        grant = self._grant
        suspects = [(HandlerCall(s.position, s.index), s.is_set_aside) for s in grant.suspects]
        self._tasks = TaskLoop(self._now)
        self._tasks.enter()
        for source in self._link.sources():
            self._tasks.watch(source)
        return Coroutines(
            self._dispatcher,
            self._outbox,
            self._note,
            self._tasks,
            running_max=self._app.coroutines_max,
            bytes_max=deferred_bytes_max(grant.lane.bytes),
            suspects={call for call, is_set_aside in suspects if not is_set_aside},
            set_aside={call for call, is_set_aside in suspects if is_set_aside},
        )

    # -- what the application uses -----------------------------------------------------------------

    def broadcast(self, packet: bytes) -> None:
        """Send one packet to every session of the node (`App.broadcast`)."""
        self._check_packet(packet)
        self._outbox.add(BROADCAST, 0, packet)

    def send_to(self, user: bytes, packet: bytes) -> None:
        """Send one packet to a user (`App.send_to`)."""
        self._check_packet(packet)
        self._outbox.add(SEND_TO, 0, pack_send_to(user, packet))

    def kick_user(self, user: bytes, packet: bytes) -> None:
        """Send one last packet to a user, and end its session (`App.kick_user`)."""
        self._check_packet(packet)
        self._outbox.add(KICK_USER, 0, pack_send_to(user, packet))

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
            self.close()

    def close(self) -> None:
        """Let go of what it runs on; `run` has done so. Idempotent."""
        if self._tasks is not None:
            self._tasks.close()
            self._tasks = None
        self._link.close()

    def _work(self) -> None:
        try:
            self.begin()
            self._in_loop(self._go_on)
        except _StoppedInStart:
            self._cancel_coroutines()
            return
        except _StoppedWithoutRoom:
            pass  # what is left is tried once more
        except _StoppedInCoroutines:
            logger.info("stopped with as many coroutines in progress as there may be")
        except _StoppedBeforeSuspect:
            logger.info("stopped before a handler call in which a predecessor died")
        try:
            self.end()
        except _StoppedWithoutRoom:
            what = "output" if self._outbox.runs else "a commit"
            logger.info("stopped with %s for which the lane has no room", what)

    def _go_on(self) -> None:
        while not self._stopping:
            if not self._turn():
                self._wait(self._time_to_timers(), with_coroutines=True)

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions that the application knows, by id. Look, do not touch."""
        return self._dispatcher.sessions

    # -- the loop in pieces, for who turns it without waiting --------------------------------------

    def begin(self) -> None:
        """Start the application, tell the gateway that this worker is there, take over sessions.

        Raises StartHandlerError.
        """
        self._in_loop(self._begin)

    def turn(self) -> bool:
        """Handle the next that has come; False, and all is published, when there was nothing."""
        self._beat_at = self._now()
        return self._in_loop(self._turn)

    def end(self) -> None:
        """Tell the application, and publish what is done; nothing is to be turned any more."""
        self._in_loop(self._end)

    def _in_loop(self, step: Callable[[], _T]) -> _T:
        """Take `step` with the loop of the coroutines, if there are any, as the running one."""
        if self._tasks is not None:
            self._tasks.enter()
        try:
            return step()
        finally:
            if self._tasks is not None:
                self._tasks.leave()

    def _begin(self) -> None:
        self._app.attach(self)
        if self._app.has_coroutines:
            self._dispatcher.begin_coroutines()
        self._take_over()
        self._timers.start(self._app.repeated, self._now())

    def _turn(self) -> bool:
        # Each question to a ZeroMQ socket costs system calls, so each is asked once: a receive
        # that finds nothing also arms the descriptor.
        tasks = self._tasks
        if tasks is not None:
            self._await_room()
        chunk = self._backlog.popleft() if self._backlog else self._lane.receive()
        if chunk is not None:
            self._begin_batch()
            self._in_hand = chunk
            self._dispatcher.run(chunk)
            if self._app.posted:
                self._run_posted()
            if self._timers.soonest < inf:
                self._take_timers_turn()
            if self._tasks is not None:
                self._round(0.0)
            return True
        if self._app.posted:
            self._run_posted()
        if self._timers.soonest < inf:
            self._run_timers()
        if tasks is not None and not self._has_rounded:
            self._round(0.0)
        self._has_rounded = False
        self._publish()
        self._has_batch = False
        return bool(self._backlog) or (tasks is not None and tasks.has_ready)

    def next_timer(self) -> float | None:
        """Return when the application's next timer is due at the earliest, by the clock, or None.

        What its coroutines wait for is among them.
        """
        due = [self._timers.next_due()]
        if self._tasks is not None:
            due.append(self._tasks.next_due())
        return min((moment for moment in due if moment is not None), default=None)

    def _end(self) -> None:
        self._timers.clear()
        if self._tasks is not None:
            self._publish()
            self._cancel_coroutines()
        if self._app.stop_handler is not None:
            self._stop(self._app.stop_handler)
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
        grant, dispatcher = self._grant, self._dispatcher
        opening = {call.session for call in grant.deferred if call.kind == OPENED}
        with _no_collections():
            for session in grant.sessions:
                dispatcher.resume(session, session.id in opening)
                if self._outbox.runs or self._now() >= dispatcher.publish_at:
                    self._publish_if_due()
            self._take_over_deferred()

    def _take_over_deferred(self) -> None:
        begun: set[int] = set()
        for call in self._grant.deferred:
            inbound = InboundCall(
                HandlerCall(call.position, call.index),
                call.kind,
                call.payload,
                call.sequence,
                is_redelivered=True,
                was_begun=call.session not in begun,
            )
            begun.add(call.session)
            self._dispatcher.take_over(call.session, inbound)

    def _start(self) -> None:
        handler = self._app.start_handler
        if handler is None:
            return
        error = self._call_to_end(handler)
        if error is not None:
            name = getattr(handler, "__qualname__", repr(handler))
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise StartHandlerError(f"the application's on_start, {name}, raised {what}") from error

    def _stop(self, handler: Callable[[], Any]) -> None:
        mark = self._outbox.mark()
        error = self._call_to_end(handler, self._grant.worker_timeout_s)
        if isinstance(error, SystemExit):
            raise error
        if error is not None:
            self._dispatcher.calls.failed(None, None, error, mark, "the application's on_stop")

    def _cancel_coroutines(self) -> None:
        """Have coroutines clean up; what they put out from now on is not sent."""
        if self._dispatcher.coroutines is not None:
            self._dispatcher.coroutines.cancel(CANCEL_S)

    def _call_to_end(
        self, handler: Callable[[], Any], timeout_s: float = inf
    ) -> BaseException | None:
        """Call `handler`; if it awaits, wait for its end, alive. Return what it raised.

        That is a TimeoutError when it takes more than `timeout_s` seconds. Raises _StoppedInStart
        when the worker is told to stop while it has any time.
        """
        try:
            result = handler()
            if not isinstance(result, Coroutine):
                return None
            self._dispatcher.begin_coroutines()
            assert self._tasks is not None
            task = self._tasks.start(result)
        except (Exception, SystemExit) as error:
            return error
        until = self._now() + timeout_s
        while not task.done():
            if self._stopping and timeout_s == inf:
                raise _StoppedInStart
            self._round(max(0.0, min(until, self._next_beat) - self._now()))
            if self._now() >= until and not task.done():
                return TimeoutError(f"it has not come to its end within {timeout_s:g} s")
            self._beat()
        return RuntimeError("it was cancelled") if task.cancelled() else task.exception()

    def _begin_batch(self) -> None:
        # A batch goes on over chunks: its age counts from the wait that brought the first of them.
        if not self._has_batch:
            self._has_batch = True
            self._dispatcher.publish_at = self._beat_at + PUBLISH_AGE_S

    def _between_packets(self) -> None:
        """Publish if it is time to, let timers have their turn, wait for coroutines to be fewer."""
        self._publish_if_due()
        if self._timers.soonest < inf and self._take_timers_turn():
            self._dispatcher.publish_at = self._now() + PUBLISH_AGE_S
            self._note.begin()
        if self._tasks is not None:
            self._await_room()

    def _await_room(self) -> None:
        """Take nothing more while there are too many coroutines; everything else goes on."""
        if not self._has_too_many():
            return
        self._note.clear()
        # Who awaits the answer to a bind must not wait for those who wait for its end.
        self._hears_ahead = True
        for chunk in (self._in_hand, *self._backlog):
            self._dispatcher.hear_ahead(chunk)
        while self._has_too_many():
            if self._stopping:
                raise _StoppedInCoroutines
            self._run_posted()
            self._run_timers()
            self._publish()
            self._wait(self._time_to_timers(), with_coroutines=True)
            self._receive_to_backlog()
        self._hears_ahead = False
        self._dispatcher.publish_at = self._now() + PUBLISH_AGE_S
        self._note.begin()

    def _has_too_many(self) -> bool:
        coroutines = self._dispatcher.coroutines
        return coroutines is not None and coroutines.is_full

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
        if posted and self._dispatcher.is_past(self._published):
            self._publish()  # what is done stays done, whatever a posted function does
        for function in posted:
            self._begin_batch()
            self._dispatcher.call(function)
            self._publish_if_due()

    def _take_timers_turn(self) -> bool:
        """Run timers, beside packets that wait, if it is their turn; return whether any ran."""
        now = self._now()
        if now < self._timers_turn or now < self._timers.soonest:
            return False
        return self._run_timers()

    def _run_timers(self) -> bool:
        """Run what is due, until a slice of time is over, at least one; return whether any was."""
        timers, now = self._timers, self._now()
        if now < timers.soonest:
            return False
        due = timers.next_due()
        if due is None or now < due:
            return False
        self._note.clear()
        if self._dispatcher.is_past(self._published):
            self._publish()  # as for posted functions
        newest, until = timers.newest(), now + TIMERS_SLICE_S
        while now < until and (function := timers.take_due(now, newest)) is not None:
            self._begin_batch()
            self._dispatcher.call(function, "a function that a timer called")
            self._publish_if_due()
            now = self._now()
        self._timers_turn = now + TIMERS_SLICE_S
        return True

    def _time_to_timers(self) -> float | None:
        if self._timers.soonest == inf:
            return None
        due = self._timers.next_due()
        return None if due is None else max(0.0, due - self._now())

    def _publish(self, is_first: bool = False) -> None:
        """Publish output and commit as one; wait, alive, until there is room."""
        outbox = self._outbox
        if not (outbox.runs or is_first or self._dispatcher.is_past(self._published)):
            self._beat()
            return
        commit = self._dispatcher.commit
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
            if self._hears_ahead:
                self._dispatcher.hear_ahead(chunk)

    def _wait(self, timeout_s: float | None, with_coroutines: bool = False) -> None:
        """Sleep until something comes, the next heartbeat is due, or `timeout_s` has passed.

        `with_coroutines` it is where they go on, one step at least.
        """
        must_run = with_coroutines and self._tasks is not None
        left = 0.0
        if not (self._stopping or self._lane.has_events()):
            # By the clock as of the last look for a beat, which was just now.
            left = max(0.0, self._next_beat - self._beat_at)
            if timeout_s is not None and timeout_s < left:
                left = timeout_s
        elif not must_run:
            return
        if must_run:
            self._round(left)
            self._has_rounded = True
        else:
            for source in self._link.wait(left):
                self._attend(source)
        self._beat()

    def _round(self, timeout_s: float) -> None:
        """Let coroutines go on by a step, after a wait of at most `timeout_s` for something."""
        coroutines, tasks = self._dispatcher.coroutines, self._tasks
        assert coroutines is not None
        assert tasks is not None
        if timeout_s > 0.0 and self._pass_time is not None:
            due = tasks.next_due()
            if due is not None and not tasks.has_ready:
                self._pass_time(max(0.0, min(timeout_s, due - self._now())))
                timeout_s = 0.0
        for source in coroutines.round(timeout_s):
            self._attend(source)
        if coroutines.wants_settled:
            self._settle()
            coroutines.settled()

    def _attend(self, source: int) -> None:
        """See to one of the descriptors that are waited on."""
        if self._link.attend(source):
            self._take_control()

    # -- control plane -----------------------------------------------------------------------------

    def _beat(self) -> None:
        now = self._beat_at = self._now()
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
            tells_full=self.tells.full_count,
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


def _keys_of(grant: Grant) -> KeyOwners:
    owners = tuple(grant.key_owners)
    others = tuple(node for node in grant.nodes if node not in owners)
    if not grant.nodes:
        return KeyOwners((grant.node,))
    return KeyOwners(owners, others)
