"""How much one shard has on its way to each node, and what its worker knows of that.

Whatever is told counts from its commit until its end: handled for good, or known to be undelivered.
Then it is given back, and the worker is told so, by a `credit` record, once enough of it has
gathered. No I/O, no clock.
"""

from cluster.shared.lane import LaneViolation
from cluster.shared.takeover import TellState
from cluster.shared.tell_records import Purpose, credit_step, window_for

__all__ = ["TellWindows"]


class _Window:
    """Sums since the gateway began, in bytes as `tell_cost` counts them."""

    __slots__ = ("committed", "is_in_lane", "offered", "pending", "returned", "told")

    def __init__(self) -> None:
        self.told = 0
        """By batches that are committed."""
        self.pending = 0
        """By the batch in hand, on top."""
        self.returned = 0
        """What has come to its end."""
        self.offered = 0
        """What the last credit record says of that."""
        self.committed = 0
        """What the last one that is committed said."""
        self.is_in_lane = False


class TellWindows:
    """The windows of one shard, one for each node that it has told something."""

    __slots__ = ("_windows", "window_bytes")

    def __init__(self, window_bytes: int) -> None:
        """Let each be of `window_bytes`, and as much again for answers."""
        self.window_bytes = window_bytes
        self._windows: dict[int, _Window] = {}

    # -- the batch in hand -------------------------------------------------------------------------

    def add(self, node: int, cost: int, purpose: Purpose) -> None:
        """The batch in hand tells `node` something; LaneViolation if there was no credit for it."""
        window = self._windows.get(node)
        if window is None:
            window = self._windows[node] = _Window()
        on_the_way = window.told + window.pending - window.offered + cost
        bytes_max = window_for(purpose, self.window_bytes)
        if on_the_way > bytes_max:
            raise LaneViolation(
                f"{on_the_way} bytes of messages on their way to node {node}; {bytes_max} may be"
            )
        window.pending += cost

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        for window in self._windows.values():
            window.pending = 0

    def commit(self) -> None:
        """The batch in hand is committed."""
        for window in self._windows.values():
            window.told += window.pending
            window.pending = 0

    # -- what comes back ---------------------------------------------------------------------------

    def give_back(self, node: int, cost: int) -> int | None:
        """What counted `cost` has come to its end; return the sum to offer, None for not yet."""
        window = self._windows[node]
        window.returned += cost
        assert window.returned <= window.told
        return self._offer(window)

    def credit_committed(self, node: int) -> int | None:
        """The worker knows, for good, what was offered; return the next sum to offer, or None."""
        window = self._windows[node]
        window.is_in_lane = False
        window.committed = window.offered
        return self._offer(window)

    def _offer(self, window: _Window) -> int | None:
        due = window.returned - window.offered >= credit_step(self.window_bytes)
        if window.is_in_lane or not due:
            return None
        window.is_in_lane = True
        window.offered = window.returned
        return window.offered

    # -- the successor and the status --------------------------------------------------------------

    def replay(self) -> list[TellState]:
        """Return what a successor has to know, as of the commit."""
        return [
            TellState(node=node, told=window.told, returned=window.committed)
            for node, window in self._windows.items()
        ]

    @property
    def on_the_way_bytes(self) -> int:
        """What is on its way to all nodes."""
        return sum(window.told - window.returned for window in self._windows.values())

    def check_invariants(self) -> None:
        """Raise AssertionError unless the sums are in order."""
        for window in self._windows.values():
            assert window.committed <= window.offered <= window.returned <= window.told
            assert window.is_in_lane or window.committed == window.offered
            on_the_way = window.told + window.pending - window.offered
            assert 0 <= on_the_way <= window_for(Purpose.REPLY, self.window_bytes)
