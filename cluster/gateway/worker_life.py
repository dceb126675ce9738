"""A process that asks for a shard, and one life of a worker, from its grant until it is gone or
fenced."""

from typing import NamedTuple

from cluster.gateway.remote.remote_control import RemotePeer
from cluster.shared.liveness import Liveness
from cluster.shared.messages import Hello

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
        "applicant",
        "committed_told",
        "counted",
        "done_before",
        "first_position",
        "incarnation",
        "is_ready",
        "liveness",
    )

    def __init__(
        self,
        applicant: Applicant,
        incarnation: int,
        first_position: int,
        done_before: int,
        liveness: Liveness,
    ) -> None:
        self.applicant = applicant
        self.incarnation = incarnation
        self.first_position = first_position
        """The record that it goes on with; a commit behind it is a commit of this life."""
        self.done_before = done_before
        """How many deferred calls its predecessors have done; one more is progress as well."""
        self.liveness = liveness
        self.is_ready = False
        self.counted: dict[str, int] = {}
        """What it counts and has told, by the name of the counter."""
        self.committed_told = False

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
