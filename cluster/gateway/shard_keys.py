"""What the worker of a shard knows of who owns keys, and what it is told of changes.

The change is a record in the shard's log, in its place: a handler that runs behind it knows it, and
whatever another node has told by the new list comes behind it. One such record of a lane is
uncommitted at most; of the changes that come meanwhile the last one follows.
"""

from collections.abc import Callable

from cluster.gateway.shard_tells import TellOwner
from cluster.shared.key_records import KeyOwners, pack_keys, read_keys
from cluster.shared.lane import GatewayLane
from cluster.shared.records import KEYS, RECORD_BYTES
from cluster.shared.shard_ids import ShardId

__all__ = ["ShardKeys"]


class ShardKeys:
    """Who owns keys, as one shard is told. For the dispatching thread."""

    __slots__ = ("_in_lane", "_known", "_lane", "_name", "_told", "present")

    def __init__(self, name: ShardId, lane: GatewayLane) -> None:
        self.present: Callable[[], KeyOwners] = lambda: KeyOwners((name.node,))
        """Says how it is now."""
        self._name = name
        self._lane = lane
        self._known: KeyOwners | None = None  # as of the commit; None before the first grant
        self._told: KeyOwners | None = None  # what the log says at its end
        self._in_lane = False

    def changed(self) -> None:
        """Tell the worker of a change, if it thinks otherwise.

        A shard that never had a worker is told by its grant.
        """
        if self._known is None or self._in_lane:
            return
        keys = self.present()
        if keys == self._told:
            return
        self._told = keys
        self._in_lane = True
        owner = TellOwner(self._name, self._name.node, 0)
        self._lane.append(KEYS, 0, pack_keys(keys), 0, owner)

    def freed(self, record: bytes) -> None:
        """A `keys` record is committed."""
        self._known = read_keys(record[RECORD_BYTES:])
        self._in_lane = False
        self.changed()

    def replay(self) -> KeyOwners:
        """Return what a worker that begins has to know, as of the commit."""
        if self._known is None:
            self._known = self._told = self.present()
        return self._known
