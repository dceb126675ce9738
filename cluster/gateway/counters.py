"""What the gateway counts, for `cluster status`."""

from collections import defaultdict

__all__ = ["Counters"]


class Counters:
    """Named totals since the gateway started. `add` is for the rare; hot totals are attributes."""

    __slots__ = ("_totals", "bytes_sent", "sends")

    def __init__(self) -> None:
        self._totals: defaultdict[str, int] = defaultdict(int)
        self.sends = 0
        self.bytes_sent = 0

    def add(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the total called `name`."""
        self._totals[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all totals by name, in alphabetical order."""
        totals = dict(self._totals)
        for name in ("sends", "bytes_sent"):
            totals[name] = getattr(self, name)
        return dict(sorted(totals.items()))
