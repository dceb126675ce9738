"""Round-trip times of a run, kept in a histogram of bounded size.

The hot path only appends to a list; `fold` counts what came together, a few times a second.
"""

from collections import Counter
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

__all__ = ["Latencies", "LatencySummary"]

_HIGHEST_US = 3_600_000_000
"""An hour; what takes longer counts as that."""

_SIGNIFICANT_DIGITS = 3

_DISTINCT_MAX = 100_000
"""Distinct times that are counted before they go into the histogram."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles in microseconds; all 0 when nothing was measured."""

    p50: int
    p90: int
    p99: int
    p999: int
    max: int


class Latencies:
    """Collects round-trip times in nanoseconds, tells percentiles in microseconds."""

    __slots__ = ("_counts", "_histogram", "pending")

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _HIGHEST_US, _SIGNIFICANT_DIGITS)
        self._counts: Counter[int] = Counter()
        self.pending: list[int] = []
        """Times that were not folded yet; the hot path appends here."""

    def fold(self) -> None:
        """Count what is pending, in microseconds."""
        # Counting is done by the interpreter, recording by Python code for each distinct value.
        self._counts.update([nanos // 1_000 for nanos in self.pending])
        self.pending.clear()
        if len(self._counts) > _DISTINCT_MAX:
            self._record()

    def summary(self) -> LatencySummary:
        """Return the percentiles of all that was collected."""
        self.fold()
        self._record()
        histogram = self._histogram
        if not histogram.get_total_count():
            return LatencySummary(0, 0, 0, 0, 0)
        at = histogram.get_value_at_percentile
        return LatencySummary(
            p50=int(at(50.0)),
            p90=int(at(90.0)),
            p99=int(at(99.0)),
            p999=int(at(99.9)),
            max=int(histogram.get_max_value()),
        )

    def _record(self) -> None:
        for micros, count in self._counts.items():
            self._histogram.record_value(min(max(micros, 1), _HIGHEST_US), count)
        self._counts.clear()
