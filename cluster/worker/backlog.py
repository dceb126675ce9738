"""What has come on the lane and is not handled yet, because the worker could not handle it then.

A worker that waits goes on receiving: what comes tells how far the gateway is, which is what makes
room, and a worker that has received is not behind. What was received waits here for its turn, and
nothing is received past it.
"""

from collections import deque
from collections.abc import Callable

from cluster.shared.lane import InboundChunk, WorkerLane

__all__ = ["Backlog"]


class Backlog:
    """The chunks that wait, in their order. For the loop's thread."""

    __slots__ = ("_hear", "_lane", "chunks")

    def __init__(self, lane: WorkerLane) -> None:
        self._lane = lane
        self._hear: Callable[[InboundChunk], None] | None = None
        self.chunks: deque[InboundChunk] = deque()
        """For the loop, which takes the first; while there is one it receives nothing."""

    def take_in(self) -> None:
        """Receive all that has come. The inbound capacity of the lane is a bound for that."""
        while (chunk := self._lane.receive()) is not None:
            self.chunks.append(chunk)
            if self._hear is not None:
                self._hear(chunk)

    def begin_to_hear(self, in_hand: InboundChunk, hear: Callable[[InboundChunk], None]) -> None:
        """Give `hear` the chunk in hand, all that wait, and those that come, before their turn."""
        self._hear = hear
        for chunk in (in_hand, *self.chunks):
            hear(chunk)

    def cease_to_hear(self) -> None:
        """What comes from now on is heard in its turn only."""
        self._hear = None
