"""What goes between nodes, and what becomes of it here.

A record of a link begins with one byte that says what it is. What is delivered is settled once it
has had its effect on this node's sessions.
"""

from collections import deque
from typing import TYPE_CHECKING

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE, FanOut
from cluster.gateway.links.links import Delivery, Links
from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject

if TYPE_CHECKING:
    from cluster.gateway.session_table import SessionTable

__all__ = ["NodeTraffic"]

BROADCAST = b"\x01"
"""Complete packets for every session of the node."""


class NodeTraffic(IocpObject):
    """Gives records to the links, and carries out those of others. For the dispatching thread.

    Bounded by the senders: what a node has not settled waits in the log of whoever sent it.
    """

    def __init__(self, core: IocpCore, table: "SessionTable", counters: Counters) -> None:
        self.handle = None
        self.links: Links | None = None
        """Where this node's records go; None while it stands alone."""
        self._core = core
        self._sessions = table.sessions
        self._counters = counters
        self._waiting: deque[tuple[Delivery, bytes]] = deque()
        self._fan_out = FanOut(counters)
        self._event = IocpEvent(EventType.POST)

    # -- to other nodes ----------------------------------------------------------------------------

    def broadcast(self, packets: bytes) -> None:
        """Send complete packets to every session of every other node."""
        if self.links is not None:
            self.links.send_all(BROADCAST + packets)

    @property
    def is_told(self) -> bool:
        """Whether the nodes that can be reached have settled all that was for them."""
        return self.links is None or self.links.is_told

    # -- from other nodes --------------------------------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record (`LinkUser`)."""
        if payload[:1] == BROADCAST:
            self._waiting.append((delivery, payload[1:]))
            self._come_back()
        else:
            self._counters.add("links_unknown_records")
            self._settle(delivery)

    def settled(self, node: int, payloads: list[bytes]) -> None:
        """Broadcasts that have arrived concern nobody any more (`LinkUser`)."""

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        """Broadcasts to a node that has begun anew had no one left to reach (`LinkUser`)."""

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
                self._settle(delivery)
        if self._waiting:
            self._come_back()

    def _settle(self, delivery: Delivery) -> None:
        if self.links is not None:
            self.links.settle(delivery)

    def _come_back(self) -> None:
        if self._event.owner is None:
            self._event.owner = self
            self._core.post(self._event)
