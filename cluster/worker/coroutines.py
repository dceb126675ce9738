"""Handler calls that await: who is in progress, and who waits behind them.

From its first await on a call is deferred, and with it everything that comes for the same session
behind it, so the session's calls stay in order while others overtake them. Each step of a
coroutine, from one await to the next, is a call of its own for what it puts out: a step that
raises leaves nothing behind, and what the others put out goes with the next batch.

Steps run in the rounds of the `TaskLoop`, where nothing is ever published: a step that finds the
batch full, or that follows on a death and wants everything before it committed, waits for the
next round instead.

No more than some are in progress at one time. Those that come then are deferred before their first
step, and wait for their turn, so that whoever awaits nothing goes on. Messages of other shards have
turns of their own: calls that await answers cannot keep those from being given.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.deferred_bytes import deferred_bytes, deferred_bytes_max
from cluster.shared.messages import Grant
from cluster.shared.note import HandlerCall, NoteWriter
from cluster.shared.records import CLOSED, DONE, FINISHED, OF_SHARDS, OPENED
from cluster.worker.coroutine_call import CoroutineCall
from cluster.worker.deferral import Deferral
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.inbound_call import InboundCall
from cluster.worker.outbox import Mark, Outbox
from cluster.worker.session import Session
from cluster.worker.standing_task import StandingTask
from cluster.worker.task_loop import TaskLoop
from cluster.worker.turns import Turns

__all__ = ["Coroutines"]

_What = TypeVar("_What")


class _Queue:
    """A session with a coroutine in progress, and what waits behind it."""

    __slots__ = ("session", "waiting")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.waiting: deque[InboundCall] = deque()


class Coroutines:
    """The coroutines of one incarnation. For the loop's thread."""

    def __init__(
        self,
        grant: Grant,
        deferral: Deferral,
        calls: HandlerCalls,
        outbox: Outbox,
        note: NoteWriter,
        loop: TaskLoop,
        running_max: int,
        waiting_max: int,
        on_wait: Callable[[], None],
    ) -> None:
        """Have `running_max` coroutines in progress at one time, and as many of messages.

        Be full from `waiting_max` that wait for their turn, or as many bytes of deferred calls as
        the lane of `grant` allows, on. `on_wait` hears of each time at which calls begin to wait
        for their turn. Before each step of a suspect of `grant` everything is to be committed, and
        nobody else takes one ahead of it; those that are set aside are not to be run.
        """
        self._deferral = deferral
        self._calls = calls
        self._outbox = outbox
        self._note = note
        self._loop = loop
        self._turns = Turns(running_max, waiting_max, on_wait)
        self._turns_of_messages = Turns(running_max, waiting_max, on_wait)
        self._bytes_max = deferred_bytes_max(grant.lane.capacity_bytes)
        suspects = [(HandlerCall(s.position, s.index), s.is_set_aside) for s in grant.suspects]
        self._suspects = {call for call, is_set_aside in suspects if not is_set_aside}
        self._set_aside = {call for call, is_set_aside in suspects if is_set_aside}
        self._first: set[HandlerCall] = set()
        """Suspects that are to take a step, ahead of all others: another call that kills would
        keep the deaths from being in a row."""
        self._queues: dict[int, _Queue] = {}
        self._standing: StandingTask | None = None
        """In whose name the next first step is taken, if there is one, and for which call."""
        self._next_call = CoroutineCall(self)
        self._may_run_suspects = False
        self._is_ending = False
        self._escaped: BaseException | None = None
        self.num_bytes = 0
        """Of the calls that are deferred, as `deferred_bytes` counts them."""
        self.wants_settled = False
        """Whether a suspect waits for everything before it to be committed."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be taken from the lane before something is done."""
        return (
            self.num_bytes >= self._bytes_max
            or self._turns.is_full
            or self._turns_of_messages.is_full
        )

    @property
    def running(self) -> int:
        """Coroutines in progress, those that were posted included."""
        return self._turns.running + self._turns_of_messages.running

    @property
    def waiting(self) -> int:
        """Coroutines that wait for their turn."""
        return self._turns.waiting_count + self._turns_of_messages.waiting_count

    def _turns_for(self, inbound: InboundCall | None) -> Turns:
        is_message = inbound is not None and inbound.kind in OF_SHARDS
        return self._turns_of_messages if is_message else self._turns

    def round(self, timeout_s: float) -> list[int]:
        """Let the coroutines go on by a step; as `TaskLoop.round`."""
        ready = self._loop.round(timeout_s)
        self._may_run_suspects = False
        if self._escaped is not None:
            error, self._escaped = self._escaped, None
            raise error
        return ready

    def settled(self) -> None:
        """Everything is committed: suspects may take a step in the next round."""
        self.wants_settled = False
        self._may_run_suspects = True

    def cancel(self, timeout_s: float) -> None:
        """Cancel them all, and give them `timeout_s` seconds to clean up.

        They are left to a successor: what they put out in that time is dropped, none of them is
        done by it, and none that waits begins.
        """
        self._is_ending = True
        self._deferral.messages.is_ending = True
        self._let_go()
        self._loop.cancel_all(timeout_s)

    def close(self) -> None:
        """Let go of what has not begun: the loop is closed."""
        self._turns.close()
        self._turns_of_messages.close()

    # -- for the dispatcher ------------------------------------------------------------------------

    def begin(
        self,
        coroutine: Coroutine[Any, Any, Any],
        session: Session | None,
        name: HandlerCall | None,
        inbound: InboundCall | None,
        mark: Mark,
        packet_id: int | None = None,
        what: str = "",
    ) -> CoroutineCall | None:
        """Take the first step of what a handler returned; return it if it goes on later.

        `inbound` is None for what no record asks for, `name` also for what is no handler of a
        session, but `what`; both may be told behind the first step. The call began at `mark`.
        """
        standing = self._standing
        if standing is not None and not standing.is_current:
            self._let_go()
            standing = None
        if standing is None:
            self._next_call = CoroutineCall(self)
            self._standing = standing = self._loop.stand_by(self._next_call)
        turns = self._turns_for(inbound)
        # Nobody but a handler waits: timers, and what was posted, are few, and know when they run.
        waits = turns.are_taken and not (session is None and inbound is None)
        if waits:
            coroutine = turns.in_turn(coroutine)
        try:
            awaited = standing.take_first_step(coroutine)
        except StopIteration:
            pass
        except asyncio.CancelledError:
            self._calls.failed(session, packet_id, None, mark, what)
        except Exception as error:
            self._calls.failed(session, packet_id, error, mark, what)
        else:
            call = self._next_call
            call.go_on(coroutine, awaited, session, inbound, name, packet_id, what)
            self._let_go()
            call.waits_for_turn = waits
            if not waits:
                turns.take()
            if session is not None:
                self._make_busy(session)
            return call
        if not standing.is_untouched:
            self._let_go()
        return None

    def _let_go(self) -> None:
        """Let the task that stands by go on, or come to its end if nothing was given to it."""
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.go_on()

    def defer(self, inbound: InboundCall) -> None:
        """Count a call that is deferred."""
        self.num_bytes += deferred_bytes(inbound.payload)

    def wait_behind(self, session: Session, inbound: InboundCall) -> None:
        """Have a call wait until those of `session` before it are done."""
        self._queues[session.id].waiting.append(inbound)
        self.defer(inbound)

    def take_over(self, session: Session, inbound: InboundCall) -> None:
        """Have a call that a predecessor deferred wait for its turn."""
        if self._is_behind_end(session, inbound):
            self.forget(session.id, inbound)
            return
        if not session._is_busy:
            self._begin_soon(inbound, self._go_on, self._make_busy(session))
        self.wait_behind(session, inbound)

    def skip_behind_end(self, session_id: int) -> None:
        """Do, without a handler, what waits for a session if that has ended.

        A successor takes the first call that it is given of a session for one that was begun.
        """
        queue = self._queues.get(session_id)
        if queue is None:
            return
        waiting, queue.waiting = queue.waiting, deque()
        for inbound in waiting:
            if self._is_behind_end(queue.session, inbound):
                self._done(session_id, inbound)
            else:
                queue.waiting.append(inbound)

    def _is_behind_end(self, session: Session, inbound: InboundCall) -> bool:
        """Whether a call that waits is to be skipped, and the batch has room to say so."""
        return not (
            session.is_open
            or inbound.was_begun
            or inbound.kind in (OPENED, CLOSED)
            or self._outbox.num_bytes >= self._outbox.max_batch_bytes
        )

    def take_over_message(self, inbound: InboundCall) -> None:
        """Have a message that a predecessor deferred begin again in the next round."""
        self._begin_soon(inbound, self._guard, self._begin_message, inbound)
        self.defer(inbound)

    def _begin_soon(self, inbound: InboundCall, begin: Callable[..., None], *args: Any) -> None:
        if inbound.name in self._suspects:
            self._first.add(inbound.name)
        self._loop.call_soon(begin, *args)

    def forget(self, session_id: int, inbound: InboundCall) -> None:
        """A call that a predecessor deferred has no session any more: it is done."""
        self.defer(inbound)
        self._done(session_id, inbound)

    def _make_busy(self, session: Session) -> _Queue:
        queue = self._queues.get(session.id)
        if queue is None:
            queue = self._queues[session.id] = _Queue(session)
            session._is_busy = True
        return queue

    # -- what waits --------------------------------------------------------------------------------

    def may_step(self, name: HandlerCall | None) -> bool:
        """Whether a step may be taken in this round."""
        if self._is_ending:
            return True
        if self._outbox.num_bytes >= PUBLISH_BYTES:
            return False
        if name is None or name not in self._suspects:
            return not self._first
        if self._may_run_suspects:
            self._first.discard(name)
            return True
        self._first.add(name)
        self.wants_settled = True
        return False

    def _go_on(self, queue: _Queue) -> None:
        """Begin the next call that waits."""
        self._guard(self._begin_next, queue)

    def _guard(self, begin: Callable[[_What], None], what: _What) -> None:
        """Begin something in a round, which is to raise what is raised here."""
        try:
            begin(what)
        except (SystemExit, KeyboardInterrupt):
            raise  # which asyncio lets through
        except BaseException as error:
            self._escaped = error

    def _begin_message(self, inbound: InboundCall) -> None:
        if self._is_ending:
            return
        if not self.may_step(inbound.name):
            self._loop.call_soon(self._guard, self._begin_message, inbound)
            return
        self._note.doing(inbound.name)
        goes_on = self._deferral.deliver_message(inbound, inbound.name in self._set_aside)
        self._note.clear()
        if not goes_on:
            self._done(0, inbound)

    def _answer_cancelled(self, inbound: InboundCall) -> None:
        """Have who asked hear that a call ended before it could answer: it waited for its turn, or
        for room for its answer."""
        if not self._is_ending and not self._deferral.answer_cancelled(inbound):
            self._done(0, inbound)

    def _begin_next(self, queue: _Queue) -> None:
        session = queue.session
        if self._is_ending:
            return
        if not queue.waiting:
            del self._queues[session.id]
            session._is_busy = False
            # In the middle of a record the rest of it comes next, if it is of this session.
            session.redelivered = self._deferral.redelivering == session.id
            return
        if not self.may_step(queue.waiting[0].name):
            self._loop.call_soon(self._go_on, queue)
            return
        inbound = queue.waiting.popleft()
        session.redelivered = inbound.is_redelivered
        if not self._run(session, inbound):
            self._done(session.id, inbound)
            self._loop.call_soon(self._go_on, queue)

    def _run(self, session: Session, inbound: InboundCall) -> bool:
        """Call the handler; True if it goes on later."""
        mark = self._outbox.mark()
        if inbound.name in self._set_aside:
            self._calls.set_aside(session, inbound.kind)
            return False
        self._note.doing(inbound.name)
        goes_on = self._deferral.deliver(session, inbound, mark)
        self._note.clear()
        return goes_on

    # -- for the calls -----------------------------------------------------------------------------

    def before_step(self, call: CoroutineCall) -> None:
        """A coroutine is going to take a step that is not its first."""
        if call.name is not None:
            self._note.doing(call.name)
        session = call.session
        if session is not None:
            session.redelivered = call.is_redelivered
        call.mark = self._outbox.mark()

    def after_step(self, call: CoroutineCall) -> None:
        """It has been taken, and the coroutine awaits something, or has come to its end."""
        self._note.clear()
        if self._is_ending:
            self._calls.failed(call.session, call.packet_id, None, call.mark)

    def failed(self, call: CoroutineCall, error: BaseException | None) -> None:
        """The step in hand raised `error`, None if it was cancelled: nothing of it remains."""
        self._calls.failed(call.session, call.packet_id, error, call.mark, call.what)
        call.is_cancelled = error is None

    def escaped(self, error: BaseException) -> None:
        """A step raised what is no error of the application's: the round raises it, no task."""
        self._escaped = error

    def ended(self, call: CoroutineCall) -> None:
        """A coroutine that was deferred has come to its end."""
        if not call.waits_for_turn:
            self._turns_for(call.inbound).free()
        if self._is_ending:
            return
        session, inbound = call.session, call.inbound
        if session is None:
            if inbound is not None and call.is_cancelled:
                self._loop.call_soon(self._guard, self._answer_cancelled, inbound)
            elif inbound is not None:
                self._done(0, inbound)
            return
        if inbound is not None:
            self._done(session.id, inbound)
            if inbound.kind == CLOSED:
                session._end()
        self._loop.call_soon(self._go_on, self._queues[session.id])

    def _done(self, session_id: int, inbound: InboundCall) -> None:
        self._first.discard(inbound.name)  # of a session that has ended
        position, index, _ = inbound.name
        self._outbox.add_commit(DONE, session_id, FINISHED.pack(position, index))
        self.num_bytes -= deferred_bytes(inbound.payload)
