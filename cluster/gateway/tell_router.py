"""Takes messages from shard to shard: within the node at once, to other nodes by `NodeTells`."""

from collections.abc import Sequence

from cluster.gateway.counters import Counters
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
        self, shards: Sequence[Shard], traffic: NodeTraffic, core: IocpCore, counters: Counters
    ) -> None:
        """Carry what `shards` tell, and what other nodes tell them by `traffic`."""
        self._shards = shards
        self._traffic = traffic
        self._node = traffic.node
        self._counters = counters
        self._nodes = NodeTells(traffic, core, shards, self.deliver, counters)
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

    def knows(self, tell: Tell) -> bool:
        if tell.node == self._node:
            return tell.shard == BY_KEY or tell.shard < len(self._shards)
        return self._nodes.knows(tell.node)

    def carry(self, sender: ShardId, told: list[ToldTell]) -> None:
        for_others: dict[int, list[ToldTell]] = {}
        for each in told:
            tell = each.tell
            self._counters.add("tells")
            if tell.purpose is Purpose.ASK:
                self._counters.add("asks")
            if tell.node == self._node:
                self.deliver(tell, TellOwner(sender, self._node, each.cost))
            else:
                for_others.setdefault(tell.node, []).append(each)
        for node, each_told in for_others.items():
            self._nodes.send(node, sender.shard, each_told)

    def deliver(self, tell: Tell, from_: TellOwner) -> bool:
        """Give a message to the shard of this node that it is for; False if there is none."""
        index = tell.shard
        if index == BY_KEY:
            index = owner(tell.key, self._names).shard
        if index >= len(self._shards):
            return False
        self._shards[index].tells.deliver(tell, from_)
        return True

    def handled(self, owner: TellOwner) -> None:
        node, index = owner.sender
        if node == self._node:
            self._shards[index].tells.given_back(self._node, owner.cost)
        else:
            self._nodes.handled(node, owner.number)

    def check_invariants(self) -> None:
        """Raise AssertionError unless what is on its way is in order."""
        self._nodes.check_invariants()
