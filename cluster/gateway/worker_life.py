"""One life of a worker, from its grant until it is gone or fenced."""

from cluster.gateway.remote.remote_control import RemotePeer
from cluster.shared.liveness import Liveness

__all__ = ["WorkerLife"]


class WorkerLife:
    """Who has a shard's lane now."""

    __slots__ = (
        "committed_told",
        "control_identity",
        "counted",
        "create_time",
        "done_before",
        "first_position",
        "incarnation",
        "is_ready",
        "liveness",
        "peer",
        "pid",
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
        self.counted: dict[str, int] = {}
        """What it counts and has told, by the name of the counter."""
        self.peer = peer
        """Who it is, on another machine; None for a process of this one."""
        self.committed_told = False
