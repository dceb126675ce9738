"""Broadcasts across nodes: one copy for each node, which sends it to all its sessions."""

from collections import deque
from typing import TYPE_CHECKING

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE, FanOut
from cluster.gateway.links.links import Delivery
from cluster.gateway.node_traffic import NodeTraffic
from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject

if TYPE_CHECKING:
    from cluster.gateway.session_table import SessionTable

__all__ = ["BROADCAST", "NodeBroadcasts"]

BROADCAST = 1
"""Complete packets for every session of the node."""
_KIND = bytes([BROADCAST])


class NodeBroadcasts(IocpObject):
    """Gives broadcasts to the other nodes, and carries out theirs, slice by slice (`Topic`).

    What is delivered is settled once it is in the queues of all sessions it is for.
    """

    def __init__(
        self, traffic: NodeTraffic, core: IocpCore, table: "SessionTable", counters: Counters
    ) -> None:
        self.handle = None
        self._traffic = traffic
        self._core = core
        self._sessions = table.sessions
        self._counters = counters
        self._waiting: deque[tuple[Delivery, bytes]] = deque()
        self._fan_out = FanOut(counters)
        self._event = IocpEvent(EventType.POST)
        traffic.register([BROADCAST], self)

    def broadcast(self, packets: bytes) -> None:
        """Send complete packets to every session of every other node."""
        self._traffic.send_all(_KIND + packets)

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Queue a broadcast of another node."""
        self._waiting.append((delivery, payload[1:]))
        self._come_back()

    def settled(self, node: int, payload: bytes) -> None:
        """Broadcasts that have arrived concern nobody any more."""

    def undelivered(self, node: int, payload: bytes) -> None:
        """A broadcast to a node that has begun anew had no one left to reach."""

    def linked(self, node: int, is_new_life: bool) -> None:
        """Nothing depends on it."""

    def lost(self, node: int) -> None:
        """Nothing depends on it."""

    def removed(self, node: int) -> None:
        """Nothing depends on it."""

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Go on with what was delivered, one slice at a time."""
        budget = FAN_OUT_SLICE
        fan_out = self._fan_out
        while self._waiting and budget > 0:
            delivery, packets = self._waiting[0]
            if not fan_out.is_active:
                self._counters.add("broadcasts_of_other_nodes")
                fan_out.begin(packets, list(self._sessions.values()))
            budget = fan_out.advance(budget)
            if not fan_out.is_active:
                self._waiting.popleft()
                self._traffic.settle(delivery)
        if self._waiting:
            self._come_back()

    def _come_back(self) -> None:
        if self._event.owner is None:
            self._event.owner = self
            self._core.post(self._event)
