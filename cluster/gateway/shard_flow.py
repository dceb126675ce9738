"""Which sessions of a shard are not read for now, and when they are again.

There are three reasons. The lane has no room for packets that have come: the recv that brought them
is held, and goes in later, in the order of arrival. A client takes its replies too slowly. Packets
wait until their session is accepted. What may have ended a reason is only noted; after the batch
each of these sessions is looked at, and read again if nothing else holds it up.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

from cluster.gateway.counters import Counters

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["ShardFlow"]


class ShardFlow:
    """That of one shard. For the dispatching thread."""

    __slots__ = (
        "_counters",
        "held",
        "public_ids",
        "reads_no_more",
        "slow_bytes",
        "to_reconsider",
        "waiting",
    )

    def __init__(self, slow_bytes: int, counters: Counters) -> None:
        self.slow_bytes = slow_bytes
        """A client with a larger backlog is not read until it has taken some of it."""
        self.public_ids: frozenset[int] = frozenset()
        """Packet ids that get through before a session is accepted, as the shard's worker, or the
        last one that it had, has declared them."""
        self.reads_no_more = False
        """Set for good when the sessions of a drain are ended."""
        # A dict looks the longer for its first the more were before it.
        self.held: OrderedDict[GatewaySession, None] = OrderedDict()
        """Sessions whose packets wait for room in the lane, in the order of arrival."""
        self.waiting: dict[GatewaySession, None] = {}
        """Sessions whose packets wait until the worker accepts them."""
        self.to_reconsider: list[GatewaySession] = []
        """Sessions of which something that held them up is over, for `resume_sessions`."""
        self._counters = counters

    # -- no room in the lane -----------------------------------------------------------------------

    def hold(self, session: "GatewaySession", packets: bytes, count: int) -> None:
        """Keep packets for which the lane has no room, and do not read their session."""
        # At most one recv for each session: it is not read again before this has gone in.
        if session.held_packets is not None:
            packets, count = session.held_packets[0] + packets, session.held_packets[1] + count
        else:
            self.held[session] = None
        session.held_packets = (packets, count)
        session.pause_recv()
        self._counters.add("lane_full")

    def release(self, session: "GatewaySession") -> tuple[bytes, int] | None:
        """Return the packets that are held of `session`, and how many, and hold them no more."""
        packets = session.held_packets
        if packets is not None:
            session.held_packets = None
            del self.held[session]
        return packets

    # -- slow readers ------------------------------------------------------------------------------

    def slow_down(self, session: "GatewaySession") -> None:
        """Do not read a client that takes its replies too slowly."""
        if not session.is_slow:
            session.is_slow = session.hears_commits = True
            self._counters.add("slow_reader_paused")
        session.pause_recv()

    # -- sessions that are not accepted yet --------------------------------------------------------

    def begin_waiting(self, session: "GatewaySession") -> None:
        """A packet of `session` waits for its acceptance: do not read it."""
        self.waiting[session] = None
        session.pause_recv()

    def end_waiting(self, session: "GatewaySession") -> None:
        """Nothing of `session` waits for its acceptance any more."""
        self.waiting.pop(session, None)

    def learn(self, public_ids: frozenset[int]) -> None:
        """The worker that has the shard from now on declares these packet ids as public."""
        if public_ids != self.public_ids:
            self.public_ids = public_ids
            for session in list(self.waiting):
                session.look_again()

    # -- reading again -----------------------------------------------------------------------------

    def reconsider(self, session: "GatewaySession") -> None:
        """Something that held `session` up may be over; looked at after this batch."""
        self.to_reconsider.append(session)

    def resume_sessions(self) -> None:
        """Read again from every session that nothing holds up any more."""
        if self.reads_no_more:
            return
        sessions, self.to_reconsider = self.to_reconsider, []
        for session in sessions:
            if session.held_packets is not None:
                continue
            if session.backlog_bytes > self.slow_bytes:
                self.slow_down(session)
                continue
            session.is_slow = False
            session.hears_commits = session.hears_all_commits
            session.resume_recv()
