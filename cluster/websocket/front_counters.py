"""What a front counts. Written in the event loop's thread; another one may read it."""

from collections.abc import Sequence

from cluster.iocp import NetAddress

__all__ = ["ENDS", "REFUSALS", "FrontCounters"]

REFUSALS = ("full", "tls", "request", "origin", "node", "handshake")
"""Why connections became no clients: too many; no TLS handshake; a request for something else, or
none that may be; the page's origin; no node takes them; they went, or took too long."""

ENDS = (
    *("client", "node", "text_message", "stalled", "unanswered", "flooded"),
    *("node_reset", "node_stream", "failed"),
)
"""Why clients have ended: by themselves; by their node, in order; a text message; they took
nothing; they answered no ping; they took no answers to pings; the node's reset; the node sent what
is no packet; an error in the front."""


class FrontCounters:
    """Totals since the front began."""

    __slots__ = (
        "bytes_to_clients",
        "bytes_to_nodes",
        "clients",
        "connections",
        "ended",
        "messages_to_clients",
        "messages_to_nodes",
        "refused",
        "unreachable",
    )

    def __init__(self, nodes: Sequence[NetAddress]) -> None:
        self.clients = 0
        """Those that there were, with those that there are."""
        self.connections = 0
        """How many are open now, of clients and of those who are none yet."""
        self.refused = dict.fromkeys(REFUSALS, 0)
        self.ended = dict.fromkeys(ENDS, 0)
        self.unreachable = dict.fromkeys(nodes, 0)
        """How often each of the nodes took no client."""
        self.messages_to_nodes = self.bytes_to_nodes = 0
        self.messages_to_clients = self.bytes_to_clients = 0

    @property
    def clients_now(self) -> int:
        """How many there are, until their node has ended too."""
        return self.clients - sum(self.ended.values())
