"""When a process that died is started again, and when that is given up.

A plain object without a clock or processes: the caller tells what became of each life, and when.
The rule that it keeps: a life that was of use is succeeded at once and wipes the slate clean;
lives that were not are succeeded after a growing pause, and five of them in a row within a minute
are enough.
"""

from collections import deque
from dataclasses import dataclass

__all__ = [
    "BACKOFF_FIRST_S",
    "BACKOFF_MAX_S",
    "FAILURES_MAX",
    "FAILURES_WITHIN_S",
    "STEADY_AFTER_S",
    "GiveUp",
    "Restart",
    "RestartPolicy",
]

STEADY_AFTER_S = 5.0
"""A life that stayed ready this long was of use, whatever ended it."""

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

FAILURES_MAX = 5
FAILURES_WITHIN_S = 60.0
"""So many useless lives in a row, ended within so many seconds: another will do no better."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start a successor `delay_s` seconds from now."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Start no successor: the last `lives` ended within `within_s` seconds, none of use."""

    lives: int
    within_s: float


class RestartPolicy:
    """The lives of one process, one after the other. Times are seconds of any steady clock."""

    __slots__ = ("_alive", "_failures", "_next_delay_s", "_proven", "_ready_at", "_stuck_at")

    def __init__(self) -> None:
        self._alive = False
        self._proven = False
        self._ready_at: float | None = None
        self._stuck_at: float | None = None
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._next_delay_s = BACKOFF_FIRST_S

    @property
    def failures(self) -> int:
        """Lives in a row that were of no use; counts up to `FAILURES_MAX`."""
        return len(self._failures)

    def life_started(self) -> None:
        """A process was started."""
        assert not self._alive, "the predecessor is still alive"
        self._alive = True
        self._proven = False
        self._ready_at = None
        self._stuck_at = None

    def life_ready(self, now: float) -> None:
        """The process took up its work; only the first time of each life counts."""
        if self._alive and self._ready_at is None:
            self._ready_at = now

    def life_stuck(self, since: float) -> None:
        """The process has not worked since then: what it takes to find that out proves nothing."""
        if self._alive and self._stuck_at is None:
            self._stuck_at = since

    def life_proved(self) -> bool:
        """The life committed anything, or led to a poison packet being set aside.

        News of a life that has ended may come late: until the successor starts it still wipes
        the slate clean. Returns True in that case: start the successor at once.
        """
        if self._alive:
            self._proven = True
            return False
        self._reset()
        return True

    def forgive(self) -> None:
        """Forget the lives that were of no use: what they died of is no longer there."""
        self._reset()

    def life_withdrawn(self) -> None:
        """The process was ended for a reason that is not its own; that life says nothing."""
        self._alive = False

    def life_ended(self, now: float) -> Restart | GiveUp:
        """The process is dead: what now?"""
        assert self._alive, "no life to end"
        self._alive = False
        worked_until = now if self._stuck_at is None else self._stuck_at
        steady = self._ready_at is not None and worked_until - self._ready_at >= STEADY_AFTER_S
        if self._proven or steady:
            self._reset()
            return Restart(0.0)
        self._failures.append(now)
        within_s = now - self._failures[0]
        if len(self._failures) == FAILURES_MAX and within_s <= FAILURES_WITHIN_S:
            return GiveUp(FAILURES_MAX, within_s)
        delay_s = self._next_delay_s
        self._next_delay_s = min(2 * delay_s, BACKOFF_MAX_S)
        return Restart(delay_s)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the pause fits the number of failures."""
        assert BACKOFF_FIRST_S <= self._next_delay_s <= BACKOFF_MAX_S
        assert list(self._failures) == sorted(self._failures)
        assert (self._next_delay_s == BACKOFF_FIRST_S) == (not self._failures)

    def _reset(self) -> None:
        self._failures.clear()
        self._next_delay_s = BACKOFF_FIRST_S
