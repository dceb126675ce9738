"""Clients that speak something else than packets, as what they send first shows.

Read as a header their bytes may be the beginning of a packet that never becomes complete, so all
that happens is a `packet_timeout`, much later. Here the operator is told why. Nothing is refused by
this: a session ends by the rules for packets alone.
"""

import logging
import re

from cluster.gateway.counters import Counters
from cluster.iocp import NetAddress

__all__ = ["OtherProtocols", "name_protocol"]

logger = logging.getLogger("cluster.gateway")

_LOOKED_AT_MAX = 2_048
"""Bytes of the first recv that are looked at."""

_BROWSERS = "browsers connect through `cluster websocket`, and health checks open a TCP connection"

_KINDS = (
    ("HTTP", re.compile(rb"[A-Z]{3,8} [^\s]+ HTTP/[1-3]"), _BROWSERS),
    (
        "TLS",
        re.compile(rb"\x16\x03[\x00-\x04]..\x01", re.DOTALL),
        "TLS ends in a load balancer in front of the node, or at `cluster websocket`",
    ),
    (
        "the PROXY protocol",
        re.compile(rb"PROXY |\r\n\r\n\x00\r\nQUIT\n"),
        "name the load balancer in gateway.proxies",
    ),
)


def name_protocol(data: bytes) -> str | None:
    """Return what `data`, the first bytes of a client, is the beginning of; None for no idea."""
    return next((name for name, pattern, _ in _KINDS if pattern.match(data)), None)


class OtherProtocols:
    """Those that have come to one gateway. For the dispatching thread."""

    __slots__ = ("_counters", "_told")

    def __init__(self, counters: Counters) -> None:
        """Have seen none yet."""
        self._counters = counters
        self._told: set[str] = set()

    def look(self, address: NetAddress | None, data: bytes | memoryview) -> None:
        """Look at `data`, the first that a client at `address` has sent: no whole packet.

        What is known for something else is counted, and logged the first time for each protocol.
        """
        name = name_protocol(bytes(data[:_LOOKED_AT_MAX]))
        if name is None:
            return
        self._counters.add("sessions_of_other_protocols")
        if name in self._told:
            return
        self._told.add(name)
        remedy = next(remedy for kind, _, remedy in _KINDS if kind == name)
        logger.warning(
            "%s sends %s, but clients of this address send packets, each with a header of size "
            "and id (docs/clients.md); %s. Said once; `cluster status` counts "
            "sessions_of_other_protocols",
            address,
            name,
            remedy,
        )
