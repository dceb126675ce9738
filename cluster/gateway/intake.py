"""Takes packets from the completions of a batch into the lanes, with as little as can be for each.

Most recvs bring one whole packet of a session that nothing holds up. For those the rules of
`Session` and `GatewaySession` come down to a few questions, which are asked here, and what remains
is a record. Whatever has another answer is delivered to its owner, behind all that came before it.
"""

import sys
from collections.abc import Iterator, Sequence

from cluster.gateway.limited_session import session_type
from cluster.gateway.limits import Limits
from cluster.gateway.shard import Shard
from cluster.iocp import IocpCore, SessionState
from cluster.iocp.driver import Completion
from cluster.iocp.iocp_core import deliver_one
from cluster.iocp.packet_framing import HEADER_BYTES
from cluster.shared.records import PACKETS, PACKETS_OVERHEAD, pack_packets

__all__ = ["Intake"]

_CONNECTED = SessionState.CONNECTED


class Intake:
    """The `Deliverer` of a gateway's core. For the dispatching thread."""

    __slots__ = ("_core", "_is_limited", "_session_type", "_shards")

    def __init__(self, core: IocpCore, shards: Sequence[Shard], limits: Limits) -> None:
        """Take what comes on `core`, on which all clients have `shards`, and are under `limits`."""
        self._core = core
        self._shards = shards
        self._session_type = session_type(limits)
        self._is_limited = limits.watches_recvs

    def deliver(self, batch: Iterator[Completion]) -> None:
        """As `Deliverer` says."""
        # Nearly every packet passes through this loop, so it is in one piece. It does what
        # `Session.dispatch` and `GatewaySession.on_recv` would, and calls neither.
        cls, is_limited = self._session_type, self._is_limited
        size_max, slow_bytes = (
            self._shards[0].framing.max_packet_bytes,
            self._shards[0].flow.slow_bytes,
        )
        now, recv_again = self._core.batch_now, self._core.driver.recv_again
        pack = pack_packets
        room = self._room()
        for event, num_bytes in batch:
            data, session = event.data, event.owner
            if (
                data is not None
                and type(session) is cls
                and num_bytes >= HEADER_BYTES
                and data[0] | data[1] << 8 == num_bytes
                and num_bytes <= size_max
                and room > 0
                and session._state is _CONNECTED
                and session._recv_buffer is None
                and not session._recv_paused
                and (not is_limited or session.is_accepted)
                and (shard := session.shard).has_room
            ):
                event.data = None
                try:
                    if is_limited:
                        session.received_at = now
                        if session.has_rates and not session.may_spend(1, num_bytes):
                            event.owner = None
                            continue
                    sequence = session.next_sequence
                    session.next_sequence = sequence + 1
                    session.uncommitted_bytes = backlog = session.uncommitted_bytes + num_bytes
                    num_bytes += PACKETS_OVERHEAD
                    room -= num_bytes
                    record = pack(num_bytes, PACKETS, 1, session.id, sequence) + data
                    shard.arrived_records.append(record)
                    shard.arrived_sessions.append(session)
                    if backlog + session._queued_bytes <= slow_bytes:
                        recv_again(event)
                    else:
                        event.owner = None
                        shard.flow.slow_down(session)
                except Exception as error:
                    # Of this session alone, as in `deliver_one`; nothing is in flight for it.
                    event.owner = None
                    self._take_arrived()
                    session.on_dispatch_error(event, error)
                    room = self._room()
                continue
            self._take_arrived()
            deliver_one(event, num_bytes)
            room = self._room()
        self._take_arrived()

    def _take_arrived(self) -> None:
        for shard in self._shards:
            if shard.arrived_records:
                shard.take_arrived()

    def _room(self) -> int:
        """Look which lanes have room; return how many bytes are missing until the next is full."""
        room = sys.maxsize
        for shard in self._shards:
            left = shard.log.full_at - shard.log.appended_bytes
            shard.has_room = left > 0
            if 0 < left < room:
                room = left
        return room
