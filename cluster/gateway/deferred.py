"""The handler calls that are committed and not done, because they go on in coroutines.

A worker names them; what they are about is copied from the gateway's own log before the commit
frees it, so a successor is given what the client sent, whatever became of the worker. A batch
counts when it is committed, and is forgotten otherwise. No I/O; the time is told.

The calls of a session that are deferred are the last ones of it that are committed, in order:
what comes behind a deferred call is deferred too. So the first of them is the one in progress.
"""

from struct import error as StructError
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.iocp.packet_framing import HEADER
from cluster.shared.deferred_bytes import deferred_bytes, deferred_bytes_max
from cluster.shared.lane import Commit, LaneViolation
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.records import (
    CLOSED,
    DEFERRED,
    FINISHED,
    OF_SHARDS,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD_BYTES,
    SEQUENCE,
)
from cluster.shared.takeover import DeferredRecord

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession
    from cluster.gateway.shard_tells import TellOwner

__all__ = ["Deferred", "DeferredCall"]


class DeferredCall(NamedTuple):
    """One handler call; `payload` is the packet with its header, or what the record holds."""

    session: "GatewaySession | TellOwner"
    """Whose it is."""
    kind: int
    sequence: int
    """0 if it is not of a packet."""
    payload: bytes


class Deferred:
    """What the workers of one shard have deferred. For the dispatching thread.

    Bounded by `deferred_bytes_max` of the lane's capacity, and one call.
    """

    __slots__ = (
        "_calls",
        "_done",
        "_new",
        "_pending_bytes",
        "_since",
        "closing",
        "done_count",
        "num_bytes",
    )

    def __init__(self) -> None:
        self._calls: dict[Commit, DeferredCall] = {}  # in the order in which they were committed
        self._since: dict[Commit, float] = {}
        self.num_bytes = 0
        """As `deferred_bytes` counts them."""
        self.done_count = 0
        """Calls that were deferred and are done, of all workers together."""
        self.closing: set[int] = set()
        """The sessions whose `closed` is deferred: they have not ended for their worker."""
        # The batch in hand.
        self._new: dict[Commit, DeferredCall] = {}
        self._done: dict[Commit, None] = {}
        self._pending_bytes = 0

    @property
    def count(self) -> int:
        """Calls that are committed and not done."""
        return len(self._calls)

    def __contains__(self, name: object) -> bool:
        return name in self._calls

    def find(self, name: Commit) -> DeferredCall | None:
        """Return the call of that position and packet index, if it is deferred."""
        return self._calls.get(name)

    def oldest(self) -> tuple[DeferredCall, float] | None:
        """Return the call that was deferred first, and when, as `commit` was told; None if none."""
        name = next(iter(self._calls), None)
        return None if name is None else (self._calls[name], self._since[name])

    # -- the batch in hand -------------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Whether the batch in hand changes anything."""
        return bool(self._new or self._done)

    def defer(
        self, log: InboundLog, commit: Commit, session_id: int, payload: bytes | memoryview
    ) -> None:
        """Keep the calls that a `defer` record names, once the batch in hand is committed.

        `commit` is that of the batch, which has to cover them. Raises LaneViolation for calls
        that are not there, done or deferred already, or too many.
        """
        try:
            position, first, count = DEFERRED.unpack(payload)
        except StructError:
            raise LaneViolation(f"a defer record of {len(payload)} bytes") from None
        entry = log.entry_at(position)
        name = Commit(position, first)
        # Nobody owns a record about credit, which asks for no call.
        if entry is None or entry[1] is None or entry[1].id != session_id:
            why = f"of no record that session {session_id:#x} has sent"
            raise _impossible(name, count, why)
        kind, session, _, packet_count, record = entry
        if count < 1 or first + count > (packet_count if kind == PACKETS else 1):
            raise _impossible(name, count, f"of a record of {packet_count} packets")
        if name < log.committed:
            raise _impossible(name, count, f"behind {log.committed}")
        if (position, first + count - 1) >= commit:
            raise _impossible(name, count, f"and not committed by {commit}")
        calls = _calls_of(session, kind, record, first, count)
        bytes_max = deferred_bytes_max(log.capacity_bytes)
        for index, call in enumerate(calls, first):
            name = Commit(position, index)
            if name in self._new:
                raise LaneViolation(f"{name} is deferred twice")
            if self.num_bytes + self._pending_bytes >= bytes_max:
                raise LaneViolation(f"more is deferred than the {bytes_max} bytes that may be")
            self._new[name] = call
            self._pending_bytes += deferred_bytes(call.payload)

    def done(self, session_id: int, payload: bytes | memoryview) -> None:
        """Forget the call that a `done` record names, once the batch in hand is committed.

        Raises LaneViolation for one that is not deferred.
        """
        try:
            name = Commit(*FINISHED.unpack(payload))
        except StructError:
            raise LaneViolation(f"a done record of {len(payload)} bytes") from None
        call = self._new.pop(name, None)
        if call is None:
            call = self._calls.get(name)
            if call is None or name in self._done:
                raise LaneViolation(f"{name} is done, and was not deferred")
            self._done[name] = None
        if call.session.id != session_id:
            raise LaneViolation(f"{name} is done, but not of session {session_id:#x}")
        self._pending_bytes -= deferred_bytes(call.payload)

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        self._new.clear()
        self._done.clear()
        self._pending_bytes = 0

    def commit(self, now: float) -> list[DeferredCall]:
        """The batch in hand is committed, at `now` in seconds; return the calls that are done."""
        done = [self._calls.pop(name) for name in self._done]
        for name in self._done:
            del self._since[name]
        self.done_count += len(done)
        for call in done:
            self._count(call, -1)
        for call in self._new.values():
            self._count(call, 1)
        self._calls.update(self._new)
        self._since.update(dict.fromkeys(self._new, now))
        self.abandon()
        return done

    def _count(self, call: DeferredCall, sign: int) -> None:
        num_bytes = deferred_bytes(call.payload)
        self.num_bytes += sign * num_bytes
        session: Any = call.session
        if call.kind == PACKETS:
            # What a client has caused and nobody has done: too much, and it is not read.
            session.uncommitted_bytes += sign * num_bytes
        elif call.kind in OF_SHARDS:
            session.is_deferred = sign > 0
        elif call.kind == CLOSED and sign > 0:
            self.closing.add(call.session.id)
        elif call.kind == CLOSED:
            self.closing.remove(call.session.id)

    # -- the successor -----------------------------------------------------------------------------

    def packet_counts(self) -> dict[int, int]:
        """Return how many packets of each session are deferred."""
        counts: dict[int, int] = {}
        for session, kind, _, _ in self._calls.values():
            if kind == PACKETS:
                counts[session.id] = counts.get(session.id, 0) + 1
        return counts

    def renew(self, session: "TellOwner", payload: bytes) -> None:
        """Give the call of `session` another payload, of the same length, for the successor."""
        for name, call in self._calls.items():
            if call.session is session:
                assert len(payload) == len(call.payload)
                self._calls[name] = call._replace(payload=payload)

    def replay(self) -> list[DeferredRecord]:
        """Return what a successor has to do, each session's calls in their order."""
        return [
            DeferredRecord(
                session=call.session.id,
                position=name.position,
                index=name.packet_index,
                kind=call.kind,
                sequence=call.sequence,
                payload=call.payload,
            )
            for name, call in self._calls.items()
        ]

    def check_invariants(self) -> None:
        """Raise AssertionError unless names, order and bytes agree."""
        names = list(self._calls)
        assert names == sorted(names)
        assert list(self._since) == names
        assert self.num_bytes == sum(deferred_bytes(call.payload) for call in self._calls.values())
        closing = {call.session.id for call in self._calls.values() if call.kind == CLOSED}
        assert self.closing == closing


def _impossible(first: Commit, count: int, why: str) -> LaneViolation:
    return LaneViolation(f"{count} calls from {first} on are deferred, {why}")


def _calls_of(
    session: "GatewaySession | TellOwner", kind: int, record: bytes, first: int, count: int
) -> list[DeferredCall]:
    """Return `count` handler calls that `record` asks for, from number `first` on."""
    if kind != PACKETS:
        return [DeferredCall(session, kind, 0, record[RECORD_BYTES:])]
    sequence: int = SEQUENCE.unpack_from(record, RECORD_BYTES)[0]
    offset = PACKETS_OVERHEAD
    for _ in range(first):
        offset += HEADER.unpack_from(record, offset)[0]
    calls = []
    for index in range(first, first + count):
        end = offset + HEADER.unpack_from(record, offset)[0]
        calls.append(DeferredCall(session, kind, sequence + index, record[offset:end]))
        offset = end
    return calls
