"""What all nodes of one test stand on: a clock, a network, and calls that come to rest.

Nothing here happens by itself. `settle` turns whoever stands on the stage until nobody has anything
left to do at this moment of the clock; `advance` turns the clock.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.iocp.driver.memory import ManualClock, MemoryNetwork
from cluster.testing.running import Running
from cluster.worker.app import App

__all__ = ["Drains", "Stage", "Stands"]

TURNS_MAX = 100_000
"""Turns after which nodes that have never been at rest count as ones that never will be."""

QUIET_TURNS = 2
"""Turns in a row in which nothing happened, after which all is at rest. One is not enough: a
gateway carries out in it what workers published in the one before, and that arrives in the next."""

OUTSIDE_POLL_S = 0.001
"""How often `wait_until` looks."""

OUTSIDE_MAX_S = 10.0
"""How long a worker that waits by itself waits for what nothing here brings."""

OUTSIDE_ALONE_MAX_S = 30.0
"""How long, within one call of the test, a worker waits by itself for what a thread or a socket is
to bring: what only the test can bring does not come, because that call has not returned."""

WAITS_MAX = 5_000
"""How often a worker waits by itself where the application has planned nothing but what comes again
and again, as gateways and links have. Something of theirs is due in each: that is an hour and more,
if nothing is due more often than once in a second."""

WAITS_MIN_S = 1.0
"""It waits so long in any case, by a clock that goes: a thread may post something."""

HOPELESS = (
    "a worker waits for its own coroutines, which nothing in this {place} ends: in on_start or "
    "on_stop, or because as many of them wait as may; give App(coroutines_max=..., "
    "coroutines_waiting_max=...) more, or what they await a timeout"
)

OUTSIDE_ALONE = (
    "a worker has waited {seconds:g} s for its own coroutines, in on_start or on_stop, or because "
    "as many of them wait as may, and they await something outside of this {place} (a thread, a "
    "process, a socket), which the test cannot bring before its call returns; give "
    "App(coroutines_max=..., coroutines_waiting_max=...) more, or what they await a timeout"
)

START_S = 1_000.0
"""The clock at the start; not 0, so that nothing is due that was due never."""


class Stands(Protocol):
    """Who stands on a stage, and is turned there."""

    def turn(self) -> bool:
        """Do what there is to do at this moment; whether there was anything."""
        ...

    def next_due(self, *, of_running: bool = True) -> float | None:
        """Return when something happens next, if only time passes; None for never.

        Not `of_running`: without what is due to workers that take a step, or wait in one.
        """
        ...

    def awaits_outside(self) -> bool:
        """Whether coroutines have begun what no clock of ours brings."""
        ...

    def awaits_time(self) -> bool:
        """Whether the application has planned anything but what comes again and again."""
        ...

    @property
    def calls_in_progress(self) -> int:
        """Calls of the application that await something, or wait behind such."""
        ...


class Drains(Protocol):
    """Who can be drained."""

    def advance_drain(self) -> bool:
        """Go on with the drain, which begins with the first call; return whether it has ended."""
        ...


class Stage:
    """Turns those who stand on it. For one thread."""

    def __init__(
        self,
        app: App,
        place: str,
        raise_errors: bool,
        remarks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Have all run `app`; `place` is what they are together, in words.

        What a handler raises is raised again by the call that made it run, if `raise_errors`.
        `remarks` says what else there is to know when all is at rest.
        """
        self.app = app
        self.place = place
        self.clock = ManualClock(START_S)
        self.network = MemoryNetwork(seed=0, clock=self.clock)
        self.running = Running(app)
        self.errors: list[BaseException] = []
        """What functions of the application have raised, and why messages of shards were dropped,
        where that was not raised again."""
        self.standing: list[Stands] = []
        """In the order in which they are turned."""
        self.is_closed = False
        """Whether the test is over."""
        self.raises_errors = raise_errors
        self._remarks = remarks
        self._is_settling = False
        self._waits = 0
        """How often a worker has waited by itself since the test has done something."""
        self._waits_since = 0.0
        """When it began to, by a clock that goes."""
        self._waits_until = math.inf
        """When, by a clock that goes, it has waited too long for what nothing here brings."""
        self._outside_until = math.inf
        """The same for what a thread or a socket is to bring."""

    # -- what a test does --------------------------------------------------------------------------

    def settle(self) -> None:
        """Do all that is to be done now. Within a handler it does nothing.

        Raises what handlers raised meanwhile.
        """
        if self._is_settling:
            return
        self._is_settling = True
        self._waits, self._outside_until = 0, math.inf
        try:
            self._turn_until_quiet()
        finally:
            self._is_settling = False
        self.raise_first_error()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: what is due comes at its moment, one after the other.

        Raises ValueError for a negative number, RuntimeError within a handler.
        """
        if self._is_settling:
            raise RuntimeError(f"time does not pass in the midst of a call; the {self.place} waits")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"advance by {seconds!r} seconds: give 0 or more")
        self.settle()
        end = self.clock.now() + seconds
        while (due := self._next_due()) is not None and due <= end:
            self.clock.advance_to(due)
            self.settle()
        self.clock.advance_to(end)
        self.settle()

    def wait_until(self, condition: Callable[[], object], timeout_s: float) -> None:
        """Let real time pass until `condition()` is true, at most `timeout_s` seconds of it.

        Raises TimeoutError, and what handlers raised meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        self.settle()
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"it has not come true within {timeout_s:g} s; {self.describe()}"
                )
            time.sleep(OUTSIDE_POLL_S)
            self.settle()

    def describe(self) -> str:
        """Return in words that all is at rest, and what it takes to go on."""
        place = self.place
        description = f"the {place} is at rest"
        if count := sum(each.calls_in_progress for each in self.standing):
            calls = (
                "1 call that awaits" if count == 1 else f"{count} calls that await, or wait behind"
            )
            description += (
                f", but for {calls} something: what is due later comes by `{place}.advance`, "
                f"what a thread or a socket brings by `{place}.wait_until`"
            )
        return "; ".join([description, *self._remarks()])

    def drain(self, nodes: Sequence[Drains], timeout_s: float) -> None:
        """Drain `nodes` together: time passes as they need it, `timeout_s` at most by each clock.

        Raises what handlers raised meanwhile.
        """
        self.settle()
        outside_until = time.monotonic() + timeout_s
        while not _advance_drains(nodes):
            self.settle()
            if _advance_drains(nodes):
                return
            if self._awaits_outside() and time.monotonic() < outside_until:
                time.sleep(OUTSIDE_POLL_S)
                continue
            due = self._next_due()
            assert due is not None, "a drain ends at its deadline at the latest"
            self.clock.advance_to(due)

    @property
    def is_settling(self) -> bool:
        """Whether something is being done: a handler runs, if anything of the application does."""
        return self._is_settling

    def raise_first_error(self) -> None:
        """Raise what handlers have raised, if that is to be."""
        if self.errors and self.raises_errors:
            first, *others = self.errors
            self.errors.clear()
            for error in others:
                first.add_note(f"then a handler raised {type(error).__name__}: {error}")
            raise first

    # -- turning -----------------------------------------------------------------------------------

    def _turn_until_quiet(self) -> bool:
        """Turn until nothing is left to do at this moment; return whether anything was."""
        quiet = 0
        for count in range(TURNS_MAX):
            quiet = 0 if self._turn() or self._is_anything_due() else quiet + 1
            if quiet == QUIET_TURNS:
                return count >= QUIET_TURNS
        raise RuntimeError(
            f"the {self.place} is not at rest after {TURNS_MAX} turns: does a function post "
            "itself, or plan itself by call_later in 0 seconds, without end?"
        )

    def _turn(self) -> bool:
        """One turn of everybody; whether anything happened."""
        has_worked = False
        for each in tuple(self.standing):
            has_worked = each.turn() or has_worked
        return has_worked

    def _is_anything_due(self) -> bool:
        due = self._next_due(of_running=False)
        return due is not None and due <= self.clock.now()

    def _next_due(self, *, of_running: bool = True) -> float | None:
        times = [each.next_due(of_running=of_running) for each in self.standing]
        return min((due for due in times if due is not None), default=None)

    def _awaits_outside(self) -> bool:
        return any(each.awaits_outside() for each in self.standing)

    def pass_time(self, seconds: float) -> float:
        """Let a worker wait by itself, for its own coroutines: see `Incarnation`.

        Everything else goes on, and time passes once it is at rest.
        """
        if not self._waits:
            self._waits_since = time.monotonic()
        self._waits += 1
        if self._turn_until_quiet():
            self._waits_until = math.inf
            return 0.0
        if self._awaits_outside():
            self._waits, self._waits_until = 0, math.inf
            now = time.monotonic()
            self._outside_until = min(self._outside_until, now + OUTSIDE_ALONE_MAX_S)
            if now >= self._outside_until:
                seconds = OUTSIDE_ALONE_MAX_S
                raise RuntimeError(OUTSIDE_ALONE.format(place=self.place, seconds=seconds))
            if self._next_due() is None:
                return OUTSIDE_POLL_S
        elif self._next_due() is None:
            now = time.monotonic()
            self._waits_until = min(self._waits_until, now + OUTSIDE_MAX_S)
            if now < self._waits_until:
                return OUTSIDE_POLL_S
            raise RuntimeError(HOPELESS.format(place=self.place))
        elif self._has_waited_in_vain():
            raise RuntimeError(HOPELESS.format(place=self.place))
        self._waits_until = math.inf
        due = self._next_due(of_running=False)
        end = self.clock.now() + seconds
        self.clock.advance_to(end if due is None else min(due, end))
        return 0.0

    def _has_waited_in_vain(self) -> bool:
        """Whether a worker has waited so often that what is due here will not end that."""
        if self._waits <= WAITS_MAX or time.monotonic() - self._waits_since < WAITS_MIN_S:
            return False
        return self._waits > TURNS_MAX or not any(each.awaits_time() for each in self.standing)


def _advance_drains(nodes: Sequence[Drains]) -> bool:
    """Let each of `nodes` go on with its drain; return whether all have ended."""
    have_ended = [node.advance_drain() for node in nodes]
    return all(have_ended)
