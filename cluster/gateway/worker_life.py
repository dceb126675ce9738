"""A process that asks for a shard, and one life of a worker, from its grant until it is gone or
fenced."""

from typing import NamedTuple

from cluster.gateway.remote.remote_control import RemotePeer
from cluster.gateway.shard import Shard
from cluster.shared.liveness import Liveness
from cluster.shared.messages import GatewayHeartbeat, Hello

__all__ = ["Applicant", "WorkerLife"]


class Applicant(NamedTuple):
    """Who asks for a shard, and by which connection."""

    control_identity: bytes
    hello: Hello
    peer: RemotePeer | None = None
    """Who it is, on another machine; None for a process of this one."""


class WorkerLife:
    """Who has a shard's lane now."""

    __slots__ = (
        "_done_before",
        "_first_commit",
        "applicant",
        "committed_told",
        "counted",
        "incarnation",
        "is_ready",
        "liveness",
        "shard",
    )

    def __init__(
        self, applicant: Applicant, shard: Shard, incarnation: int, liveness: Liveness
    ) -> None:
        """Go on with `shard` at its commit."""
        self.applicant = applicant
        self.shard = shard
        self.incarnation = incarnation
        self.liveness = liveness
        self.is_ready = False
        self.counted: dict[str, int] = {}
        """What it counts and has told, by the name of the counter."""
        self.committed_told = False
        self._first_commit = shard.log.committed
        self._done_before = shard.succession.deferred.done_count

    @property
    def has_progressed(self) -> bool:
        """Whether something is done for good that was not when it began: a packet, or a call that
        its predecessors have deferred."""
        return (
            self.shard.log.committed != self._first_commit
            or self.shard.succession.deferred.done_count != self._done_before
        )

    def heartbeat(self) -> GatewayHeartbeat:
        """Return what it is told of how far the gateway is."""
        return GatewayHeartbeat(
            incarnation=self.incarnation,
            position_sent=self.shard.log.sent_position,
            serial_received=self.shard.lane.serial_applied,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.applicant.hello.pid

    @property
    def peer(self) -> RemotePeer | None:
        """Who it is, on another machine; None for a process of this one."""
        return self.applicant.peer

    @property
    def control_identity(self) -> bytes:
        """What its control connection is known by."""
        return self.applicant.control_identity
