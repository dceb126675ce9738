"""What a successor is told of the sessions of its shard, put together some at a time.

A shard may have tens of thousands, of each of which something is to be looked up in memory that no
cache holds any more: a microsecond each, in which the packets of all other shards would wait. The
shard is vacant meanwhile, so nothing is committed, and each session is as far as before whatever
comes for it: what its `next_sequence` gains, the log gains as well.
"""

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from cluster.shared.collector import no_collections
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.records import PACKETS
from cluster.shared.takeover import ReplayedSession

if TYPE_CHECKING:
    from cluster.gateway.succession import Succession

__all__ = ["Replay"]


class Replay:
    """The sessions of a vacant shard as of its commit. For the dispatching thread."""

    __slots__ = ("_committed", "_left", "_log", "_records_seen", "_sessions", "_succession", "told")

    def __init__(self, succession: "Succession", log: InboundLog) -> None:
        """Tell of every session whose opening is committed in `log` and whose end is not."""
        self._succession = succession
        self._log = log
        self._committed = log.committed
        self._left = Counter(succession.deferred.packet_counts())
        """How many packets of a session have been received and are not committed."""
        self._records_seen = 0
        self._sessions = iter(succession.sessions())
        self.told: list[ReplayedSession] = []
        """Those told of so far, in the order of their opening."""

    def advance(self, sessions_max: int) -> bool:
        """Tell of at most so many more; return whether all are told of."""
        assert self._log.committed == self._committed, "a vacant shard commits nothing"
        self._count_packets()
        portion = list(islice(self._sessions, sessions_max))
        with no_collections():
            self.told += self._succession.tell_of(portion, self._left)
        return len(portion) < sessions_max

    def _count_packets(self) -> None:
        """Count those that have come since the last portion."""
        done = 0 if self._records_seen else self._committed.packet_index  # of the first record
        for kind, session, _, packet_count, _ in islice(
            self._log.uncommitted, self._records_seen, None
        ):
            self._records_seen += 1
            if kind == PACKETS:
                self._left[session.id] += packet_count - done
            done = 0
