"""How many lines of one kind may go to the log: others decide how often there is a reason for one.

No clock, no log: whoever has these asks first.
"""

__all__ = ["LogLimit"]


class LogLimit:
    """At most so many lines in an interval, which begins with its first line."""

    __slots__ = ("_admitted", "_interval_s", "_lines_max", "_refused", "_until")

    def __init__(self, lines_max: int, interval_s: float) -> None:
        """Admit `lines_max` lines in each `interval_s` seconds."""
        self._lines_max = lines_max
        self._interval_s = interval_s
        self._until = 0.0
        self._admitted = 0
        self._refused = 0

    def admit(self, now: float) -> bool:
        """Return whether a line may go at `now`, in seconds of a monotonic clock; else count it."""
        if now >= self._until:
            self._until = now + self._interval_s
            self._admitted = 0
        if self._admitted < self._lines_max:
            self._admitted += 1
            return True
        self._refused += 1
        return False

    def take_refused(self, now: float, is_last: bool = False) -> int:
        """Return how many were refused, and forget it, when the interval is over or this `is_last`.

        0 before that, and when none were.
        """
        if not self._refused or (now < self._until and not is_last):
            return 0
        refused, self._refused = self._refused, 0
        return refused
