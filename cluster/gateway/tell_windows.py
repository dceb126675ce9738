"""How much one shard has on its way to each node, and what its worker knows of that.

Whatever is told counts from its commit until its end: handled for good, or known to be undelivered.
Then it is given back, and the worker is told so, by a `credit` record, once enough of it has
gathered. No I/O, no clock.
"""

import sys

from cluster.shared.lane import LaneViolation
from cluster.shared.takeover import TellState
from cluster.shared.tell_records import Purpose, credit_step, window_for

__all__ = ["TellWindows"]


CREDITS_MAX = 65_536
"""Credit records of a node in the lane: a coroutine that tells without an end, in a worker that
takes nothing more, fills no memory."""


class _Window:
    """Sums since the gateway began, in bytes as `tell_cost` counts them."""

    __slots__ = (
        "committed",
        "in_lane",
        "offered",
        "pending",
        "position",
        "returned",
        "told",
    )

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
        self.in_lane = 0
        """How many credit records are there: one that the worker has not heard, at most, and
        CREDITS_MAX in all."""
        self.position = 0
        """Where the last of them is."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way, and no worker will hear any more of what was."""
        return self.told + self.pending == self.returned and not self.in_lane


class TellWindows:
    """The windows of one shard, one for each node that it has told something.

    One is forgotten when a worker begins and nothing of it is left: only then do both sides begin
    anew. What a call costs does not depend on how many there are.
    """

    __slots__ = ("_heard", "_held", "_in_hand", "_windows", "window_bytes")

    def __init__(self, window_bytes: int) -> None:
        """Let each be of `window_bytes`, and as much again for answers."""
        self.window_bytes = window_bytes
        self._heard = 0
        self._windows: dict[int, _Window] = {}
        self._in_hand: list[_Window] = []
        """Those that the batch in hand has told something."""
        self._held: dict[int, _Window] = {}
        """By node, those with something to offer that wait until the worker has heard the last."""

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
        if not window.pending:
            self._in_hand.append(window)
        window.pending += cost

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        for window in self._in_hand:
            window.pending = 0
        self._in_hand.clear()

    def commit(self) -> None:
        """The batch in hand is committed."""
        for window in self._in_hand:
            window.told += window.pending
            window.pending = 0
        self._in_hand.clear()

    # -- what comes back ---------------------------------------------------------------------------

    def give_back(self, node: int, cost: int) -> int | None:
        """What counted `cost` has come to its end; return the sum to offer, None for not yet."""
        window = self._windows[node]
        window.returned += cost
        assert window.returned <= window.told
        return self._offer(node, window)

    def offered(self, node: int, position: int) -> None:
        """What was offered last is in the lane, at `position`."""
        self._windows[node].position = position

    def credit_committed(self, node: int, total: int) -> int | None:
        """The worker knows of `total`, for good; return the next sum to offer, or None."""
        window = self._windows[node]
        window.in_lane -= 1
        window.committed = total
        return self._offer(node, window)

    def heard(self, position: int) -> list[tuple[int, int]]:
        """The worker has heard all up to `position`; return the nodes and sums to offer now."""
        self._heard = position
        held, self._held = self._held, {}
        sums = [(node, self._offer(node, window)) for node, window in held.items()]
        return [(node, total) for node, total in sums if total is not None]

    def _offer(self, node: int, window: _Window) -> int | None:
        if window.returned - window.offered < credit_step(self.window_bytes):
            return None
        if window.in_lane and window.position > self._heard:
            self._held[node] = window
            return None
        if window.in_lane == CREDITS_MAX:
            return None
        window.in_lane += 1
        window.position = sys.maxsize
        window.offered = window.returned
        return window.offered

    # -- the successor and the status --------------------------------------------------------------

    def replay(self) -> list[TellState]:
        """Return what a successor has to know, as of the commit; what it has not is forgotten."""
        for node in [node for node, window in self._windows.items() if window.is_empty]:
            del self._windows[node]
            self._held.pop(node, None)
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
            assert window.in_lane or window.committed == window.offered
            on_the_way = window.told + window.pending - window.offered
            assert 0 <= on_the_way <= window_for(Purpose.REPLY, self.window_bytes)
