"""Which answers to binds the worker of a shard is to hear of next. No I/O, no clock.

A session has one `bound` record in the lane that the worker has not heard, so that binds, which
nothing holds back, do not fill it; meanwhile the last answer waits, in place of any before it. What
is committed was heard, and so is what a worker has heard ahead of its turn: one that takes nothing
more commits nothing either, and those who wait for the next answer may be what it is full of.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["AHEAD_MAX", "BoundAnswers"]

AHEAD_MAX = 65_536
"""Records in the lane beside the first of each session: a handler that binds without an end, in a
worker that takes nothing more, fills no memory."""


class BoundAnswers:
    """Of one shard. For the dispatching thread."""

    __slots__ = ("_ahead", "_heard", "_in_lane", "_waiting")

    def __init__(self) -> None:
        self._in_lane: dict[GatewaySession, tuple[int, int]] = {}
        """How many records, and the position of the last one."""
        self._waiting: dict[GatewaySession, bytes] = {}
        self._heard = 0
        self._ahead = 0

    @property
    def is_empty(self) -> bool:
        """Whether the worker has done all that it was to hear of."""
        return not self._in_lane and not self._waiting

    def add(self, session: "GatewaySession", answer: bytes) -> bool:
        """The worker is to hear `answer`; True if its record is to be `put` into the lane now."""
        in_lane = self._in_lane.get(session)
        if in_lane is None:
            return True
        if session not in self._waiting and in_lane[1] <= self._heard and self._ahead < AHEAD_MAX:
            return True
        self._waiting[session] = answer
        return False

    def put(self, session: "GatewaySession", position: int) -> None:
        """A record of `session` is in the lane, at `position`."""
        count, _ = self._in_lane.get(session, (0, 0))
        self._ahead += count > 0
        self._in_lane[session] = count + 1, position

    def heard(self, position: int) -> list[tuple["GatewaySession", bytes]]:
        """The worker has heard all up to `position`; return what waits no more, to be added."""
        if position == self._heard:
            return []
        self._heard = position
        ready = [each for each in self._waiting.items() if self._in_lane[each[0]][1] <= position]
        for session, _ in ready:
            del self._waiting[session]
        return ready

    def committed(self, session: "GatewaySession") -> bytes | None:
        """The first record of `session` is done; return what is to be added next, or None."""
        count, position = self._in_lane.pop(session)
        if count == 1:
            return self._waiting.pop(session, None)
        self._in_lane[session] = count - 1, position
        self._ahead -= 1
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError unless only those wait that have a record in the lane."""
        assert self._waiting.keys() <= self._in_lane.keys()
        assert self._ahead == sum(count - 1 for count, _ in self._in_lane.values())
