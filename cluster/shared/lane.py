"""The lane contract: a pair of ordered logs between a gateway and the worker of one shard.

Inbound records are numbered by position, from 1, and are kept by the gateway until the worker
has committed them; reading frees nothing. Outbound goes in batches. A batch carries the
incarnation that wrote it, a serial, and a commit — the inbound position of which it is the
effect — and becomes visible as a whole: a packet's output and its consumption happen together
or not at all. The gateway applies a batch only if its incarnation is the granted one and its
serial the next; anything else is a violation that ends that worker's life on the lane.

This file has the contract and the plain objects that decide; `zmq_lane` and `local_lane` move
the bytes. One suite, `tests/contract/test_lane_*.py`, runs on every kind.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

__all__ = [
    "START",
    "Commit",
    "Freed",
    "GatewayLane",
    "InboundChunk",
    "InboundCursor",
    "InboundLog",
    "LaneClosedError",
    "LaneState",
    "LaneViolation",
    "OutboundBatch",
    "OutboundSequence",
    "OutboundWindow",
    "WorkerLane",
]


class LaneViolation(Exception):
    """The other side broke the contract; its incarnation ends. The message says how."""


class LaneClosedError(Exception):
    """The lane was closed, or this incarnation was fenced; nothing more can be published."""


class LaneState(Enum):
    """Whether a lane has a worker."""

    VACANT = "vacant"
    GRANTED = "granted"
    CLOSED = "closed"


class Commit(NamedTuple):
    """How far a worker is: the record to go on with, and how many packets of it are done.

    Everything before packet `packet_index` of record `position` is done.
    """

    position: int
    packet_index: int


START = Commit(1, 0)


class InboundChunk(NamedTuple):
    """Records that follow one another; the first has position `first_position`."""

    first_position: int
    records: bytes | memoryview


@dataclass(frozen=True, slots=True)
class OutboundBatch:
    """What a worker published in one step; `records` are whole records, maybe none.

    `more` marks a part: it is to be applied together with the parts that follow, at the first
    one without the mark, whose commit counts for all.
    """

    incarnation: int
    serial: int
    commit: Commit
    records: bytes | memoryview
    more: bool = False


class Freed(NamedTuple):
    """An inbound record that was committed: its kind, what it belonged to, and its length."""

    kind: int
    owner: Any
    num_bytes: int


class GatewayLane(Protocol):
    """The gateway's end; it lives as long as the gateway. For one thread."""

    kind: str
    """Name in ready line and status: shm, zmq, local."""

    @property
    def state(self) -> LaneState:
        """Whether a worker has the lane."""
        ...

    @property
    def log(self) -> "InboundLog":
        """The inbound positions, and what is not committed yet. Look, do not touch."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the granted worker has opened its end, so that `flush` can reach it."""
        ...

    @property
    def serial_applied(self) -> int:
        """The last batch of the present incarnation that was applied; 0 before the first.

        A part that was taken counts at once: it needs no room any more.
        """
        ...

    @property
    def needs_acknowledgement(self) -> bool:
        """Whether the worker may wait for something that only a flush brings.

        That is room, when much was applied since it last heard, or records that were appended
        before it opened its end. Look after receiving and applying what has come.
        """
        ...

    @property
    def has_received(self) -> bool:
        """Whether `receive` may return something."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the uncommitted records have reached the capacity.

        `append` never refuses: whoever fills the lane stops reading its source while this
        holds, so that what is over stays bounded by what was being read.
        """
        ...

    def append(
        self, kind: int, session: int, payload: bytes, packet_count: int = 0, owner: Any = None
    ) -> int:
        """Add a record, to be seen by the worker after `flush`; return its position.

        `owner` comes back in `Freed` when the record is committed.
        """
        ...

    def append_packets(
        self, session: int, first_sequence: int, packets: bytes, packet_count: int, owner: Any
    ) -> int:
        """Add a `packets` record: `packet_count` complete packets, numbered `first_sequence` on."""
        ...

    def flush(self) -> bool:
        """Show the worker what was appended. False when not all could go: flush again later.

        It also tells the worker what was applied, so that one that only pushes gets room back.
        """
        ...

    def grant(self, incarnation: int, identity: bytes) -> Commit:
        """Give the lane to a new incarnation, and return where it goes on.

        `identity` is a name that no incarnation had before. The lane must be vacant. The records
        from there on are sent to the worker in order, by a `flush` once it has opened its end.
        """
        ...

    def revoke(self) -> None:
        """Fence the present incarnation: nothing that it publishes from now on is applied."""
        ...

    def receive(self) -> OutboundBatch | None:
        """Return the next batch of the granted incarnation, in order, or None.

        `apply` it before the next `receive`; its bytes are valid until then. Raises
        LaneViolation for a batch that is not the next one, and for a commit that goes back or
        past what was sent: nothing of it is to be carried out, and the caller revokes. Batches
        of fenced incarnations are dropped and counted.
        """
        ...

    def apply(self, batch: OutboundBatch) -> list[Freed]:
        """Commit `batch`, whose records have all been carried out; return what it freed."""
        ...

    def close(self) -> None:
        """Give everything back. Idempotent."""
        ...


