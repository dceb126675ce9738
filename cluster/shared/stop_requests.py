"""Tells the second request to end a process from the first one that comes twice.

One Ctrl-C may arrive as several signals: the terminal sends it to the whole group, and a parent in
that group forwards its own. A second request ends a process at once, so it must be meant.
"""

__all__ = ["SAME_REQUEST_S", "StopRequests"]

SAME_REQUEST_S = 0.3
"""Signals that come within this time of a request belong to it. Forwarded ones take milliseconds,
on a busy machine some tens; nobody who waits for an end asks again so soon."""


class StopRequests:
    """Counts requests to end. Times are seconds of any steady clock."""

    __slots__ = ("_counted_at", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counted_at = float("-inf")

    def add(self, now: float) -> bool:
        """A signal has come; return whether it is a request of its own."""
        if now - self._counted_at < SAME_REQUEST_S:
            return False
        self._counted_at = now
        self.count += 1
        return True
