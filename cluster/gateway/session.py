"""A client's session in the gateway: packets go to its shard's lane, whole recvs at a time.

Received packets are held, and receiving pauses, while the lane is full; receiving pauses as
well while the client takes its replies too slowly. An EOF becomes a `closed` record, and the
socket stays writable until the worker has committed it: replies to what the client sent last
still reach it.
"""

from typing import TYPE_CHECKING

from cluster.iocp import Session
from cluster.shared.causes import Cause

if TYPE_CHECKING:
    from cluster.gateway.session_table import SessionTable
    from cluster.gateway.shard import Shard

__all__ = ["GatewaySession"]


class GatewaySession(Session):
    """One client. The table gives it an id and a shard before anything else happens to it."""

    __slots__ = (
        "_table",
        "closed_appended",
        "held_packets",
        "id",
        "is_slow",
        "next_sequence",
        "shard",
        "uncommitted_bytes",
        "user",
    )

    recyclable = True
    tells_sends = False

    shard: "Shard"

    def __init__(self, table: "SessionTable") -> None:
        super().__init__()
        self._table = table
        self.on_recycle()

    def on_recycle(self) -> None:
        self.id = 0
        self.next_sequence = 1
        self.uncommitted_bytes = 0
        self.held_packets: tuple[bytes, int] | None = None
        self.is_slow = False
        self.closed_appended = False
        self.user: str | None = None

    def on_connected(self) -> None:
        self._table.open(self)

    def on_recv(self, data: bytes | memoryview) -> int:
        shard = self.shard
        size_max = shard.max_packet_bytes
        end = len(data)
        offset = count = 0
        bad_size = False
        # `PacketFraming.scan`, written out: a call and a tuple less for each recv.
        while end - offset >= 2:
            size = data[offset] | data[offset + 1] << 8
            if size < 4 or size > size_max:
                bad_size = True
                break
            if size > end - offset:
                break
            offset += size
            count += 1
        if count:
            packets = data if offset == end and type(data) is bytes else bytes(data[:offset])
            log = shard.log
            if log.uncommitted_bytes >= log.capacity_bytes:
                shard.hold(self, packets, count)
            else:
                # `Shard.append_packets`, written out for the same reason.
                sequence = self.next_sequence
                self.next_sequence = sequence + count
                self.uncommitted_bytes += offset
                shard.lane_append_packets(self.id, sequence, packets, count, self)
                shard.needs_flush = True
            if self.uncommitted_bytes + self._queued_bytes > shard.slow_bytes:
                shard.slow_down(self)
        if bad_size:
            self.abort(Cause.BAD_SIZE)
        return offset

    def on_send(self, num_bytes: int) -> None:
        if self.is_slow:
            self.shard.reconsider(self)

    def on_read_ended(self) -> None:
        self.shard.append_closed(self, Cause.EOF)

    def on_disconnected(self, cause: str) -> None:
        self._table.forget(self, cause)

    @property
    def is_present(self) -> bool:
        """Whether the client has not ended its side and nobody has begun to end this one."""
        return self.is_connected and not self.closed_appended

    @property
    def backlog_bytes(self) -> int:
        """What this client has caused and not taken: received and uncommitted, or queued."""
        return self.uncommitted_bytes + self._queued_bytes
