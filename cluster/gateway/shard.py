"""A shard as the gateway sees it: its lane, and what its worker has not committed.

Inbound, the shard turns what happens to sessions into records. On a commit everything that
depended on it goes on: slow readers, sessions at EOF, held packets.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cluster.gateway.bound_answers import BoundAnswers
from cluster.gateway.commit_times import CommitTimes
from cluster.gateway.counters import Counters
from cluster.gateway.deferred import DeferredCall
from cluster.gateway.joined_answers import JoinedAnswers
from cluster.gateway.replay import Replay
from cluster.gateway.shard_drain import ShardDrain
from cluster.gateway.shard_flow import ShardFlow
from cluster.gateway.shard_keys import ShardKeys
from cluster.gateway.shard_tells import ShardTells, TellOwner
from cluster.gateway.succession import Succession
from cluster.iocp.packet_framing import PacketFraming
from cluster.shared.causes import Cause
from cluster.shared.group_records import pack_join
from cluster.shared.lane import Freed, GatewayLane
from cluster.shared.records import (
    BOUND,
    CLOSED,
    DRAIN,
    JOINED,
    KEYS,
    OF_SHARDS,
    OPENED,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD_BYTES,
    SEND_BLOCKED,
    SEND_READY,
)
from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import read_bound

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Shard", "ShardBounds"]


class ShardBounds(NamedTuple):
    """What the sessions and the worker of a shard may have, in bytes."""

    max_packet_bytes: int
    send_queue_bytes_max: int
    """Of one session."""
    tell_window_bytes: int
    """Of messages on their way to one node."""
    saved_bytes_max: int
    """Of what the shard saves for itself."""


class Shard:
    """One shard. For the dispatching thread."""

    __slots__ = (
        "_answers",
        "_counters",
        "_now",
        "arrived_records",
        "arrived_sessions",
        "commit_times",
        "drain",
        "flow",
        "flushed_bytes",
        "framing",
        "has_room",
        "index",
        "joined",
        "keys",
        "lane",
        "log",
        "needs_flush",
        "succession",
        "tells",
    )

    def __init__(
        self,
        name: ShardId,
        lane: GatewayLane,
        counters: Counters,
        bounds: ShardBounds,
        now: Callable[[], float],
    ) -> None:
        """Serve by `lane`, which stays the caller's. `now` is a clock in seconds."""
        self.index = name.shard
        self._now = now
        self.lane = lane
        self.log = lane.log
        self.framing = PacketFraming(bounds.max_packet_bytes)
        self.flow = ShardFlow(bounds.send_queue_bytes_max // 2, counters)
        """Which of its sessions are not read for now."""
        self.flushed_bytes = 0
        """What the log had been given when the lane was flushed last."""
        self.needs_flush = False
        """Whether a flush is due although nothing was appended since the last one."""
        self.has_room = True
        """Whether the lane was not full when `Intake` looked last, which it does in each batch."""
        self.arrived_records: list[bytes] = []
        """Records of one packet each, on their way to the lane: `take_arrived`."""
        self.arrived_sessions: list[GatewaySession] = []
        """The session of each of these."""
        self.commit_times = CommitTimes()
        """How long what the lane is given waits for its commit."""
        self._counters = counters
        self._answers = BoundAnswers()
        self.joined = JoinedAnswers()
        """What the worker is to hear of joins."""
        self.succession = Succession(bounds.saved_bytes_max)
        """What the shard's next worker will be told of its sessions."""
        self.keys = ShardKeys(name, lane)
        """What it is told of who owns keys."""
        self.tells = ShardTells(name, lane, counters, bounds.tell_window_bytes, self.keys)
        """What it tells other shards, and is told by them."""
        self.drain = ShardDrain(name, lane, self.succession.deferred, now)
        """What it is told of a drain."""

    @property
    def is_idle(self) -> bool:
        """Whether the worker has done everything that it was given, in coroutines too."""
        return self._is_done and not self.succession.deferred.count

    @property
    def has_answered(self) -> bool:
        """Whether the worker has done everything that was received, in coroutines too.

        Its call about the drain may go on: that may await the end of all sessions.
        """
        return self._is_done and self.succession.deferred.count == self.drain.is_deferred

    @property
    def _is_done(self) -> bool:
        return self.log.is_committed and not self.flow.held and not self.tells.waiting

    # -- inbound ---------------------------------------------------------------------------------

    def append_opened(self, session: "GatewaySession") -> None:
        """Tell the worker of a new session."""
        self.lane.append(OPENED, session.id, session.address_text.encode(), 0, session)

    def append_closed(self, session: "GatewaySession", cause: str) -> None:
        """Tell the worker, once, that a session has ended or that its client has."""
        if session.closed_appended:
            return
        session.closed_appended = True
        self._release_held(session)
        self.lane.append(CLOSED, session.id, cause.encode(), 0, session)

    def append_bound(self, session: "GatewaySession", answer: bytes) -> None:
        """Tell the worker the answer to a bind, unless it hears of the session's end already.

        It waits while there is one of the session that the worker has not heard (`BoundAnswers`).
        """
        if not session.closed_appended and self._answers.add(session, answer):
            position = self.lane.append(BOUND, session.id, answer, 0, session)
            self._answers.put(session, position)

    def heard_ahead(self, position: int) -> None:
        """The worker has heard what is for those who wait in it up to `position`, ahead of its
        turn, as it took nothing more; 0 if it never has."""
        position = min(position, self.log.sent_position)
        for session, answer in self._answers.heard(position):
            self.append_bound(session, answer)
        self.tells.heard(position)

    def append_joined(self, session: "GatewaySession", name: bytes, request: int) -> None:
        """Tell the worker that the linked nodes know of a join, now or behind what it is told."""
        if not session.closed_appended and self.joined.add(session, name, request):
            self._put_joined(session, name, request)

    def _put_joined(self, session: "GatewaySession", name: bytes, request: int) -> None:
        self.lane.append(JOINED, session.id, pack_join(request, name), 0, session)

    def append_send_state(self, session: "GatewaySession") -> None:
        """Tell the worker whether much waits to be sent to a session, if it thinks otherwise.

        At most one such record of a session is in the lane: what changes meanwhile is told, if it
        has not changed back, when that one is committed.
        """
        is_blocked = session.is_send_blocked
        if (
            session.send_record_in_lane
            or is_blocked is session.told_send_blocked
            or session.closed_appended
        ):
            return
        session.told_send_blocked = is_blocked
        session.send_record_in_lane = True
        self._counters.add("sends_blocked" if is_blocked else "sends_ready")
        kind = SEND_BLOCKED if is_blocked else SEND_READY
        self.lane.append(kind, session.id, b"", 0, session)

    def append_packets(self, session: "GatewaySession", packets: bytes, count: int) -> None:
        """Pass on the complete packets of one recv. Not while the lane is full: see
        `ShardFlow.hold`."""
        sequence = session.next_sequence
        session.next_sequence = sequence + count
        self.lane.append_packets(session.id, sequence, packets, count, session)
        session.uncommitted_bytes += len(packets)

    def take_arrived(self) -> None:
        """Put the records that have arrived into the lane."""
        self.log.append_each(self.arrived_records, self.arrived_sessions)
        self.arrived_records.clear()
        self.arrived_sessions.clear()

    def _release_held(self, session: "GatewaySession") -> None:
        held = self.flow.release(session)
        if held is not None:
            self.append_packets(session, *held)

    def _take_held(self) -> None:
        """Put into the lane, in turn, a recv that is held and a message that waits."""
        while not self.lane.is_full:
            session = next(iter(self.flow.held), None)
            if session is not None:
                self._release_held(session)
                self.flow.reconsider(session)
            if not self.tells.take_waiting() and session is None:
                return

    # -- commits -----------------------------------------------------------------------------------

    def committed(self, freed: list[Freed]) -> None:
        """The worker has done, for good, what these records asked for."""
        deferred = self.succession.deferred
        done = deferred.commit(self._now()) if deferred.has_pending else ()
        for kind, session, num_bytes, _, record in freed:
            if kind == PACKETS:
                session.uncommitted_bytes -= num_bytes - PACKETS_OVERHEAD
                if session.hears_commits:
                    session.on_committed()
            elif kind == OPENED:
                self.succession.opened(session)
            elif kind == BOUND:
                self._bound_committed(session, record)
            elif kind == JOINED:
                answer = self.joined.committed(session)
                if answer is not None:
                    self._put_joined(session, *answer)
            elif kind in (SEND_BLOCKED, SEND_READY):
                session.send_record_in_lane = False
                self.append_send_state(session)
            elif kind in OF_SHARDS:
                self._tell_freed(kind, session, record)
            elif kind == CLOSED and session.id not in deferred.closing:
                self._closed(session)
        for call in done:
            self._finished(call)
        if self.succession.pending:
            self.succession.commit()
        if self.succession.saves.has_pending:
            self.succession.saves.commit()
        tells = self.tells
        if tells.has_pending:
            tells.commit()
        if self.flow.held or tells.waiting:
            self._take_held()

    def _tell_freed(self, kind: int, owner: TellOwner | None, record: bytes) -> None:
        if kind == KEYS:
            self.keys.freed(record)
        elif kind == DRAIN:
            self.drain.freed()
        else:
            self.tells.freed(kind, owner, record)

    def _bound_committed(self, session: "GatewaySession", record: bytes) -> None:
        self.succession.bound(session.id, read_bound(record[RECORD_BYTES:]))
        waiting = self._answers.committed(session)
        if waiting is not None:
            self.append_bound(session, waiting)

    def _closed(self, session: "GatewaySession") -> None:
        self.succession.closed(session)
        # The client had ended its side: all replies are queued now, so end ours.
        session.disconnect(Cause.EOF)

    def _finished(self, call: DeferredCall) -> None:
        """A deferred call is done: what it held up goes on."""
        session = call.session
        if isinstance(session, TellOwner):
            self.tells.done(call.kind, session)
        elif call.kind == CLOSED:
            self._closed(session)
        elif session.hears_commits:
            session.on_committed()

    def begin_replay(self) -> Replay:
        """Begin to tell of the sessions that a successor takes over; the shard must be vacant."""
        return Replay(self.succession, self.log)
