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
        "hears_commits",
        "held_packets",
        "id",
        "is_accepted",
        "is_slow",
        "login_stamp",
        "next_sequence",
        "opened_at",
        "partial_number",
        "partial_since",
        "reading_since",
        "received_at",
        "send_record_in_lane",
        "shard",
        "told_send_blocked",
        "uncommitted_bytes",
        "user",
        "wheel_tick",
    )

    recyclable = True
    tells_sends = False

    has_rates = False
    """Whether packets are to be paid for, by `may_spend`."""

    hears_all_commits = False
    """Whether `on_committed` is called for everything, and not only while the client is slow."""

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
        self.hears_commits = self.hears_all_commits
        self.closed_appended = False
        self.user: str | None = None
        self.login_stamp = 0
        """Since when it is that user, as nodes compare logins."""
        self.is_accepted = True
        """Whether packets of every id get through."""
        # Times are those of the core's clock, in seconds.
        self.opened_at = self.reading_since = self.received_at = self.partial_since = 0.0
        self.partial_number = 0
        """The packet, counted from 1, of which a part was left over at `partial_since`."""
        self.wheel_tick = 0
        self.told_send_blocked = False
        """What the lane's last record about the send queue says."""
        self.send_record_in_lane = False
        """Whether that record is not committed yet."""

    def on_connected(self) -> None:
        self._table.open(self)

    def on_recv(self, data: bytes | memoryview) -> int:
        # What `Intake` has not taken: most recvs bring one packet, and do not come here.
        offset, count, bad_size = self.shard.framing.scan(data)
        if count and not self._pass_on(bytes(data[:offset]), count):
            return offset
        if bad_size is not None:
            if not offset and not self.packets_taken:
                self._table.limits.other_protocols.look(self._address, data)
            self.abort(Cause.BAD_SIZE)
        elif offset != len(data):
            self._leave_part(data)
        return offset

    def _pass_on(self, packets: bytes, count: int) -> bool:
        """Put packets into the lane, or hold them; False, and the session is ended, when they are
        too many."""
        if self.has_rates and not self.may_spend(count, len(packets)):
            return False
        shard = self.shard
        if shard.lane.is_full:
            shard.flow.hold(self, packets, count)
        else:
            shard.append_packets(self, packets, count)
        if self.backlog_bytes > shard.flow.slow_bytes:
            shard.flow.slow_down(self)
        return True

    def _leave_part(self, data: bytes | memoryview) -> None:
        """A part of a packet is left over of `data`: its time runs from its first one."""
        number = self.packets_taken + 1
        if number != self.partial_number:
            self.partial_number = number
            self.partial_since = self._core.batch_now
            self._table.limits.deadlines.left_part(self)
            if number == 1:
                self._table.limits.other_protocols.look(self._address, data)

    def may_spend(self, packet_count: int, num_bytes: int) -> bool:
        """Count packets that have come; False, and the session is ended, when they are too many."""
        return True

    def resume_recv(self) -> None:
        if self._recv_paused:
            self.reading_since = self._core.batch_now
        super().resume_recv()

    def accept(self) -> None:
        """Let packets of every id through from now on."""

    def look_again(self) -> None:
        """Other packet ids may be public by now."""

    def on_committed(self) -> None:
        """Some of the client's packets are done for good."""
        if self.is_slow:
            self.shard.flow.reconsider(self)

    def on_send(self, num_bytes: int) -> None:
        if self.is_slow:
            self.shard.flow.reconsider(self)

    def on_send_blocked(self) -> None:
        self.shard.append_send_state(self)

    def on_send_ready(self) -> None:
        self.shard.append_send_state(self)

    def on_read_ended(self) -> None:
        self.shard.append_closed(self, Cause.EOF)

    def on_disconnected(self, cause: str) -> None:
        self._table.forget(self, cause)

    @property
    def address_text(self) -> str:
        """The client's address, as workers are told it."""
        assert self._address is not None, "known before the session is opened"
        return self._address.text

    @property
    def is_present(self) -> bool:
        """Whether the client has not ended its side and nobody has begun to end this one."""
        return self.is_connected and not self.closed_appended

    @property
    def packets_taken(self) -> int:
        """Packets that were received as a whole and not held back for want of an acceptance."""
        held = 0 if self.held_packets is None else self.held_packets[1]
        return self.next_sequence - 1 + held

    @property
    def backlog_bytes(self) -> int:
        """What this client has caused and not taken: received and uncommitted, or queued."""
        return self.uncommitted_bytes + self._queued_bytes
