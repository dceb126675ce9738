"""Who has called and has not proved itself yet, and who was not let in.

Whoever finds the private listener may be here, so it costs little: a few at a time, of whom the
oldest makes room, and a few lines in the log, however many are refused. The counters have all.
"""

import logging
from collections.abc import Callable

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkRefusal
from cluster.gateway.links.node_session import NodeSession
from cluster.shared.limited_log import LimitedLog

__all__ = ["UNPROVED_MAX", "Strangers"]

logger = logging.getLogger("cluster.gateway")

UNPROVED_MAX = 64
"""Callers that may be in their handshake at a time; one more takes the place of the oldest."""

REFUSALS_LOGGED_EVERY_S = 10.0


class Strangers:
    """The callers in their handshake, in order of arrival. For the dispatching thread."""

    def __init__(self, counters: Counters, clock: Callable[[], float]) -> None:
        """Know nobody yet. `clock` gives seconds, of the core."""
        self._counters = counters
        self._unproved: dict[NodeSession, None] = {}
        self._arrivals = 0
        self._refused = LimitedLog(logger, clock, 1, REFUSALS_LOGGED_EVERY_S)

    def knocked(self, session: NodeSession) -> None:
        """Somebody has connected to the private listener."""
        self._arrivals += 1
        session.arrival = self._arrivals
        self._unproved[session] = None
        if len(self._unproved) > UNPROVED_MAX:
            oldest = next(iter(self._unproved))
            del self._unproved[oldest]
            oldest.refuse(LinkRefusal.CROWDED, f"{UNPROVED_MAX} others knocked since")

    def forget(self, session: NodeSession) -> bool:
        """`session` has proved itself, or has ended; return whether it was a caller till now."""
        if session not in self._unproved:
            return False
        del self._unproved[session]
        return True

    def refused(self, session: NodeSession, refusal: LinkRefusal, reason: str) -> None:
        """Count a peer that was not let in, whoever called; the log hears of a few."""
        self._counters.add(f"links_refused_{refusal}")
        self._refused.warn("no link with %s: %s", session.address, reason)