class WorkerLane(Protocol):
    """The worker's end; it lives as long as the incarnation. For one thread.

    Its first batch tells the gateway that this end is open, so a worker begins by publishing
    the commit of its grant with no records; nothing comes before that.
    """

    @property
    def position_received(self) -> int:
        """The last inbound position that has come."""
        ...

    @property
    def serial_published(self) -> int:
        """The last batch that was published; 0 before the first."""
        ...

    def receive(self) -> InboundChunk | None:
        """Return the next records, or None. Raises LaneViolation for a gap in the positions."""
        ...

    def publish(self, commit: Commit, records: list[bytes], more: bool = False) -> bool:
        """Publish `records` and `commit` as one batch, in one step.

        Returns False, and nothing was published, when there is no room, or no connection yet:
        receive, and try again whenever `has_events` was True. A part (`more`) holds at least
        one record. Raises LaneClosedError.
        """
        ...

    def taken(self, serial: int) -> None:
        """Note that the gateway has applied every batch up to `serial`: that makes room."""
        ...

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when `has_events` may have become True.

        It may be edge-triggered: wait on it only after `has_events` was False, with no other
        call on the lane in between, because each may swallow the edge.
        """
        ...

    def has_events(self) -> bool:
        """Return whether `receive` may have something, or a refused `publish` may go now.

        Also re-arms the descriptor.
        """
        ...

    def close(self) -> None:
        """Give everything back. Idempotent."""
        ...


# What is freed by the commit, the number of packets, and the record itself. A plain tuple, and
# `Freed` made without its constructor, which is a Python function: there is one for each recv.
_Entry = tuple[Freed, int, bytes]
_new_tuple = tuple.__new__


class InboundLog:
    """Inbound positions and what is kept until it is committed. No I/O, no clock."""

    __slots__ = (
        "_committed",
        "_entries",
        "_first",
        "_sent",
        "_unsent",
        "capacity_bytes",
        "uncommitted_bytes",
    )

    def __init__(self, capacity_bytes: int) -> None:
        """Count as full from `capacity_bytes` uncommitted bytes on."""
        self.capacity_bytes = capacity_bytes
        self.uncommitted_bytes = 0
        self._entries: deque[_Entry] = deque()
        self._unsent: deque[bytes] = deque()
        self._first = 1  # position of the first entry
        self._sent = 0  # last position that the present incarnation was sent
        self._committed = START

    @property
    def position(self) -> int:
        """The last position appended; 0 before the first."""
        return self._first + len(self._entries) - 1

    @property
    def sent_position(self) -> int:
        """The last position that was handed to the present incarnation."""
        return self._sent

    @property
    def committed(self) -> Commit:
        """How far the worker is."""
        return self._committed

    @property
    def is_full(self) -> bool:
        """Whether as much is uncommitted as the log is meant to hold."""
        return self.uncommitted_bytes >= self.capacity_bytes

    @property
    def is_committed(self) -> bool:
        """Whether nothing is left to be done."""
        return not self._entries

    def append(self, kind: int, record: bytes, packet_count: int, owner: Any) -> int:
        """Add an encoded record; return its position."""
        num_bytes = len(record)
        freed = _new_tuple(Freed, (kind, owner, num_bytes))
        self._entries.append((freed, packet_count, record))
        self._unsent.append(record)
        self.uncommitted_bytes += num_bytes
        return self._first + len(self._entries) - 1

    @property
    def has_unsent(self) -> bool:
        """Whether the present incarnation was not sent everything yet."""
        return bool(self._unsent)

    def unsent(self, bytes_max: int) -> list[bytes]:
        """Return the records that follow the last one sent, up to `bytes_max` (at least one)."""
        taken: list[bytes] = []
        num_bytes = 0
        for record in self._unsent:
            num_bytes += len(record)
            if taken and num_bytes > bytes_max:
                break
            taken.append(record)
        return taken

    def mark_sent(self, count: int) -> None:
        """`count` more records were handed over."""
        unsent = self._unsent
        if count == len(unsent):
            unsent.clear()
        else:
            for _ in range(count):
                unsent.popleft()
        self._sent += count

    def rewind(self) -> Commit:
        """Forget what was sent, for a successor; return where it goes on."""
        self._sent = self._first - 1
        self._unsent = deque(entry[2] for entry in self._entries)
        return self._committed

    def check(self, commit: Commit) -> None:
        """Raise LaneViolation if `commit` goes back or past what was sent."""
        committed = self._committed
        if commit == committed:
            return  # also for a successor that was sent nothing yet, and starts inside a record
        position, packet_index = commit
        if commit < committed:
            raise LaneViolation(f"{commit} came after {committed}")
        if position > self._sent + 1:
            raise LaneViolation(f"{commit}, but only {self._sent} records were sent")
        if packet_index and (
            position > self._sent
            or not 0 < packet_index < self._entries[position - self._first][1]
        ):
            raise LaneViolation(f"{commit} is not inside a record that was sent")

    def commit(self, commit: Commit) -> list[Freed]:
        """Free what lies before `commit`, which `check` has passed."""
        entries = self._entries
        freed = []
        for _ in range(commit.position - self._first):
            entry = entries.popleft()
            self.uncommitted_bytes -= len(entry[2])
            freed.append(entry[0])
        self._first = commit.position
        self._committed = commit
        return freed

    def check_invariants(self) -> None:
        """Raise AssertionError unless positions and bytes agree."""
        assert self._first == self._committed.position
        assert self._committed.packet_index == 0 or (
            self._committed.packet_index < self._entries[0][1]
        )
        assert self._first - 1 <= self._sent
        assert self._sent + len(self._unsent) == self.position
        assert self.uncommitted_bytes == sum(len(entry[2]) for entry in self._entries)


class OutboundSequence:
    """Takes the granted incarnation's batches, one serial after the other, and joins parts."""

    __slots__ = (
        "_in_hand",
        "_parts",
        "_parts_bytes",
        "incarnation",
        "max_batch_bytes",
        "serial",
        "serial_applied",
    )

    def __init__(self, max_batch_bytes: int) -> None:
        """Allow batches of up to `max_batch_bytes` in all their parts."""
        self.max_batch_bytes = max_batch_bytes
        self.incarnation = 0
        self.serial = 0
        """The last batch or part that was taken."""
        self.serial_applied = 0
        """The last batch that was applied, or part that was taken."""
        self._in_hand: OutboundBatch | None = None
        self._parts: list[bytes | memoryview] = []
        self._parts_bytes = 0

    def grant(self, incarnation: int) -> None:
        """Expect the batches of `incarnation`, from serial 1."""
        if incarnation <= self.incarnation:
            raise ValueError(f"incarnation {incarnation} was granted after {self.incarnation}")
        self.incarnation = incarnation
        self.serial = self.serial_applied = 0

    def revoke(self) -> None:
        """Forget the parts of a batch whose last one did not come, and the batch in hand."""
        self._in_hand = None
        self._parts = []
        self._parts_bytes = 0

    def take(self, batch: OutboundBatch) -> OutboundBatch | None:
        """Take the next batch or part; return what is complete now, or None after a part.

        What it returned is to be `applied` before the next one. Raises LaneViolation when it is
        not the one expected, or too large.
        """
        if self._in_hand is not None:
            raise ValueError(f"batch {self.serial} is still to be applied")
        if batch.incarnation != self.incarnation:
            raise LaneViolation(
                f"a batch of incarnation {batch.incarnation}, but {self.incarnation} has the lane"
            )
        if batch.serial != self.serial + 1:
            raise LaneViolation(f"batch {batch.serial} came after batch {self.serial}")
        self.serial = batch.serial
        self._parts_bytes += len(batch.records)
        if self._parts_bytes > self.max_batch_bytes:
            raise LaneViolation(
                f"a batch of {self._parts_bytes} bytes; at most {self.max_batch_bytes}"
            )
        if batch.more:
            if not batch.records:
                # Any number of these would fit into the bound.
                raise LaneViolation("a part of a batch that holds nothing")
            self._parts.append(bytes(batch.records))
            self.serial_applied = batch.serial
            return None
        self._parts_bytes = 0
        if self._parts:
            parts, self._parts = [*self._parts, batch.records], []
            batch = OutboundBatch(batch.incarnation, batch.serial, batch.commit, b"".join(parts))
        self._in_hand = batch
        return batch

    def applied(self, batch: OutboundBatch) -> None:
        """`batch`, the last that `take` returned, was carried out."""
        if batch is not self._in_hand:
            raise ValueError(f"batch {batch.serial} was not received last, or its worker is fenced")
        self._in_hand = None
        self.serial_applied = batch.serial


