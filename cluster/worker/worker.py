"""The worker's loop: receive, handle, publish, beat, wait.

One thread does everything, so its heartbeats tell the truth: they stop when a handler hangs. How
each of these is done stands in a file of its own (`dispatcher`, `publisher`, `gateway_contact`,
`planned_calls`, and `rounds` for coroutines); here is when.
"""

import logging
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.shared.lane import InboundChunk, WorkerLane
from cluster.shared.log_limit import LogLimit
from cluster.shared.messages import Grant
from cluster.shared.note import NoteWriter
from cluster.worker.app import App
from cluster.worker.app_timers import AppTimers
from cluster.worker.backlog import Backlog
from cluster.worker.careful_dispatcher import make_dispatcher
from cluster.worker.control_link import ControlLink
from cluster.worker.forked import end_forked_off
from cluster.worker.gateway_contact import GatewayContact
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.outbox import Outbox
from cluster.worker.payload_annotation import handler_name
from cluster.worker.planned_calls import PlannedCalls
from cluster.worker.publisher import Publisher
from cluster.worker.runtime import Runtime
from cluster.worker.saved_state import SavedState
from cluster.worker.session import Session
from cluster.worker.stops import (
    StoppedBeforeSuspect,
    StoppedInCoroutines,
    StoppedInStart,
    StoppedWithoutRoom,
)
from cluster.worker.take_over import take_over
from cluster.worker.tells import granted_tells

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines
    from cluster.worker.rounds import Rounds

__all__ = ["StartHandlerError", "Worker"]

logger = logging.getLogger("cluster.worker")

FULL_LINES_S = 60.0
"""How often it is logged, at most, that there are too many coroutines; they are counted, too."""

_T = TypeVar("_T")


class StartHandlerError(Exception):
    """The application's `on_start` raised; the message, one line, says what, its cause is it."""


