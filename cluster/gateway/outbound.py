"""Carries out what a worker published: one batch after the other, records in order.

A `send` goes out straight from the batch when nothing waits for that client, and is copied
only if it must wait. What is for many, a broadcast or a publish, is copied once and shared by all
queues; it reaches those whom it is for as of the moment it begins, and goes out in slices, so that
a fan-out to thousands holds up only its own lane. A batch counts as applied when its last record
is.
"""

from collections.abc import Iterator

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE, FanOut
from cluster.gateway.groups import GroupTable
from cluster.gateway.node_broadcasts import NodeBroadcasts
from cluster.gateway.node_groups import NodeGroups
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.outbound_headers import Header, check_headers, read_headers
from cluster.gateway.session import GatewaySession
from cluster.gateway.shard_tells import ShardTells
from cluster.gateway.succession import Succession
from cluster.gateway.user_requests import UserRequests
from cluster.shared.group_records import check_group, read_join, read_publish
from cluster.shared.lane import GatewayLane, LaneViolation, OutboundBatch
from cluster.shared.records import (
    ACCEPT,
    BROADCAST,
    DEFER,
    DISCONNECT,
    DONE,
    JOIN,
    LEAVE,
    PUBLISH,
    RECORD_BYTES,
    SAVE,
    SEND,
    TELL,
)

__all__ = ["OutboundApplier"]

_FOR_MANY = frozenset({BROADCAST, PUBLISH})
_OF_GROUPS = frozenset({JOIN, LEAVE})


