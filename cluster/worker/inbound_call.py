"""One handler call that inbound records ask for, apart from the record: it may have to wait."""

from typing import NamedTuple

from cluster.shared.note import HandlerCall

__all__ = ["InboundCall"]


class InboundCall(NamedTuple):
    """What a handler is called for, and by which name every life knows the call."""

    name: HandlerCall
    kind: int
    """PACKETS, OPENED, CLOSED, or any other kind of inbound record."""
    payload: bytes
    """The packet with its header, or what the record holds."""
    sequence: int = 0
    """Of a packet."""
    is_redelivered: bool = False
    was_begun: bool = False
    """Whether a predecessor has begun it, so that it is due even if its session has ended."""
