"""What a handler call is about, as the gateway knows it: from its own log, without the worker."""

from typing import NamedTuple

from cluster.gateway.deferred import DeferredCall
from cluster.gateway.session import GatewaySession
from cluster.gateway.shard import Shard
from cluster.gateway.shard_tells import TellOwner
from cluster.iocp.packet_framing import HEADER, HEADER_BYTES
from cluster.shared.lane import Commit
from cluster.shared.node_status import InHand
from cluster.shared.note import SEVERAL, HandlerCall
from cluster.shared.records import (
    BOUND,
    CLOSED,
    DRAIN,
    JOINED,
    KEYS,
    MESSAGE,
    OF_SHARDS,
    OPENED,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD_BYTES,
    SEND_BLOCKED,
    SEND_READY,
    SEQUENCE,
    UNDELIVERED,
)

__all__ = ["Invocation", "deferred_invocation", "find_invocation"]

_KINDS = {
    OPENED: "opened",
    CLOSED: "closed",
    BOUND: "bound",
    JOINED: "joined",
    SEND_BLOCKED: "send_blocked",
    SEND_READY: "send_ready",
    MESSAGE: "message",
    UNDELIVERED: "undelivered",
    KEYS: "keys",
    DRAIN: "drain",
}


class Invocation(NamedTuple):
    """What one handler call is, or was to be, called with."""

    kind: str
    """packet, opened, closed, bound, joined, send_blocked, send_ready, message, undelivered, keys,
    drain, resumed"""
    session: GatewaySession | TellOwner
    packet_id: int | None = None
    """None if it is not of a packet, as the sequence is."""
    sequence: int | None = None
    payload: bytes | None = None
    """Of a packet or a message."""

    def shown(self, for_s: float) -> InHand:
        """Return it as the status shows a call that has gone on for `for_s` seconds."""
        return InHand(
            session=self.session.id,
            packet_id=self.packet_id,
            sequence=self.sequence,
            for_s=round(for_s, 3),
        )


def find_invocation(shard: Shard, call: HandlerCall) -> Invocation | None:
    """Return what `call` is about, the first if it is several; None if it is done, or never was.

    `call` comes from a worker, which may be broken in any way.
    """
    if call.is_resumption:
        session = shard.succession.find(call.session)
        return None if session is None else Invocation("resumed", session)
    name = Commit(call.position, call.packet_index)
    deferred = shard.succession.deferred.find(name)
    if deferred is not None:
        return deferred_invocation(deferred)
    if name < shard.log.committed:
        return None
    entry = shard.log.entry_at(call.position)
    if entry is None:
        return None
    kind, session, _, packet_count, record = entry
    if kind != PACKETS:
        return _event(kind, session, record[RECORD_BYTES:]) if call.packet_index == 0 else None
    index = 0 if call.packet_index == SEVERAL else call.packet_index
    if not 0 <= index < packet_count:
        return None
    offset = PACKETS_OVERHEAD
    for _ in range(index):
        offset += HEADER.unpack_from(record, offset)[0]
    size, packet_id = HEADER.unpack_from(record, offset)
    first_sequence = SEQUENCE.unpack_from(record, RECORD_BYTES)[0]
    payload = record[offset + HEADER_BYTES : offset + size]
    return Invocation("packet", session, packet_id, first_sequence + index, payload)


def deferred_invocation(call: DeferredCall) -> Invocation | None:
    """Return what a deferred call is about; None if its record asks for no call."""
    if call.kind != PACKETS:
        return _event(call.kind, call.session, call.payload)
    packet_id: int = HEADER.unpack_from(call.payload)[1]
    payload = call.payload[HEADER_BYTES:]
    return Invocation("packet", call.session, packet_id, call.sequence, payload)


def _event(kind: int, session: GatewaySession | TellOwner, payload: bytes) -> Invocation | None:
    name = _KINDS.get(kind)
    if name is None:
        return None
    return Invocation(name, session, payload=payload if kind in OF_SHARDS else None)
