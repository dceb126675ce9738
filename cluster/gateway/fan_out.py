"""The way of packets to many sessions: copied once, in slices, so that others get their turn.

The receivers are those of the moment in which it begins. One that has ended meanwhile is passed
over, and one whose queue overflows is aborted alone.
"""

from collections.abc import Sequence

from cluster.gateway.counters import Counters
from cluster.gateway.session import GatewaySession
from cluster.iocp.session_fan_out import send_now_to_each

__all__ = ["FAN_OUT_SLICE", "FanOut"]

FAN_OUT_SLICE = 256
"""Receivers that are served before others get their turn: about 1 ms."""


class FanOut:
    """One fan-out at a time. For the dispatching thread."""

    __slots__ = ("_counters", "_data", "_done", "_targets")

    def __init__(self, counters: Counters) -> None:
        """Count in `counters` what has been sent."""
        self._counters = counters
        self._data = b""
        self._targets: Sequence[GatewaySession] | None = None
        self._done = 0

    @property
    def is_active(self) -> bool:
        """Whether it is not at its end; `advance` goes on with it."""
        return self._targets is not None

    def begin(self, data: bytes, targets: Sequence[GatewaySession]) -> None:
        """Send `data` to each of `targets`, which nobody changes any more. Nothing is sent yet."""
        assert self._targets is None
        self._data = data
        self._targets = targets
        self._done = 0

    def advance(self, budget: int) -> int:
        """Serve at most `budget` of the receivers, at least one; return what is left of it.

        It is at its end if anything is left; it may be also if nothing is, or less than nothing.
        """
        targets, data, first = self._targets, self._data, self._done
        assert targets is not None
        assert budget > 0
        counters = self._counters
        self._done = end = min(first + budget, len(targets))
        sends = send_now_to_each(targets[first:end], data)
        counters.sends += sends
        counters.bytes_sent += sends * len(data)
        budget -= end - first
        if end == len(targets):
            self.abandon()
            budget -= 1  # a fan-out costs something even where nobody hears it
        return budget

    def abandon(self) -> None:
        """Forget what is in hand."""
        self._targets = None
        self._data = b""
