"""A shard as the gateway sees it: its lane, what its worker has not committed, and who waits.

Inbound, the shard turns what happens to sessions into records. While the lane is full a
session's packets are held and its receiving pauses; each held recv goes in as soon as there is
room, in the order of arrival. On a commit everything that depended on it goes on: slow readers,
sessions at EOF, held packets.
"""

from typing import TYPE_CHECKING

from cluster.gateway.counters import Counters
from cluster.shared.causes import Cause
from cluster.shared.lane import Freed, GatewayLane
from cluster.shared.messages import ReplayedSession
from cluster.shared.records import CLOSED, OPENED, PACKETS, PACKETS_OVERHEAD

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Shard"]


class Shard:
    """One shard. For the dispatching thread."""

    __slots__ = (
        "_counters",
        "_held",
        "_reconsider",
        "_replayable",
        "index",
        "is_draining",
        "lane",
        "lane_append_packets",
        "log",
        "max_packet_bytes",
        "needs_flush",
        "slow_bytes",
    )

    def __init__(
        self,
        index: int,
        lane: GatewayLane,
        counters: Counters,
        max_packet_bytes: int,
        send_queue_bytes_max: int,
    ) -> None:
        self.index = index
        self.lane = lane
        self.lane_append_packets = lane.append_packets
        self.log = lane.log
        self.max_packet_bytes = max_packet_bytes
        self.slow_bytes = send_queue_bytes_max // 2
        """A client with a larger backlog is not read until it has taken some of it."""
        self.needs_flush = False
        self.is_draining = False
        """Set for good when the gateway drains: no session is read any more."""
        self._counters = counters
        self._held: dict[GatewaySession, None] = {}  # in order of arrival
        self._reconsider: list[GatewaySession] = []
        self._replayable: dict[int, GatewaySession] = {}

    @property
    def held_count(self) -> int:
        """Sessions whose packets wait for room in the lane."""
        return len(self._held)

    @property
    def is_idle(self) -> bool:
        """Whether the worker has committed everything that was received."""
        return self.lane.log.is_committed and not self._held

    # -- inbound ---------------------------------------------------------------------------------

    def append_opened(self, session: "GatewaySession") -> None:
        """Tell the worker of a new session."""
        self.lane.append(OPENED, session.id, str(session.address).encode(), 0, session)
        self.needs_flush = True

    def append_closed(self, session: "GatewaySession", cause: str) -> None:
        """Tell the worker, once, that a session has ended or that its client has."""
        if session.closed_appended:
            return
        session.closed_appended = True
        self._release_held(session)
        self.lane.append(CLOSED, session.id, cause.encode(), 0, session)
        self.needs_flush = True

    def append_packets(self, session: "GatewaySession", packets: bytes, count: int) -> None:
        """Pass on the complete packets of one recv. Not while the lane is full: see `hold`."""
        sequence = session.next_sequence
        session.next_sequence = sequence + count
        self.lane.append_packets(session.id, sequence, packets, count, session)
        session.uncommitted_bytes += len(packets)
        self.needs_flush = True

    def hold(self, session: "GatewaySession", packets: bytes, count: int) -> None:
        """Keep packets for which the lane has no room, and do not read their session."""
        # At most one recv for each session: it is not read again before this has gone in.
        if session.held_packets is not None:
            packets, count = session.held_packets[0] + packets, session.held_packets[1] + count
        else:
            self._held[session] = None
        session.held_packets = (packets, count)
        session.pause_recv()
        self._counters.add("lane_full")

    def _release_held(self, session: "GatewaySession") -> None:
        if session.held_packets is not None:
            packets, count = session.held_packets
            session.held_packets = None
            del self._held[session]
            self.append_packets(session, packets, count)

    def _take_held(self) -> None:
        while self._held and not self.lane.is_full:
            session = next(iter(self._held))
            self._release_held(session)
            self._reconsider.append(session)

    # -- slow readers ------------------------------------------------------------------------------

    def slow_down(self, session: "GatewaySession") -> None:
        """Do not read a client that takes its replies too slowly."""
        if not session.is_slow:
            session.is_slow = True
            self._counters.add("slow_reader_paused")
        session.pause_recv()

    def reconsider(self, session: "GatewaySession") -> None:
        """Something that held `session` up may be over; looked at after this batch."""
        self._reconsider.append(session)

    def resume_sessions(self) -> None:
        """Read again from every session that nothing holds up any more."""
        if not self._reconsider or self.is_draining:
            return
        sessions, self._reconsider = self._reconsider, []
        for session in sessions:
            if session.held_packets is not None:
                continue
            if session.backlog_bytes > self.slow_bytes:
                self.slow_down(session)
                continue
            session.is_slow = False
            session.resume_recv()

    # -- commits -----------------------------------------------------------------------------------

    def committed(self, freed: list[Freed]) -> None:
        """The worker has done, for good, what these records asked for."""
        for kind, session, num_bytes, _, _ in freed:
            if kind == PACKETS:
                session.uncommitted_bytes -= num_bytes - PACKETS_OVERHEAD
                if session.is_slow:
                    self._reconsider.append(session)
            elif kind == OPENED:
                self._replayable[session.id] = session
            elif kind == CLOSED:
                self._replayable.pop(session.id, None)
                # The client had ended its side: all replies are queued now, so end ours.
                session.disconnect(Cause.EOF)
        if self._held:
            self._take_held()

    def find_replayable(self, session_id: int) -> "GatewaySession | None":
        """Return a session that a successor would take over, None if it would not."""
        return self._replayable.get(session_id)

    def replay(self) -> list[ReplayedSession]:
        """Return the sessions that a successor takes over, as of the commit."""
        return [
            ReplayedSession(
                id=session.id, address=str(session.address), closing=session.ended_by_worker
            )
            for session in self._replayable.values()
        ]
