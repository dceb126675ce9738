"""What the worker of a shard knows of who owns keys, and what it is told of changes.

The change is a record in the shard's log, in its place: a handler that runs behind it knows it, and
whatever another node has told by the new list comes behind it. One such record of a lane is
uncommitted at most; of the changes that come meanwhile the last one follows.

So the log says at each place who owns a key there, and a message by key has its place where this
node does.
"""

from collections.abc import Callable

from cluster.gateway.shard_tells import TellOwner
from cluster.shared.key_records import KeyOwners, pack_keys, read_keys
from cluster.shared.lane import GatewayLane
from cluster.shared.records import KEYS, RECORD_BYTES
from cluster.shared.rendezvous import owner
from cluster.shared.shard_ids import ShardId

__all__ = ["ShardKeys"]


class ShardKeys:
    """Who owns keys, as one shard is told. For the dispatching thread."""

    __slots__ = ("_anew", "_in_lane", "_known", "_lane", "_name", "_told", "present")

    def __init__(self, name: ShardId, lane: GatewayLane) -> None:
        self.present: Callable[[], KeyOwners] = lambda: KeyOwners((name.node,))
        """Says how it is now."""
        self._name = name
        self._lane = lane
        self._known: KeyOwners | None = None  # as of the commit; None before the first grant
        self._told: KeyOwners | None = None  # what the log says at its end
        self._in_lane = False
        self._anew: set[int] = set()  # nodes of which the worker is yet to be told that

    # -- whose a key is ----------------------------------------------------------------------------

    def owns(self, key: bytes) -> bool:
        """Whether the node owns `key` for what the log is given now."""
        return self._is_owner(self._begin().owners, key)

    def will_own(self, key: bytes) -> bool:
        """Whether the node owns `key` as of now; the log may say so further on only."""
        return self._is_owner(self.present().owners, key)

    def _is_owner(self, owners: tuple[int, ...], key: bytes) -> bool:
        node = self._name.node
        return owners == (node,) or (node in owners and owner(key, owners) == node)

    # -- what the worker is told -------------------------------------------------------------------

    def began_anew(self, node: int) -> None:
        """`node` has begun another life: if keys are its own, the worker is to hear of that."""
        if self._told is not None and node in self._told.owners:
            self._anew.add(node)
            self.changed()

    def is_to_tell(self, node: int) -> bool:
        """Whether the worker is yet to be told, further on in the log, that `node` began anew."""
        return node in self._anew

    def changed(self) -> None:
        """Tell the worker of a change, if it thinks otherwise.

        A shard that never had a worker is told by its grant.
        """
        if self._known is None or self._in_lane:
            return
        keys = self.present()
        anew = tuple(sorted(self._anew.intersection(keys.owners)))
        if keys == self._told and not anew:
            return
        self._anew.clear()
        self._told = keys
        self._in_lane = True
        told_by = TellOwner(self._name, self._name.node, 0)
        self._lane.append(KEYS, 0, pack_keys(keys, anew), 0, told_by)

    def freed(self, record: bytes) -> None:
        """A `keys` record is committed."""
        self._known = read_keys(record[RECORD_BYTES:])
        self._in_lane = False
        self.changed()

    def replay(self) -> KeyOwners:
        """Return what a worker that begins has to know, as of the commit."""
        self._begin()
        assert self._known is not None
        return self._known

    def _begin(self) -> KeyOwners:
        """Return what the log says at its end; before the first worker, what that will be told."""
        if self._told is None:
            self._known = self._told = self.present()
        return self._told
