"""Is the other end of a lane alive, and does it hear us? Decided from heartbeats, without I/O.

Heartbeats are written by the loop that does the work and carry how far each direction has
come. Silence for the whole timeout is a death. So is an end that stays behind what it was sent
and makes no progress for as long: a message lost at the tail shows in no other way.

Who looks may have been asleep itself, because the whole machine stood still, and the peer with it.
So of a time in which nobody looked, at most half the timeout counts. Whoever has one of these looks
more often than that.
"""

__all__ = ["Liveness", "beat_interval_s"]


class Liveness:
    """One peer's signs of life."""

    __slots__ = ("_behind_since", "_heard_at", "_looked_at", "_seen", "timeout_s")

    def __init__(self, timeout_s: float, now: float) -> None:
        """Call the peer lost after `timeout_s` seconds without a sign or without progress."""
        self.timeout_s = timeout_s
        self._heard_at = self._looked_at = now
        self._behind_since: float | None = None
        self._seen: tuple[int, ...] = ()

    def heard(self, now: float, progress: tuple[int, ...], is_behind: bool) -> None:
        """Take a heartbeat: how far the peer is, and whether it should be further by now."""
        self._look(now)
        self._heard_at = now
        if not is_behind or progress != self._seen:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        self._seen = progress

    def verdict(self, now: float) -> str | None:
        """Return why the peer counts as lost, or None while it does not."""
        self._look(now)
        silent_s = now - self._heard_at
        if silent_s >= self.timeout_s:
            return f"no heartbeat for {silent_s:.1f} s"
        if self._behind_since is not None and now - self._behind_since >= self.timeout_s:
            return f"records were lost on the way: no progress for {now - self._behind_since:.1f} s"
        return None

    def _look(self, now: float) -> None:
        unseen_s = now - self._looked_at
        self._looked_at = now
        asleep_s = unseen_s - self.timeout_s / 2
        if asleep_s > 0.0:
            self._heard_at += asleep_s
            if self._behind_since is not None:
                self._behind_since += asleep_s


def beat_interval_s(timeout_s: float) -> float:
    """Return how often to show a sign of life to who counts one as lost after `timeout_s`.

    So often that a few of them may be late. Once a second at least: they tell how far each is.
    """
    return min(1.0, timeout_s / 4)
