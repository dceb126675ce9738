"""How long what clients send waits for its commit: looked at now and then, at no cost for the rest.

A sample is the last record that one flush of the lane shows the worker. Its time runs from the
moment at which the gateway took it from the system until it is committed, in whichever life of the
worker. Samples begin also while others wait, so that a stall has as many as the time in which
something came into it; the time of a packet costs nothing unless it is one.
"""

from bisect import bisect_left
from collections import deque
from statistics import median

from cluster.shared.lane_inbound import InboundLog
from cluster.shared.node_status import COMMIT_BOUNDS_S, CommitWaits

__all__ = ["CommitTimes"]

SAMPLE_EVERY_S = 0.01
"""Samples of a shard begin this far apart at least."""

SAMPLES_MAX = 1_024
"""So many are on their way at most: behind those of a stall of ten seconds none begins."""

RECENT_S = 60.0
"""What is told as recent: samples that were committed no longer ago."""

RECENT_MAX = 1_024
RECENT_EVERY_S = RECENT_S / RECENT_MAX
"""The median is of so many of these, so far apart at least; the worst is of all, by seconds."""


class CommitTimes:
    """Those of one shard. For the dispatching thread."""

    __slots__ = (
        "_counts",
        "_next_at",
        "_recent",
        "_recent_from",
        "_samples",
        "_sum_s",
        "_worst",
        "position",
    )

    def __init__(self) -> None:
        self.position = 0
        """The record that is the oldest sample on its way; 0 while there is none."""
        self._samples: deque[tuple[int, float]] = deque()
        """Those on their way, with when each was taken from the system."""
        self._next_at = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT_MAX)
        """When samples were committed, and how long each took."""
        self._recent_from = 0.0
        """The next one that begins then goes there."""
        self._worst: deque[tuple[float, float]] = deque(maxlen=int(RECENT_S) + 1)
        """Of each second, when its last sample was committed, and how long the worst took."""
        self._counts = [0] * (len(COMMIT_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def flushed(self, log: InboundLog, arrived_at: float) -> None:
        """What is new in `log` came at `arrived_at`, by the clock in seconds."""
        if arrived_at < self._next_at or log.is_committed or len(self._samples) >= SAMPLES_MAX:
            return
        self._samples.append((log.position, arrived_at))
        self.position = self._samples[0][0]
        self._next_at = arrived_at + SAMPLE_EVERY_S

    def committed(self, position: int, now: float) -> None:
        """All before `position` is committed, with a sample or several."""
        samples = self._samples
        while samples and samples[0][0] < position:
            self._count(samples.popleft()[1], now)
        self.position = samples[0][0] if samples else 0

    def _count(self, begun_at: float, now: float) -> None:
        took_s = now - begun_at
        if begun_at >= self._recent_from:
            self._recent.append((now, took_s))
            self._recent_from = begun_at + RECENT_EVERY_S
        before_s = 0.0
        if self._worst and int(self._worst[-1][0]) == int(now):
            before_s = self._worst.pop()[1]
        self._worst.append((now, max(took_s, before_s)))
        self._counts[bisect_left(COMMIT_BOUNDS_S, took_s)] += 1
        self._sum_s += took_s

    def told(self, now: float) -> CommitWaits:
        """Return what samples say. Those on their way are among the recent ones, as long as they
        have lasted."""
        recent = [took_s for at, took_s in self._recent if at > now - RECENT_S]
        worst = [took_s for at, took_s in self._worst if at > now - RECENT_S]
        recent_from = self._recent_from
        for _, begun_at in self._samples:
            if begun_at >= recent_from:
                recent.append(now - begun_at)
                recent_from = begun_at + RECENT_EVERY_S
            worst.append(now - begun_at)
        return CommitWaits(
            median_s=round(median(recent or worst), 6) if worst else None,
            worst_s=round(max(worst), 6) if worst else None,
            counts=list(self._counts),
            sum_s=round(self._sum_s, 6),
        )
