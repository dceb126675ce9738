"""Carries out what a worker published: one batch after the other, records in order.

A `send` goes out straight from the batch when nothing waits for that client, and is copied only if
it must wait; those that follow one another go out together. What is for many, a broadcast or a
publish, is copied once and shared by all queues; it reaches those whom it is for as of the moment
it begins, and goes out in slices, so that a fan-out to thousands holds up only its own lane. A
batch counts as applied when its last record is.
"""

from collections.abc import Iterator

from cluster.gateway.counters import Counters
from cluster.gateway.fan_out import FAN_OUT_SLICE, FanOut
from cluster.gateway.groups import GroupTable
from cluster.gateway.node_broadcasts import NodeBroadcasts
from cluster.gateway.node_groups import NodeGroups
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.outbound_steps import Step, check_records, read_steps
from cluster.gateway.session import GatewaySession
from cluster.gateway.shard import Shard
from cluster.gateway.user_requests import UserRequests
from cluster.iocp.session_fan_out import send_now_each_its_own
from cluster.shared.group_records import check_group, read_join, read_publish
from cluster.shared.lane import OutboundBatch
from cluster.shared.records import (
    ACCEPT,
    BROADCAST,
    DEFER,
    DISCONNECT,
    DONE,
    FORGET,
    JOIN,
    KEEP,
    LEAVE,
    PUBLISH,
    SAVE,
    SEND,
    TELL,
)
from cluster.shared.saved_records import check_forget, read_keep

__all__ = ["OutboundApplier"]

_FOR_MANY = frozenset({BROADCAST, PUBLISH})
_OF_GROUPS = frozenset({JOIN, LEAVE})
_OF_SHARD = frozenset({KEEP, FORGET})


class OutboundApplier:
    """Applies the batches of one lane to the sessions of the node."""

    __slots__ = (
        "_broadcasts",
        "_budget",
        "_counters",
        "_fan_out",
        "_groups",
        "_log",
        "_node_groups",
        "_sessions",
        "_steps",
        "_steps_end",
        "_succession",
        "_tells",
        "_user_requests",
        "batch",
    )

    def __init__(
        self,
        shard: Shard,
        sessions: dict[int, GatewaySession],
        users: NodeUsers,
        groups: GroupTable[GatewaySession],
        counters: Counters,
        broadcasts: NodeBroadcasts,
        node_groups: NodeGroups,
    ) -> None:
        """Apply what the worker of `shard` publishes to `sessions`, which are only looked up.

        Which user each one is, by `users`, and its `groups`, change as the worker asks. What is
        for other nodes as well goes to `broadcasts` and `node_groups`.
        """
        self._tells = shard.tells
        self._broadcasts = broadcasts
        self._node_groups = node_groups
        self._log = shard.log
        self._sessions = sessions
        self._groups = groups
        self._counters = counters
        self._succession = shard.succession
        self._user_requests = UserRequests(sessions, users, shard.succession)
        self._fan_out = FanOut(counters)
        self.batch: OutboundBatch | None = None
        """The batch that is applied in part; `advance` goes on with it."""
        self._steps: Iterator[Step] = iter(())
        self._steps_end = 0
        self._budget = 0

    def start(self, batch: OutboundBatch) -> bool:
        """Carry out `batch`; False when it was not finished in one go.

        Raises LaneViolation when any record of it cannot be; then nothing was carried out. Raises
        RecordError for a payload that cannot be read, and stops there.
        """
        assert self.batch is None
        records = batch.records
        view = records if isinstance(records, memoryview) else memoryview(records)
        steps, end = read_steps(view, 0)
        if end < len(view):
            check_records(view, end)
        elif len(steps) == 1 and steps[0][0] == SEND:
            self._send(steps[0][2])  # type: ignore[arg-type]  # packets for several sessions
            return True
        self.batch = batch
        self._steps = iter(steps)
        self._steps_end = end
        return self.advance()

    def advance(self) -> bool:
        """Go on with the batch in hand; True when it is done.

        Raises LaneViolation if the batch was changed after it was started, or saves more than is
        allowed; RecordError for a payload that cannot be read.
        """
        batch = self.batch
        assert batch is not None
        self._budget = FAN_OUT_SLICE
        if self._fan_out.is_active and not self._goes_on():
            return False
        records = batch.records
        view = records if isinstance(records, memoryview) else memoryview(records)
        while self._take_steps():
            if self._steps_end == len(view):
                if self._succession.saves.has_pending:
                    self._succession.saves.check()
                self.batch = None
                return True
            steps, self._steps_end = read_steps(view, self._steps_end)
            self._steps = iter(steps)
        return False

    def abandon(self) -> None:
        """Forget the batch in hand: its incarnation was fenced."""
        self.batch = None
        self._fan_out.abandon()
        self._undo_groups()
        self._succession.abandon()
        self._tells.abandon()

    def _take_steps(self) -> bool:
        """Carry out the steps that are at hand; False when the budget is spent."""
        for kind, session_id, payload in self._steps:
            if isinstance(payload, dict):
                self._send(payload)
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
                assert self.batch is not None
                commit = self.batch.commit
                self._succession.deferred.defer(self._log, commit, session_id, payload)
            elif kind == DONE:
                self._succession.deferred.done(session_id, payload)
            elif kind == DISCONNECT:
                self._disconnect(session_id, payload)
            elif kind == TELL:
                self._tells.add(bytes(payload))
            elif kind in _OF_SHARD:
                self._save(kind, bytes(payload))
            elif kind in _OF_GROUPS:
                self._change_group(kind, session_id, bytes(payload))
            elif kind == ACCEPT:
                session = self._sessions.get(session_id)
                if session is not None:
                    session.accept()
            else:
                self._user_requests.carry_out(kind, session_id, bytes(payload))
        return True

    def _send(self, run: dict[int, memoryview]) -> None:
        """Send its packets to each of these sessions."""
        counters = self._counters
        if len(run) == 1:  # most batches of a server with time to spare
            ((session_id, packets),) = run.items()
            session = self._sessions.get(session_id)
            if session is not None and session.send_now(packets):
                counters.sends += 1
                counters.bytes_sent += len(packets)
            else:
                counters.add("replies_to_gone_sessions")
            return
        sessions = [session for session in map(self._sessions.get, run) if session is not None]
        if len(sessions) == len(run):
            buffers = list(run.values())
        else:
            buffers = [run[session.id] for session in sessions]
        sends, num_bytes = send_now_each_its_own(sessions, buffers)
        counters.sends += sends
        counters.bytes_sent += num_bytes
        if sends < len(run):
            counters.add("replies_to_gone_sessions", len(run) - sends)

    def _disconnect(self, session_id: int, cause: memoryview) -> None:
        # Noted also when the connection is gone: what its client sent last may still be handled.
        self._succession.end(session_id)
        session = self._sessions.get(session_id)
        if session is not None:
            session.disconnect(str(cause, "utf-8", "replace"))

    def _save(self, kind: int, payload: bytes) -> None:
        name, blob = read_keep(payload) if kind == KEEP else (check_forget(payload), None)
        self._succession.saves.save(name, blob)

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
