"""Broadcasts across nodes: one copy for each node, which sends it to all its sessions."""

from collections.abc import Mapping

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.node_fan_outs import NodeFanOuts
from cluster.gateway.node_traffic import NodeTraffic, Topic
from cluster.gateway.session import GatewaySession

__all__ = ["BROADCAST", "NodeBroadcasts"]

BROADCAST = 1
"""Complete packets for every session of the node."""
_KIND = bytes([BROADCAST])


class NodeBroadcasts(Topic):
    """Gives broadcasts to the other nodes, and carries out theirs."""

    def __init__(
        self,
        traffic: NodeTraffic,
        fan_outs: NodeFanOuts,
        sessions: Mapping[int, GatewaySession],
        counters: Counters,
    ) -> None:
        """Carry broadcasts of other nodes out on `sessions`, which others change."""
        self._traffic = traffic
        self._fan_outs = fan_outs
        self._sessions = sessions
        self._counters = counters
        traffic.register([BROADCAST], self)

    def broadcast(self, packets: bytes) -> None:
        """Send complete packets to every session of every other node."""
        self._traffic.send_all(_KIND + packets)

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Have a broadcast of another node carried out."""
        self._counters.add("broadcasts_of_other_nodes")
        self._fan_outs.take(delivery, payload[1:], lambda: list(self._sessions.values()))
