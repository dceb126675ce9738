"""A hashed wheel: one deadline for each of many entries, at a cost that does not grow with them.

Time is cut into ticks, and each slot of the wheel holds the entries that are looked at in one tick.
An entry whose deadline moves away, as that of a session does with everything it receives, is left
where it is: it is looked at when its slot comes, and moved on then. So a deadline that always moves
costs one look for each of its periods, and a deadline that moved nearer is the only one that has to
be told. No entry is looked at before its time, and none later than one tick after it; one that lies
further off than the wheel is long is looked at, and moved on, once a round.

No clock, no I/O. Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 6.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["TimerWheel", "WheelEntry"]


class WheelEntry(Protocol):
    """What may be put into a wheel: hashable, and it carries where it is. In one wheel at most."""

    wheel_tick: int
    """The wheel's: the tick in which the entry is looked at; 0 when it is in no wheel."""


E = TypeVar("E", bound=WheelEntry)


class TimerWheel(Generic[E]):
    """Deadlines of entries. For one thread."""

    __slots__ = ("_next_tick", "_ready", "_slots", "tick_s")

    def __init__(self, tick_s: float, slot_count: int, now: float) -> None:
        """Make an empty wheel of `slot_count` ticks of `tick_s` seconds, as of `now`."""
        self.tick_s = tick_s
        self._slots: list[dict[E, None]] = [{} for _ in range(slot_count)]
        self._next_tick = math.floor(now / tick_s) + 1
        self._ready: deque[E] = deque()
        """Entries whose time has come, and that `advance` has had no turn for yet."""

    def __len__(self) -> int:
        return sum(map(len, self._slots)) + len(set(filter(self._is_ready, self._ready)))

    def add(self, entry: E, due: float) -> float:
        """Look at `entry` when the clock has reached `due` (seconds), or earlier if it is to be
        looked at earlier already; return when that is."""
        slots = self._slots
        tick = math.ceil(due / self.tick_s)
        tick = min(max(tick, self._next_tick), self._next_tick + len(slots) - 1)
        before = entry.wheel_tick
        if before:
            if before <= tick:
                return before * self.tick_s
            del slots[before % len(slots)][entry]
        entry.wheel_tick = tick
        slots[tick % len(slots)][entry] = None
        return tick * self.tick_s

    def remove(self, entry: E) -> None:
        """Forget `entry`; nothing happens to one that is not in the wheel."""
        tick = entry.wheel_tick
        if tick:
            entry.wheel_tick = 0
            self._slots[tick % len(self._slots)].pop(entry, None)

    def next_due(self) -> float | None:
        """Return when the next entry is to be looked at, or None; past, when some are late."""
        slots, first = self._slots, self._next_tick
        if self._ready:
            return (first - 1) * self.tick_s
        for tick in range(first, first + len(slots)):
            if slots[tick % len(slots)]:
                return tick * self.tick_s
        return None

    def advance(
        self,
        now: float,
        look: Callable[[E], float | None],
        looks_max: int,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Look at the entries whose time has come at `now`, at `looks_max` of them at most.

        `look` returns the deadline as it is by now, or None to have the entry forgotten. It may
        add and remove entries. After each look `is_enough` may end the turn. What is left over
        comes first in the next call.
        """
        self._collect(math.floor(now / self.tick_s))
        ready = self._ready
        for _ in range(min(looks_max, len(ready))):
            entry = ready.popleft()
            if not self._is_ready(entry):
                continue  # removed meanwhile, and maybe added again for something else
            entry.wheel_tick = 0
            due = look(entry)
            if due is not None:
                self.add(entry, due)
            if is_enough():
                break

    def _collect(self, tick: int) -> None:
        """Take the entries up to `tick` out of their slots."""
        first = self._next_tick
        if tick < first:
            return
        # Before any entry is moved on: where it goes is counted from here.
        self._next_tick = tick + 1
        slots = self._slots
        for due_tick in range(first, min(tick + 1, first + len(slots))):
            slot = slots[due_tick % len(slots)]
            if slot:
                self._ready.extend(slot)
                slot.clear()

    def _is_ready(self, entry: E) -> bool:
        return 0 < entry.wheel_tick < self._next_tick

    def check_invariants(self) -> None:
        """Raise AssertionError unless every entry is in the slot that it names."""
        count = len(self._slots)
        for index, slot in enumerate(self._slots):
            for entry in slot:
                assert entry.wheel_tick % count == index
                assert self._next_tick <= entry.wheel_tick < self._next_tick + count
