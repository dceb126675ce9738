"""What `every` and `call_later` of one shard call, and when it is due. No clock, no I/O.

The n-th call of a series is due at its start and n intervals, whenever the calls before it really
ran, so it does not drift. Calls whose time passes while the worker is busy are not made up for: the
one that is late runs, once, and the next one is the first whose time is still to come. Nor is one
made while the coroutine of the one before it is still in progress.
"""

import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

from cluster.iocp.timers import Timer, Timers
from cluster.worker.outbox import not_here

__all__ = ["INTERVAL_MIN_S", "TIMERS_MAX", "AppTimers", "Repeated", "TimerHandle"]

TIMERS_MAX = 100_000
"""Functions of one worker that may wait for their time."""

INTERVAL_MIN_S = 0.001
"""The shortest interval of a series: the loop wakes up by whole milliseconds."""


class Repeated(NamedTuple):
    """What `App.every` was given."""

    interval_s: float
    function: Callable[[], Any]


class TimerHandle:
    """A call that `App.call_later` has planned. For handlers and the loop's thread."""

    __slots__ = ("_args", "_function", "_timer", "_timers")

    def __init__(
        self, timers: "AppTimers", function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self._timers = timers
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._timer: Timer | None = None

    def cancel(self) -> None:
        """Do not call the function, if that has not begun. May be called again.

        RuntimeError in another thread than the handlers'.
        """
        self._timers.check_thread()
        self._function, self._args = None, ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timers.waiting -= 1

    def _plan(self, timers: Timers, due: float) -> None:
        self._timer = timers.add(due, self._take)

    def _take(self) -> Callable[[], Any]:
        function, args = self._function, self._args
        assert function is not None
        self.cancel()
        return partial(function, *args)


class _Series:
    """Calls of one function, again and again."""

    __slots__ = ("_function", "_interval_s", "_is_awaiting", "_number", "_start", "_timers")

    def __init__(self, repeated: Repeated, timers: "AppTimers", start: float) -> None:
        self._interval_s, self._function = repeated
        self._is_awaiting = False
        self._timers = timers
        self._start = start
        self._number = 0
        self._plan(start)

    def _plan(self, now: float) -> None:
        passed = math.floor((now - self._start) / self._interval_s)
        self._number = max(self._number, passed) + 1
        self._timers.add(self._start + self._number * self._interval_s, self._take)

    def _take(self) -> Callable[[], Any]:
        self._plan(self._timers.now)
        return self._call

    def _call(self) -> Any:
        if self._is_awaiting:
            return None
        result = self._function()
        return self._to_end(result) if isinstance(result, Coroutine) else result

    async def _to_end(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._is_awaiting = True
        try:
            await coroutine
        finally:
            self._is_awaiting = False


class AppTimers:
    """The timers of one worker, in the order in which they are due. For the loop's thread."""

    __slots__ = ("_timers", "now", "soonest", "thread", "waiting")

    def __init__(self) -> None:
        self._timers = Timers()
        self.thread = get_ident()
        """The loop's thread; for whoever turns the loop to say."""
        self.soonest = math.inf
        """Nothing is due before; it may be later, after a call that was cancelled."""
        self.now = 0.0
        """The time for which `take_due` was asked last."""
        self.waiting = 0
        """Calls of `call_later` whose time has not come."""

    def start(self, series: Sequence[Repeated], now: float) -> None:
        """Begin `series`: each function is due for the first time an interval after `now`."""
        for repeated in series:
            _Series(repeated, self, now)

    def call_at(self, due: float, function: Callable[..., Any], *args: Any) -> TimerHandle:
        """Plan `function(*args)` for `due`; RuntimeError when TIMERS_MAX calls wait already, and
        in another thread than the loop's."""
        self.check_thread()
        if self.waiting >= TIMERS_MAX:
            raise RuntimeError(
                f"{TIMERS_MAX} calls wait for their time already; cancel those that are not "
                "needed any more, or have one call do the work of many"
            )
        handle = TimerHandle(self, function, args)
        handle._plan(self._timers, due)
        self.soonest = min(due, self.soonest)
        self.waiting += 1
        return handle

    def check_thread(self) -> None:
        """Raise RuntimeError in another thread than the loop's, which would not wake up for it."""
        if get_ident() != self.thread:
            raise not_here()

    def add(self, due: float, take: Callable[[], Callable[[], Any]]) -> None:
        """Have `take_due` return what `take` does when `due` has come."""
        self._timers.add(due, take)
        self.soonest = min(due, self.soonest)

    def next_due(self) -> float | None:
        """Return when the first call is due, or None."""
        due = self._timers.next_due()
        self.soonest = math.inf if due is None else due
        return due

    def newest(self) -> int:
        """Return a number for `take_due`: what is planned from now on is not due for it."""
        return self._timers.newest()

    def take_due(self, now: float, newest: int) -> Callable[[], Any] | None:
        """Take out the first call that is due at `now`, for the caller to make; or None.

        A series plans its next call here, so a call that fails does not end it.
        """
        self.now = now
        take = self._timers.take_due(now, newest)
        self.next_due()
        return None if take is None else take()

    def clear(self) -> None:
        """Cancel everything, for good."""
        self._timers.clear()
        self.soonest = math.inf
