"""One life of a worker, from its grant until it is gone or fenced."""

from cluster.gateway.remote.remote_control import RemotePeer
from cluster.shared.liveness import Liveness

__all__ = ["WorkerLife"]


class WorkerLife:
    """Who has a shard's lane now."""

    __slots__ = (
        "batches_waited",
        "committed_told",
        "control_identity",
        "coroutines_full",
        "coroutines_waited",
        "create_time",
        "decode_errors",
        "done_before",
        "first_position",
        "incarnation",
        "is_ready",
        "liveness",
        "peer",
        "pid",
        "tells_full",
        "unhandled_packets",
    )

    def __init__(
        self,
        incarnation: int,
        first_position: int,
        control_identity: bytes,
        pid: int,
        create_time: float,
        liveness: Liveness,
        done_before: int = 0,
        peer: RemotePeer | None = None,
    ) -> None:
        self.incarnation = incarnation
        self.first_position = first_position
        """The record that it goes on with; a commit behind it is a commit of this life."""
        self.done_before = done_before
        """How many deferred calls its predecessors have done; one more is progress as well."""
        self.control_identity = control_identity
        self.pid = pid
        self.create_time = create_time
        self.liveness = liveness
        self.is_ready = False
        self.decode_errors = 0
        self.tells_full = 0
        self.unhandled_packets = 0
        self.coroutines_full = 0
        self.coroutines_waited = 0
        self.batches_waited = 0
        """As its last heartbeat told, all six."""
        self.peer = peer
        """Who it is, on another machine; None for a process of this one."""
        self.committed_told = False
