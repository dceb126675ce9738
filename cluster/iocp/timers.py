"""Timers of one dispatching loop: a heap of due times, without a clock of its own."""

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["Timer", "Timers"]

_SWEEP_MIN = 64
"""Timers from which on cancelled ones are swept out. The next sweep comes at twice what is left,
so that a timer costs O(log n) all told, and the heap stays within twice its live timers."""


class Timer:
    """A callback that is due once. `cancel` may be called at any time, and again."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """Forget the callback; the timer does nothing when its time comes."""
        self.callback = None


class Timers:
    """Timers in the order in which they are due. For one thread."""

    __slots__ = ("_heap", "_order", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._sweep_at = _SWEEP_MIN

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` once, from `run_due`, when the clock has reached `due` (seconds)."""
        timer = Timer(callback)
        heapq.heappush(self._heap, (due, next(self._order), timer))
        if len(self._heap) >= self._sweep_at:
            self._drop_cancelled()
        return timer

    def next_due(self) -> float | None:
        """Return when the first live timer is due, or None."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self, now: float) -> int:
        """Call the callbacks that are due at `now`, up to the first that was added meanwhile."""
        newest = self.newest()
        called = 0
        # One at a time, from a heap that callbacks may add to, clear and leave by raising.
        while (callback := self.take_due(now, newest)) is not None:
            called += 1
            callback()
        return called

    def newest(self) -> int:
        """Return a number that only timers which are added from now on exceed."""
        return next(self._order)

    def take_due(self, now: float, newest: float = math.inf) -> Callable[[], Any] | None:
        """Take out the first callback that is due at `now`; None when there is none.

        Timers that were added as number `newest` or later count as not due.
        """
        while self._heap and self._heap[0][0] <= now and self._heap[0][1] < newest:
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                return callback
        return None

    def clear(self) -> None:
        """Cancel everything."""
        for _, _, timer in self._heap:
            timer.cancel()
        self._heap.clear()

    def _drop_cancelled(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        self._sweep_at = max(_SWEEP_MIN, 2 * len(self._heap))
