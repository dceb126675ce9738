"""Timers of one dispatching loop: a heap of due times, without a clock of its own."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["Timer", "Timers"]


class Timer:
    """A callback that is due once. `cancel` may be called at any time, and again."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], Any]) -> None:
        self.due = due
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """Forget the callback; the timer does nothing when its time comes."""
        self.callback = None


class Timers:
    """Timers in the order in which they are due. For one thread."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` once, from `run_due`, when the clock has reached `due` (seconds)."""
        timer = Timer(due, callback)
        heapq.heappush(self._heap, (due, next(self._order), timer))
        if len(self._heap) > 64:
            self._drop_cancelled()
        return timer

    def next_due(self) -> float | None:
        """Return when the first live timer is due, or None."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self, now: float) -> int:
        """Call every callback that is due at `now` and was added before this call."""
        heap = self._heap
        due: list[Timer] = []
        while heap and heap[0][0] <= now:
            due.append(heapq.heappop(heap)[2])
        called = 0
        for index, timer in enumerate(due):
            callback = timer.callback
            if callback is None:
                continue
            timer.callback = None
            called += 1
            try:
                callback()
            except BaseException:
                for rest in due[index + 1 :]:
                    heapq.heappush(heap, (rest.due, next(self._order), rest))
                raise
        return called

    def clear(self) -> None:
        """Cancel everything."""
        for _, _, timer in self._heap:
            timer.cancel()
        self._heap.clear()

    def _drop_cancelled(self) -> None:
        # Only each time the heap has doubled, so that a cancelled timer costs O(log n) all told.
        if len(self._heap) & (len(self._heap) - 1):
            return
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