class Worker:
    """One incarnation. `run` returns when the gateway says stop or `request_stop` was called."""

    def __init__(
        self,
        app: App,
        grant: Grant,
        lane: WorkerLane,
        link: ControlLink,
        note: NoteWriter | None = None,
        now: Callable[[], float] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
        pass_time: Callable[[float], float] | None = None,
    ) -> None:
        """Run `app` on a shard that was granted. The lane stays the caller's; `run` closes `link`.

        What is in hand is told in `note`, if there is one. `now` is a clock in seconds that never
        goes back; without one it is the system's. `on_error` hears of what a function of the
        application raised, and why a message of a shard was dropped, behind what is done about it.
        `pass_time` turns a clock that is turned by hand, by so many seconds at most, where the
        worker itself has to wait for a coroutine; it returns how long is to be waited by a clock
        that goes.
        """
        self._app = app
        self._posted = app.posted
        self._grant = grant
        self._lane = lane
        self._link = link
        self._now = now = now if now is not None else time.monotonic
        self._note = note = note if note is not None else NoteWriter()
        self._in_hand = InboundChunk(0, b"")
        self._pass_time = pass_time
        self._rounds: Rounds | None = None
        """Those of the coroutines of an application that has any."""
        self._outbox = outbox = Outbox(grant.lane.max_batch_bytes)
        self._calls = calls = HandlerCalls(app, outbox, now, on_error)
        tells = granted_tells(grant, outbox, self._is_in_coroutine)
        self._dispatcher = dispatcher = make_dispatcher(
            app,
            grant,
            outbox,
            calls,
            tells,
            note,
            now,
            self._between_packets,
            lambda: self._publisher.settle(),
            self._make_coroutines,
        )
        self._full_lines = LogLimit(1, FULL_LINES_S)
        self._waiting_lines = LogLimit(1, FULL_LINES_S)
        self._backlog = backlog = Backlog(lane)
        self._waiting = backlog.chunks
        self._contact = contact = GatewayContact(
            grant, lane, link, backlog, app.decode_errors, calls, tells, now
        )
        self._publisher = Publisher(outbox, dispatcher, lane, backlog, contact, note, now)
        self._timers = AppTimers()
        self._planned = PlannedCalls(app, self._timers, dispatcher, self._publisher, note, now)
        self.runtime = Runtime(
            outbox,
            grant.max_packet_bytes,
            tells,
            SavedState(outbox, grant.saved, grant.saved_bytes_max),
            calls.sessions,
            self._timers,
            now,
            link.wake,
        )
        """What the application uses of this worker."""

    def _is_in_coroutine(self) -> bool:
        return self._rounds is not None and self._rounds.tasks.is_in_task

    def _make_coroutines(self) -> "Coroutines":
        # Only an application that awaits pays for asyncio.
        from cluster.worker.coroutines import Coroutines
        from cluster.worker.rounds import Rounds
        from cluster.worker.task_loop import TaskLoop

        tasks = TaskLoop(self._now)
        coroutines = Coroutines(
            self._grant,
            self._dispatcher.deferral,
            self._calls,
            self._outbox,
            self._note,
            tasks,
            self._app.coroutines_max,
            self._app.coroutines_waiting_max,
            self._coroutines_wait,
        )
        self._rounds = Rounds(
            tasks,
            coroutines,
            self._link.sources(),
            self._lane,
            self._contact,
            self._publisher,
            self._now,
            self._pass_time,
        )
        return coroutines

    # -- a whole life ------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop.

        Raises WorkerRefusedError, GatewayLostError, LaneViolation, and StartHandlerError before
        anything was done. Not reusable.
        """
        try:
            self._work()
            self._publisher.say_farewell()
        finally:
            self.close()

    def request_stop(self) -> None:
        """End after what is in hand is handled and, if there is room, published and taken.

        From a signal handler or any thread.
        """
        self._contact.request_stop()

    def was_forked_off(self) -> None:
        """The application has made this process, a copy of the worker's: it only ends from now on.

        Called in that process as soon as it is there, while application code runs. It ends when
        that returns or raises, ahead of anything that the loop would do.
        """
        self._publisher.is_forked_off = True
        self._contact.is_stopping = True  # nothing waits in it
        self._outbox.publish_at = 0.0  # ahead of the next packet

    def close(self) -> None:
        """Let go of what it runs on; `run` has done so. Idempotent."""
        if self._rounds is not None:
            self._rounds.tasks.close()
            self._rounds.coroutines.close()
            self._rounds = None
        self._link.close()

    def _work(self) -> None:
        try:
            self.begin()
            self._in_loop(self._go_on)
        except StoppedInStart:
            self._cancel_coroutines()
            return
        except StoppedWithoutRoom:
            pass  # what is left is tried once more
        except StoppedInCoroutines:
            logger.info("stopped with as many coroutines in progress as there may be")
        except StoppedBeforeSuspect:
            logger.info("stopped before a handler call in which a predecessor died")
        try:
            self.end()
        except StoppedWithoutRoom:
            what = "output" if self._outbox.runs else "a commit"
            logger.info("stopped with %s for which the lane has no room", what)

    def _go_on(self) -> None:
        contact = self._contact
        while not contact.is_stopping:
            if self._turn():
                continue
            if self._rounds is not None:
                self._rounds.wait(self._planned.time_to_timers())
            elif self._timers.soonest == inf:
                contact.wait(None)
            else:
                contact.wait(self._planned.time_to_timers())

    # -- the loop in pieces, for who turns it without waiting --------------------------------------

    def begin(self) -> None:
        """Start the application, tell the gateway that this worker is there, take over sessions.

        Raises StartHandlerError.
        """
        self._in_loop(self._begin)

    def turn(self) -> bool:
        """Handle the next that has come; False, and all is published, when there was nothing."""
        self._contact.beat_at = self._now()
        return self._in_loop(self._turn)

    def end(self) -> None:
        """Tell the application, and publish what is done; nothing is to be turned any more."""
        self._in_loop(self._end)

    def next_timer(self) -> float | None:
        """Return when the application's next timer is due at the earliest, by the clock, or None.

        What its coroutines wait for is among them.
        """
        due = [self._timers.next_due()]
        if self._rounds is not None:
            due.append(self._rounds.tasks.next_due())
        return min((moment for moment in due if moment is not None), default=None)

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions that the application knows, by id. Look, do not touch."""
        return self._calls.sessions

    @property
    def awaits_outside(self) -> bool:
        """Whether its coroutines have begun what no clock of ours brings."""
        return self._rounds is not None and self._rounds.tasks.awaits_outside

    @property
    def awaits_time(self) -> bool:
        """Whether anything but `every` is planned: by `call_later`, or by its coroutines."""
        is_awaited = self._rounds is not None and self._rounds.tasks.next_due() is not None
        return is_awaited or self._timers.waiting > 0

    @property
    def unhandled_packets(self) -> int:
        """Packets that no handler took."""
        return self._calls.unhandled_packets

    def _in_loop(self, step: Callable[[], _T]) -> _T:
        """Take `step` with the loop of the coroutines, if there are any, as the running one."""
        self._outbox.thread = self._timers.thread = get_ident()
        if self._rounds is not None:
            self._rounds.tasks.enter()
        try:
            return step()
        finally:
            if self._publisher.is_forked_off:
                end_forked_off(sys.exception())
            if self._rounds is not None:
                self._rounds.tasks.leave()

    def _begin(self) -> None:
        self._app._attach(self.runtime)
        if self._app.has_coroutines:
            self._dispatcher.deferral.begin_coroutines()
        self._take_over()
        self._timers.start(self._app.repeated, self._now())

    def _take_over(self) -> None:
        publisher = self._publisher
        # Before the gateway hears that this end is open: a worker whose start fails never was.
        self._start()
        publisher.open_lane()
        publisher.begin_batch()
        take_over(self._grant, self._dispatcher, publisher.publish_if_due)

    def _turn(self) -> bool:
        if self._publisher.is_forked_off:
            end_forked_off(None)
        # Each question to a ZeroMQ socket costs system calls, so each is asked once: a receive
        # that finds nothing also arms the descriptor.
        rounds = self._rounds
        if rounds is not None and rounds.coroutines.is_full:
            self._await_room(rounds)
        chunk = self._waiting.popleft() if self._waiting else self._lane.receive()
        if chunk is not None:
            self._publisher.begin_batch()
            self._in_hand = chunk
            self._dispatcher.run(chunk)
            if self._posted:
                self._planned.run_posted()
            if self._timers.soonest < inf:
                self._planned.take_turn()
            if self._rounds is not None:
                self._rounds.round(0.0)
                return True
            if self._waiting or not self._lane.is_drained:
                return True
            # The next turn would find nothing; who waits for this one's output gets it now.
        else:
            if self._posted:
                self._planned.run_posted()
            if self._timers.soonest < inf:
                self._planned.run_timers()
            if rounds is not None:
                if not rounds.has_waited:
                    rounds.round(0.0)
                rounds.has_waited = False
        self._publisher.publish()
        self._publisher.has_batch = False
        return bool(self._waiting) or (rounds is not None and rounds.tasks.has_ready)

    def _between_packets(self) -> None:
        """Publish if it is time to, let timers have their turn, wait for coroutines to be fewer."""
        self._publisher.publish_if_due()
        if self._timers.soonest < inf and self._planned.take_turn():
            self._publisher.begin_anew()
        rounds = self._rounds
        if rounds is not None and rounds.coroutines.is_full:
            self._await_room(rounds)

    def _coroutines_wait(self) -> None:
        """Coroutines begin to wait for their turn."""
        self._contact.coroutines_waited += 1
        if self._waiting_lines.admit(self._now()):
            logger.warning(
                "as many coroutines are in progress as may be: further ones wait for their turn "
                "(App(coroutines_max=%d))",
                self._app.coroutines_max,
            )

    def _await_room(self, rounds: "Rounds") -> None:
        """Take nothing more while there are too many coroutines; everything else goes on."""
        self._note.clear()
        self._contact.coroutines_full += 1
        if self._full_lines.admit(self._now()):
            logger.warning(
                "%d coroutines are in progress and %d wait for their turn, with %d bytes of calls "
                "that are deferred: nothing more is taken from clients until some are done "
                "(App(coroutines_max=..., coroutines_waiting_max=...), lane.bytes)",
                rounds.coroutines.running,
                rounds.coroutines.waiting,
                rounds.coroutines.num_bytes,
            )
        # Who awaits the answer to a bind must not wait for those who wait for its end.
        self._backlog.begin_to_hear(self._in_hand, self._dispatcher.hear_ahead)
        while rounds.coroutines.is_full:
            if self._contact.is_stopping:
                raise StoppedInCoroutines
            self._planned.run_posted()
            self._planned.run_timers()
            self._publisher.publish()
            # Here, whoever has taken it in: whatever waits, and hears the gateway, does so.
            self._contact.heard_ahead(self._dispatcher.hearing_ahead.position)
            rounds.wait(self._planned.time_to_timers())
            self._backlog.take_in()
        self._backlog.cease_to_hear()
        self._publisher.begin_anew()

    def _end(self) -> None:
        self._timers.clear()
        self._publisher.is_last = True
        with suppress(StoppedWithoutRoom):  # what is left is tried once more
            if self._rounds is not None:
                self._publisher.publish()
            else:
                self._publisher.publish_if_large()
        self._cancel_coroutines()
        if self._app.stop_handler is not None:
            self._stop(self._app.stop_handler)
        self._app.decode_errors.log_unlogged(is_last=True)
        self._calls.errors.log_unlogged(is_last=True)
        self._publisher.publish()

    # -- `on_start` and `on_stop` ------------------------------------------------------------------

    def _start(self) -> None:
        handler = self._app.start_handler
        if handler is None:
            return
        error = self._call_to_end(handler)
        if error is not None:
            name = handler_name(handler)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise StartHandlerError(f"the application's on_start, {name}, raised {what}") from error

    def _stop(self, handler: Callable[[], Any]) -> None:
        mark = self._outbox.mark()
        error = self._call_to_end(handler, self._grant.worker_timeout_s)
        if isinstance(error, SystemExit):
            raise error
        if error is not None:
            what = "the application's on_stop"
            self._calls.failed(None, None, error, mark, what, is_once=True)

    def _call_to_end(
        self, handler: Callable[[], Any], timeout_s: float = inf
    ) -> BaseException | None:
        """Call `handler`; if it awaits, wait for its end, alive. Return what it raised."""
        try:
            result = handler()
            if not isinstance(result, Coroutine):
                return None
            self._dispatcher.deferral.begin_coroutines()
        except (Exception, SystemExit) as error:
            return error
        assert self._rounds is not None
        return self._rounds.to_end(result, timeout_s)

    def _cancel_coroutines(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
