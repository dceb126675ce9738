"""What other nodes have for many sessions here: one after the other, slice by slice.

All of it goes through one queue, so that what a sender has for the same session, to whatever it
belongs, comes in order. It is settled once it is in the queues of all whom it is for.
"""

from collections import deque
from collections.abc import Callable, Sequence

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE, FanOut
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.next_turn import NextTurn
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.session import GatewaySession
from cluster.iocp import IocpCore

__all__ = ["NodeFanOuts"]


class NodeFanOuts:
    """For the dispatching thread. Bounded by the senders, see `NodeTraffic`."""

    def __init__(self, traffic: NodeTraffic, core: IocpCore, counters: Counters) -> None:
        self._traffic = traffic
        self._waiting: deque[tuple[Delivery, bytes, Callable[[], Sequence[GatewaySession]]]] = (
            deque()
        )
        self._fan_out = FanOut(counters)
        self._next_turn = NextTurn(core, self._go_on)

    def take(
        self,
        delivery: Delivery,
        packets: bytes,
        receivers: Callable[[], Sequence[GatewaySession]],
    ) -> None:
        """Send `packets` to those whom `receivers` returns when its turn has come."""
        self._waiting.append((delivery, packets, receivers))
        self._next_turn.ask()

    def _go_on(self) -> None:
        """Go on, one slice at a time."""
        budget = FAN_OUT_SLICE
        fan_out = self._fan_out
        while self._waiting and budget > 0:
            delivery, packets, receivers = self._waiting[0]
            if not fan_out.is_active:
                fan_out.begin(packets, receivers())
            budget = fan_out.advance(budget)
            if not fan_out.is_active:
                self._waiting.popleft()
                self._traffic.settle(delivery)
        if self._waiting:
            self._next_turn.ask()