class OutboundApplier:
    """Applies the batches of one lane to the sessions of the node."""

    __slots__ = (
        "_batch",
        "_broadcasts",
        "_budget",
        "_counters",
        "_fan_out",
        "_groups",
        "_headers",
        "_headers_end",
        "_lane",
        "_node_groups",
        "_offset",
        "_sessions",
        "_succession",
        "_tells",
        "_user_requests",
    )

    def __init__(
        self,
        lane: GatewayLane,
        sessions: dict[int, GatewaySession],
        users: NodeUsers,
        groups: GroupTable[GatewaySession],
        counters: Counters,
        succession: Succession,
        broadcasts: NodeBroadcasts,
        node_groups: NodeGroups,
        tells: ShardTells | None = None,
    ) -> None:
        """Work on `sessions`, which others change; the applier only looks them up.

        Which user each one is, by `users`, and its `groups`, change as the worker asks. What a
        successor is to know goes to `succession`, what is for other nodes as well to `broadcasts`
        and `node_groups`, messages for other shards to `tells`; without these there is nobody to
        tell.
        """
        self._tells = tells
        self._broadcasts = broadcasts
        self._node_groups = node_groups
        self._lane = lane
        self._sessions = sessions
        self._groups = groups
        self._counters = counters
        self._succession = succession
        self._user_requests = UserRequests(sessions, users, succession)
        self._fan_out = FanOut(counters)
        self._batch: OutboundBatch | None = None
        self._headers: Iterator[Header] = iter(())
        self._headers_end = 0
        self._offset = 0
        self._budget = 0

    @property
    def is_fanning_out(self) -> bool:
        """Whether a batch is applied in part; `advance` goes on with it."""
        return self._batch is not None

    @property
    def batch(self) -> OutboundBatch | None:
        """The batch that is applied in part."""
        return self._batch

    def start(self, batch: OutboundBatch) -> bool:
        """Carry out `batch`; False when it was not finished in one go.

        Raises LaneViolation when any record of it cannot be; then nothing was carried out. Raises
        RecordError for a payload that cannot be read, and stops there.
        """
        assert self._batch is None
        records = batch.records
        view = records if isinstance(records, memoryview) else memoryview(records)
        headers, offset = read_headers(view, 0)
        if offset < len(view):
            check_headers(view, offset)
        self._batch = batch
        self._headers = iter(headers)
        self._headers_end = offset
        self._offset = 0
        return self.advance()

    def advance(self) -> bool:
        """Go on with the batch in hand; True when it is done.

        Raises LaneViolation if the batch was changed after it was started, RecordError for a
        payload that cannot be read.
        """
        batch = self._batch
        assert batch is not None
        self._budget = FAN_OUT_SLICE
        if self._fan_out.is_active and not self._goes_on():
            return False
        records = batch.records
        view = records if isinstance(records, memoryview) else memoryview(records)
        while self._apply_records(view):
            if self._headers_end == len(view):
                self._batch = None
                return True
            headers, self._headers_end = read_headers(view, self._headers_end)
            self._headers = iter(headers)
        return False

    def abandon(self) -> None:
        """Forget the batch in hand: its incarnation was fenced."""
        self._batch = None
        self._fan_out.abandon()
        self._undo_groups()
        self._succession.abandon()
        if self._tells is not None:
            self._tells.abandon()

    def _apply_records(self, view: memoryview) -> bool:
        """Carry out the records whose headers are at hand; False when the budget is spent."""
        find = self._sessions.get
        counters = self._counters
        offset = self._offset
        sends = record_bytes = 0
        try:
            for length, kind, _, session_id in self._headers:
                payload = view[offset + RECORD_BYTES : offset + length]
                offset += length
                if kind == SEND:
                    session = find(session_id)
                    if session is not None and session.send_now(payload):
                        sends += 1
                        record_bytes += length
                    else:
                        counters.add("replies_to_gone_sessions")
                elif kind in _FOR_MANY:
                    if kind == PUBLISH:
                        self._start_publish(session_id, bytes(payload))
                    else:
                        self._start_broadcast(bytes(payload))
                    if not self._goes_on():
                        return False
                elif kind == SAVE:
                    self._succession.save(session_id, bytes(payload))
                elif kind == DEFER:
                    assert self._batch is not None
                    log, commit = self._lane.log, self._batch.commit
                    self._succession.deferred.defer(log, commit, session_id, payload)
                elif kind == DONE:
                    self._succession.deferred.done(session_id, payload)
                elif kind == DISCONNECT:
                    self._disconnect(session_id, payload)
                elif kind == TELL:
                    self._tell(bytes(payload))
                elif kind in _OF_GROUPS:
                    self._change_group(kind, session_id, bytes(payload))
                elif kind == ACCEPT:
                    session = find(session_id)
                    if session is not None:
                        session.accept()
                else:
                    self._user_requests.carry_out(kind, session_id, bytes(payload))
        finally:
            self._offset = offset
            counters.sends += sends
            counters.bytes_sent += record_bytes - sends * RECORD_BYTES
        return True

    def _disconnect(self, session_id: int, cause: memoryview) -> None:
        # Noted also when the connection is gone: what its client sent last may still be handled.
        self._succession.end(session_id)
        session = self._sessions.get(session_id)
        if session is not None:
            session.disconnect(str(cause, "utf-8", "replace"))

    def _tell(self, payload: bytes) -> None:
        if self._tells is None:
            raise LaneViolation("a message where there is nobody to tell")
        self._tells.add(payload)

    def _change_group(self, kind: int, session_id: int, payload: bytes) -> None:
        # Noted also when the connection is gone: `on_disconnected` may ask for its groups.
        session = self._sessions.get(session_id)
        if kind == LEAVE:
            name = check_group(payload)
            self._succession.left(session_id, name)
            if session is not None:
                self._groups.leave(session, name)
            return
        request, name = read_join(payload)
        self._succession.join_asked(session_id, request, name)
        if session is None:
            return
        if not self._groups.join(session, name):
            self._counters.add("joins_refused")
        elif request:
            self._node_groups.ask(session, name, request)

    def _undo_groups(self) -> None:
        """Let whoever has joined or left in the batch in hand be where the commit has them."""
        for kind, session_id, value in self._succession.pending:
            session = self._sessions.get(session_id)
            if session is None or kind not in _OF_GROUPS:
                continue
            groups = self._succession.groups(session_id)
            self._groups.set_groups(session, groups)
            if kind == LEAVE and groups.get(value):
                # It may have been waiting for its answer when it was left.
                self._node_groups.ask(session, value, groups[value])

    def _start_broadcast(self, packets: bytes) -> None:
        self._counters.add("broadcasts")
        self._broadcasts.broadcast(packets)
        self._fan_out.begin(packets, list(self._sessions.values()))

    def _start_publish(self, left_out: int, payload: bytes) -> None:
        name, packets = read_publish(payload)
        self._counters.add("publishes")
        self._node_groups.publish(name, payload)
        members = self._groups.members(name)
        if left_out:
            members = [session for session in members if session.id != left_out]
        self._fan_out.begin(packets, members)

    def _goes_on(self) -> bool:
        """Go on with the fan-out in hand; True if it is at its end and there is budget left."""
        self._budget = self._fan_out.advance(self._budget)
        return self._budget > 0
