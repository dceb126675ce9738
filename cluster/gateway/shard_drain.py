"""What the worker of a shard is told of a drain, if its application lets sessions go by itself.

It is a record in the shard's log, in its place, and again in that of each worker that takes the
shard over while sessions are left. One such record of a lane is uncommitted at most, or its call
deferred: that call is the successor's, and there is no other, or each worker that dies of it would
leave one more.
"""

from collections.abc import Callable

from cluster.gateway.deferred import Deferred
from cluster.gateway.shard_tells import TellOwner
from cluster.shared.drain_records import pack_drain
from cluster.shared.lane import GatewayLane
from cluster.shared.records import DRAIN
from cluster.shared.shard_ids import ShardId

__all__ = ["ShardDrain"]


class ShardDrain:
    """The drain of one shard's sessions. For the dispatching thread."""

    __slots__ = (
        "_deferred",
        "_in_lane",
        "_lane",
        "_name",
        "_now",
        "_owner",
        "_until",
        "keeps_sessions",
    )

    def __init__(
        self, name: ShardId, lane: GatewayLane, deferred: Deferred, now: Callable[[], float]
    ) -> None:
        """Tell by `lane`, whose deferred calls are `deferred`; `now` gives the core's time."""
        self.keeps_sessions = False
        """Whether the application lets its sessions go by itself, as the shard's worker, or the
        last one that it had, has declared."""
        self._name = name
        self._lane = lane
        self._deferred = deferred
        self._now = now
        self._until: float | None = None
        self._in_lane = False
        self._owner = TellOwner(name, name.node, 0)
        """That of the last record."""

    @property
    def is_deferred(self) -> bool:
        """Whether the worker's call about it goes on in a coroutine."""
        return self._owner.is_deferred

    def begin(self, until: float) -> None:
        """Let the application have its sessions up to `until`."""
        self._until = until
        self._tell()

    def learn(self, keeps_sessions: bool) -> None:
        """A worker begins, which declares that."""
        self.keeps_sessions = keeps_sessions
        self._tell()

    def freed(self) -> None:
        """A `drain` record is committed."""
        self._in_lane = False

    def end(self) -> None:
        """Tell nobody any more: the sessions are ended."""
        self._until = None

    def _tell(self) -> None:
        if self._until is None or not self.keeps_sessions or self._in_lane:
            return
        payload = pack_drain(max(0.0, self._until - self._now()))
        if self.is_deferred:
            self._deferred.renew(self._owner, payload)
            return
        self._in_lane = True
        self._owner = TellOwner(self._name, self._name.node, 0)
        self._lane.append(DRAIN, 0, payload, 0, self._owner)
