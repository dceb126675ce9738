"""Takes messages from shard to shard: within the node at once, to other nodes by `NodeTells`.

Those by key that come to a node that does not own the key go on by `MovedTells`.
"""

import sys
from collections.abc import Sequence

from cluster.gateway.counters import Counters
from cluster.gateway.moved_tells import MovedTell, MovedTells
from cluster.gateway.node_tells import NodeTells
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.shard import Shard
from cluster.gateway.shard_tells import TellOwner, ToldTell
from cluster.iocp import IocpCore
from cluster.shared.key_records import KeyOwners
from cluster.shared.rendezvous import owner
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import BY_KEY, Purpose, Tell

__all__ = ["TellRouter"]


class TellRouter:
    """The `Carrier` of all shards of a node. For the dispatching thread."""

    def __init__(
        self,
        shards: Sequence[Shard],
        traffic: NodeTraffic,
        core: IocpCore,
        counters: Counters,
        taken_bytes_max: int,
    ) -> None:
        """Carry what `shards` tell, and what other nodes tell them by `traffic`.

        Of what each of those has told, `taken_bytes_max` may wait to be handled.
        """
        self._shards = shards
        self._traffic = traffic
        self._node = traffic.node
        self._counters = counters
        self._is_ending = False
        self._moved = MovedTells(
            core,
            self._owner_of,
            self._send_moved,
            self._room_for,
            lambda moved: shards[moved.shard].tells.undelivered(moved.told),
            counters,
        )
        self._nodes = NodeTells(
            traffic,
            core,
            shards,
            self.deliver,
            self._moved.came_back,
            self._began_anew,
            counters,
            taken_bytes_max,
        )
        self._names = [ShardId(self._node, shard.index) for shard in shards]
        for shard in shards:
            shard.tells.carrier = self
            shard.keys.present = self._present_keys
        traffic.on_members(lambda _: self._keys_changed())

    def _present_keys(self) -> KeyOwners:
        """Return who owns keys now, for a worker that may tell all of these nodes from then on."""
        members = self._traffic.members
        keys = KeyOwners(members.nodes, members.others)
        self._nodes.learn(keys.nodes)
        return keys

    def _keys_changed(self) -> None:
        for shard in self._shards:
            shard.keys.changed()
        self._moved.owners_changed()

    def _began_anew(self, node: int) -> None:
        for shard in self._shards:
            shard.keys.began_anew(node)

    def _owner_of(self, key: bytes) -> int | None:
        """Return which node owns a key as of now, None if this one cannot know."""
        owners = self._traffic.members.nodes
        return owner(key, owners) if owners else None

    def knows(self, tell: Tell) -> bool:
        if tell.node == self._node:
            return tell.shard == BY_KEY or tell.shard < len(self._shards)
        return self._nodes.knows(tell.node)

    def carry(self, sender: ShardId, told: list[ToldTell]) -> None:
        for_others: dict[int, list[MovedTell]] = {}
        owners = self._traffic.members.nodes
        for each in told:
            tell = each.tell
            self._counters.add("tells")
            if tell.purpose is Purpose.ASK:
                self._counters.add("asks")
            moved = MovedTell(sender.shard, each)
            if tell.key and (tell.node not in owners or self._moved.is_delayed(tell.node)):
                self._send_each(for_others)  # told before, maybe for the same key
                self._moved.route([moved])  # the worker is yet to hear of the owners there are
            elif tell.node == self._node:
                self._deliver_here(moved)
            else:
                for_others.setdefault(tell.node, []).append(moved)
        self._send_each(for_others)

    def _send_each(self, told: dict[int, list[MovedTell]]) -> None:
        for node, each_told in told.items():
            self._nodes.send(node, each_told)
        told.clear()

    def deliver(self, told: ToldTell, from_: TellOwner) -> bool:
        """Give a message to the shard of this node that it is for; False if there is none."""
        index = told.tell.shard
        if index == BY_KEY:
            index = owner(told.tell.key, self._names).shard
        if index >= len(self._shards):
            return False
        self._shards[index].tells.deliver(told, from_)
        return True

    def _deliver_here(self, moved: MovedTell) -> None:
        """Give a message of this node to one of its shards."""
        sender, told = ShardId(self._node, moved.shard), moved.told
        self.deliver(told, TellOwner(sender, told.tell.node, told.cost))

    def handled(self, owner: TellOwner) -> None:
        node, index = owner.sender
        if node == self._node:
            self._shards[index].tells.given_back(owner.node, owner.cost)
        else:
            self._nodes.handled(node, owner.number, owner.cost)

    # -- keys that have moved ----------------------------------------------------------------------

    def moved(self, told: ToldTell, owner: TellOwner) -> None:
        node, index = owner.sender
        if node == self._node:
            self._moved.came_back(node, [MovedTell(index, told)])
        else:
            self._nodes.moved(owner)

    def _room_for(self, node: int) -> int:
        if node == self._node or (self._is_ending and not self._traffic.is_linked(node)):
            return sys.maxsize  # a node that ends does not wait for one that may never come back
        return self._nodes.room_for_others(node)

    def _send_moved(self, node: int, moved: list[MovedTell]) -> None:
        if node == self._node:
            for each in moved:
                self._deliver_here(each)
        else:
            self._nodes.send(node, moved)

    # -- the end -----------------------------------------------------------------------------------

    @property
    def moved_count(self) -> int:
        """Messages of this node that wait here for the owner of their key."""
        return self._moved.count

    @property
    def untold_count(self) -> int:
        """Records for nodes with a connection that wait for room in the logs of their links."""
        return self._nodes.untold_count

    def end(self) -> None:
        """The node drains, and takes no messages any more: none waits for an owner to be known."""
        self._is_ending = True
        self._moved.end()

    def check_invariants(self) -> None:
        """Raise AssertionError unless what is on its way is in order."""
        self._nodes.check_invariants()