class OutboundWindow:
    """How many outbound bytes a worker may have published that the gateway has not taken.

    The gateway tells what it has taken with the next records, and by itself only once that is
    a quarter of the capacity (`must_tell`). So a batch is refused only while at least as much is
    outstanding: then the gateway will tell, and nobody waits for a heartbeat.
    """

    __slots__ = (
        "_sizes",
        "capacity_bytes",
        "outstanding_bytes",
        "serial_published",
        "serial_taken",
    )

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.outstanding_bytes = 0
        self.serial_published = 0
        self.serial_taken = 0
        self._sizes: deque[int] = deque()

    def has_room(self, num_bytes: int) -> bool:
        """Whether a batch of `num_bytes` may go; however large, while little is outstanding."""
        outstanding_bytes = self.outstanding_bytes
        return outstanding_bytes + num_bytes <= self.capacity_bytes or not self.must_tell(
            outstanding_bytes, self.capacity_bytes
        )

    @staticmethod
    def must_tell(taken_bytes: int, capacity_bytes: int) -> bool:
        """Whether the gateway has to tell that it has taken `taken_bytes` more."""
        return taken_bytes * 4 >= capacity_bytes

    def publish(self, num_bytes: int) -> int:
        """Count a batch that goes now; return its serial."""
        self._sizes.append(num_bytes)
        self.outstanding_bytes += num_bytes
        self.serial_published += 1
        return self.serial_published

    def taken(self, serial: int) -> None:
        """The gateway has applied every batch up to `serial`."""
        if serial > self.serial_published:
            raise LaneViolation(f"batch {serial} was taken, but {self.serial_published} published")
        while self.serial_taken < serial:
            self.serial_taken += 1
            self.outstanding_bytes -= self._sizes.popleft()


class InboundCursor:
    """The worker's check that no inbound record is missing."""

    __slots__ = ("position",)

    def __init__(self, first_position: int) -> None:
        self.position = first_position - 1
        """The last position received."""

    def advance(self, first_position: int, count: int) -> None:
        """Take `count` records from `first_position` on; LaneViolation after a gap."""
        if first_position != self.position + 1:
            raise LaneViolation(f"record {first_position} came after record {self.position}")
        self.position += count
