"""The lane contract: a pair of ordered logs between a gateway and the worker of one shard.

Inbound records are numbered by position, from 1, and are kept by the gateway until the worker
has committed them; reading frees nothing. Outbound goes in batches. A batch carries the
incarnation that wrote it, a serial, and a commit — the inbound position of which it is the
effect — and becomes visible as a whole: a packet's output and its consumption happen together
or not at all. The gateway applies a batch only if its incarnation is the granted one and its
serial the next; anything else is a violation that ends that worker's life on the lane.

This file has the contract; the plain objects that decide are in `lane_inbound` and
`lane_outbound`, and `shm_lane`, `zmq_lane` and `local_lane` move the bytes. One suite,
`tests/contract/test_lane_*.py`, runs on every kind.
"""

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from cluster.shared.lane_inbound import InboundLog

__all__ = [
    "START",
    "Commit",
    "Freed",
    "GatewayLane",
    "InboundChunk",
    "LaneClosedError",
    "LaneHub",
    "LaneState",
    "LaneViolation",
    "OutboundBatch",
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


class OutboundBatch(NamedTuple):
    """What a worker published in one step; `records` are whole records, maybe none."""

    incarnation: int
    serial: int
    commit: Commit
    records: bytes | memoryview


Freed = tuple[int, Any, int, int, bytes]
"""An inbound record: its kind, what it belongs to, its length, how many packets it has, itself.

A plain tuple, because there is one for each recv.
"""


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
        """The last batch of the present incarnation that was applied; 0 before the first."""
        ...

    @property
    def serial_received(self) -> int:
        """The last batch of the present incarnation that `receive` has looked at."""
        ...

    @property
    def needs_flush(self) -> bool:
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
        self,
        session: int,
        first_sequence: int,
        packets: bytes | memoryview,
        packet_count: int,
        owner: Any,
    ) -> None:
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
        Raises OSError, and the lane stays vacant, when there is no memory for it.
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


class LaneHub(Protocol):
    """The gateway's lanes of one kind, and what it waits on for all of them. For one thread."""

    kind: str
    """Name in ready line and status: shm, zmq."""

    endpoint: str
    """Where workers open their ends."""

    @property
    def dropped_batches(self) -> int:
        """Batches of incarnations that have no lane (any more)."""
        ...

    @property
    def lanes_refused(self) -> int:
        """Processes that came for a lane and were sent away, as too many did at once."""
        ...

    is_edge_triggered: bool
    """Whether a flush may swallow the announcement of what has come: then wait only after `pump`
    has returned False, with nothing flushed in between."""

    def descriptors(self) -> Sequence[int]:
        """Return what becomes readable when `pump` may find something, or `clear` has to act."""
        ...

    def clear(self, fd: int) -> None:
        """Attend to `fd`, one of the descriptors, which was found readable."""
        ...

    def pump(self, messages_max: int) -> bool:
        """Take up to `messages_max` messages to their lanes; whether more may wait."""
        ...

    def may_wait(self) -> bool:
        """Have the descriptors tell of what comes from now on.

        False if something is there already: then do not wait. Call `has_waited` after the wait.
        """
        ...

    def has_waited(self) -> None:
        """Let the descriptors be silent, for as long as lanes are looked at without waiting."""
        ...

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> GatewayLane:
        """Return a new vacant lane; raises OSError when there is no memory for it."""
        ...

    def close(self) -> None:
        """Give everything back but the lanes. Idempotent."""
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

    @property
    def is_drained(self) -> bool:
        """Whether `receive` is known to have nothing; False where only a call of it would tell."""
        ...

    def receive(self) -> InboundChunk | None:
        """Return the next records, or None. Raises LaneViolation for a gap in the positions."""
        ...

    def publish(self, commit: Commit, records: list[bytes]) -> bool:
        """Publish `records` and `commit` as one batch, in one step.

        Returns False, and nothing was published, when there is no room, or no connection yet:
        receive, and try again whenever `has_events` was True. What is longer than the room there
        is may go on its way with later calls of `receive` and `has_events`. Raises
        LaneClosedError.
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
