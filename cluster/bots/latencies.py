"""Round-trip times of a run, kept in a histogram of bounded size.

The hot path only appends to a list; `fold` puts what came together into the histogram, a few
times a second.
"""

from collections import Counter
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

__all__ = ["Latencies", "LatencySummary"]

_HIGHEST_US = 3_600_000_000
"""An hour; what takes longer counts as that."""

_SIGNIFICANT_DIGITS = 3


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

    __slots__ = ("_histogram", "pending")

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _HIGHEST_US, _SIGNIFICANT_DIGITS)
        self.pending: list[int] = []
        """Times that were not folded yet; the hot path appends here."""

    def fold(self) -> None:
        """Move `pending` into the histogram."""
        record = self._histogram.record_value
        for micros, count in Counter([nanos // 1_000 for nanos in self.pending]).items():
            record(min(max(micros, 1), _HIGHEST_US), count)
        self.pending.clear()

    def summary(self) -> LatencySummary:
        """Return the percentiles of all that was collected."""
        self.fold()
        histogram = self._histogram
        if not histogram.get_total_count():
            return LatencySummary(0, 0, 0, 0, 0)
        at = histogram.get_value_at_percentile
        return LatencySummary(
            int(at(50.0)),
            int(at(90.0)),
            int(at(99.0)),
            int(at(99.9)),
            int(histogram.get_max_value()),
        )
