"""Calls of functions that no record asks for: those that were posted, and those of timers.

They have no part in the commit: what is done already is published before the first of them, so
that it stays done whatever they do. Under load timers and packets take turns of 1 ms.
"""

from collections.abc import Callable
from math import inf

from cluster.shared.note import NoteWriter
from cluster.worker.app import App
from cluster.worker.app_timers import AppTimers
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.publisher import Publisher

__all__ = ["PlannedCalls"]

TIMERS_SLICE_S = 0.001
"""How long timers run before packets get their turn, and packets before timers get theirs."""


class PlannedCalls:
    """Those of one incarnation. For the loop's thread."""

    def __init__(
        self,
        app: App,
        timers: AppTimers,
        dispatcher: Dispatcher,
        publisher: Publisher,
        note: NoteWriter,
        now: Callable[[], float],
    ) -> None:
        """Make them by `dispatcher`; what is posted to `app`, and what `timers` has."""
        self._app = app
        self._timers = timers
        self._dispatcher = dispatcher
        self._publisher = publisher
        self._note = note
        self._now = now
        self._timers_turn = 0.0
        """When timers get their next turn while there are packets."""

    def run_posted(self) -> None:
        """Call what was posted, but not what that posts."""
        posted = self._app._take_posted()
        if posted:
            self._publisher.publish_what_is_done()
        for function in posted:
            self._call(function, "a posted function")

    def take_turn(self) -> bool:
        """Run timers, beside packets that wait, if it is their turn; return whether any ran."""
        now = self._now()
        if now < self._timers_turn or now < self._timers.soonest:
            return False
        return self.run_timers()

    def run_timers(self) -> bool:
        """Run what is due, until a slice of time is over, at least one; return whether any was."""
        timers, now = self._timers, self._now()
        if now < timers.soonest:
            return False
        due = timers.next_due()
        if due is None or now < due:
            return False
        self._note.clear()
        self._publisher.publish_what_is_done()
        newest, until = timers.newest(), now + TIMERS_SLICE_S
        while now < until and (function := timers.take_due(now, newest)) is not None:
            self._call(function, "a function that a timer called")
            now = self._now()
        self._timers_turn = now + TIMERS_SLICE_S
        return True

    def time_to_timers(self) -> float | None:
        """Return how many seconds are left until the next timer is due; None without any."""
        if self._timers.soonest == inf:
            return None
        due = self._timers.next_due()
        return None if due is None else max(0.0, due - self._now())

    def _call(self, function: Callable[[], object], what: str) -> None:
        self._publisher.begin_batch()
        self._dispatcher.call(function, what)
        self._publisher.publish_if_due()
