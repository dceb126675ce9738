"""A client's session that looks at each recv: when it was, how much came, and what may pass.

A gateway uses it only when `[limits]` asks for something that plain sessions do not see, or there
are load balancers in front, whose connections become sessions when they have told the client's
address. Until a session is accepted only packets with a public id get through: the first other one
stops the reading of the session, and it and all behind it wait, in order, in the receive buffer and
with the client.
"""

from typing import TYPE_CHECKING

from cluster.gateway.proxy_header import ProxyHeaderError, read_proxy_header
from cluster.gateway.session import GatewaySession
from cluster.shared.causes import Cause

if TYPE_CHECKING:
    from cluster.gateway.limits import Limits
    from cluster.gateway.session_table import SessionTable

__all__ = ["LimitedSession", "public_front", "session_type"]

_plain_on_recv = GatewaySession.on_recv


class LimitedSession(GatewaySession):
    """One client whose every recv counts."""

    __slots__ = (
        "_byte_rate",
        "_bytes_full_at",
        "_kept_s",
        "_kept_until",
        "_limits",
        "_packet_rate",
        "_packets_full_at",
        "_paused_at",
        "has_rates",
        "hears_all_commits",
        "is_waiting",
    )

    def __init__(self, table: "SessionTable") -> None:
        self._limits = limits = table.limits
        self.hears_all_commits = limits.deadlines.idle_timeout_s > 0
        self.has_rates = limits.has_rates
        self._packet_rate, self._byte_rate = limits.packet_rate, limits.byte_rate
        super().__init__(table)

    def on_recycle(self) -> None:
        super().on_recycle()
        self.is_waiting = False
        """Whether packets are here that wait for the session to be accepted."""
        self._packets_full_at = self._bytes_full_at = 0.0
        self._kept_s = self._kept_until = self._paused_at = 0.0

    def on_connected(self) -> None:
        if not self._limits.awaits_header(self):
            self._table.open(self)

    def on_recv(self, data: bytes | memoryview) -> int:
        self.received_at = self._core.batch_now
        if self.is_accepted:
            return _plain_on_recv(self, data)
        return self._recv_public(data) if self.id else self._recv_header(data)

    def on_read_ended(self) -> None:
        if self.id:
            super().on_read_ended()
        else:
            self.disconnect(Cause.EOF)

    def may_spend(self, packet_count: int, num_bytes: int) -> bool:
        now = self.received_at
        floor = self._floor(now) if self._kept_until else now
        # `RateLimit.spend` and `is_overdrawn`, written out: they are there for each recv.
        rate = self._packet_rate
        full_at = self._packets_full_at
        if full_at < floor:
            full_at = floor
        self._packets_full_at = full_at = full_at + packet_count * rate.unit_s
        if full_at - now > rate.burst_s:
            self._limits.exceeded(self, "packets_per_s")
            return False
        rate = self._byte_rate
        full_at = self._bytes_full_at
        if full_at < floor:
            full_at = floor
        self._bytes_full_at = full_at = full_at + num_bytes * rate.unit_s
        if full_at - now > rate.burst_s:
            self._limits.exceeded(self, "bytes_per_s")
            return False
        return True

    def on_committed(self) -> None:
        self.received_at = self._core.batch_now  # who has waited for an answer was not idle
        super().on_committed()

    # -- pauses ------------------------------------------------------------------------------------
    #
    # What a client sends while it is not read comes at once afterwards, and that is not its doing.
    # So tokens of that time are kept beyond the burst, for as long again as the pause was; those of
    # pauses that follow so closely add up, without the time between them.

    def pause_recv(self) -> None:
        if not self._recv_paused:
            self._paused_at = now = self._core.batch_now
            if now >= self._kept_until:
                self._kept_s = 0.0
                self._kept_until = now
        super().pause_recv()

    def resume_recv(self) -> None:
        if self.is_waiting:
            return
        if self._recv_paused:
            now = self._core.batch_now
            paused_s = now - self._paused_at
            self._kept_s += paused_s
            self._kept_until = max(self._kept_until, now + paused_s)
        super().resume_recv()

    def _floor(self, now: float) -> float:
        """Return since when tokens are kept."""
        if self._recv_paused:  # the last recv that was in flight
            return self._paused_at - self._kept_s
        if now < self._kept_until:
            return now - self._kept_s
        self._kept_s = self._kept_until = 0.0
        return now

    # -- headers of load balancers -----------------------------------------------------------------

    def _recv_header(self, data: bytes | memoryview) -> int:
        """Take the header that a load balancer sends first, and what comes with it."""
        limits = self._limits
        try:
            header = read_proxy_header(data)
        except ProxyHeaderError as error:
            limits.proxies.refused(self._address, str(error))
            self.abort(Cause.BAD_SIZE)
            return 0
        if header is None or (header.is_local and header.num_bytes == len(data)):
            return 0  # a balancer that only looks is no session, and goes
        if header.address is not None:
            self._address = header.address
        if not limits.admits(self._address):
            self.abort(Cause.RATE_LIMITED)
            return 0
        self._table.open(self)
        rest = data[header.num_bytes :]
        return header.num_bytes + (self.on_recv(rest) if rest else 0)

    # -- acceptance --------------------------------------------------------------------------------

    def _recv_public(self, data: bytes | memoryview) -> int:
        """Take what may pass of `data`; read no more if anything has to wait."""
        shard = self.shard
        front = public_front(data, shard.flow.public_ids, shard.framing.max_packet_bytes)
        if front == len(data):
            return _plain_on_recv(self, data)
        consumed = _plain_on_recv(self, data[:front]) if front else 0
        self.is_waiting = True
        shard.flow.begin_waiting(self)
        return consumed

    def accept(self) -> None:
        """Let packets of every id through from now on; those that wait come first."""
        self.is_accepted = True
        self.look_again()

    def look_again(self) -> None:
        """Let what waits be looked at again: the session is accepted, or more ids are public."""
        if self.is_waiting:
            self.is_waiting = False
            self.shard.flow.end_waiting(self)
            self.shard.flow.reconsider(self)

    def on_disconnected(self, cause: str) -> None:
        if self.is_waiting:
            self.shard.flow.end_waiting(self)
        super().on_disconnected(cause)
        if not self.id:
            self._limits.never_opened(self, cause)


def session_type(limits: "Limits") -> type[GatewaySession]:
    """Return the type of the sessions of a gateway that keeps `limits`."""
    return LimitedSession if limits.watches_recvs else GatewaySession


def public_front(data: bytes | memoryview, public_ids: frozenset[int], size_max: int) -> int:
    """Return how much of `data` lies ahead of the first complete packet whose id is not public.

    All of it, when there is none, or a size that cannot be comes first.
    """
    end = len(data)
    offset = 0
    while end - offset >= 4:
        size = data[offset] | data[offset + 1] << 8
        if size < 4 or size > size_max or size > end - offset:
            break
        if data[offset + 2] | data[offset + 3] << 8 not in public_ids:
            return offset
        offset += size
    return end
