"""What the gateway tells its supervisor, and what it learns from it. There may be none."""

from collections.abc import Callable

from cluster.gateway.worker_life import WorkerLife
from cluster.shared.messages import (
    ControlMessage,
    Drained,
    GatewayAlive,
    GatewayReady,
    Reload,
    Reloaded,
    ShardReport,
    SpareReport,
    WorkerReport,
)
from cluster.shared.node_status import InHand, WorkerState, WorkerStatus

__all__ = ["SupervisorLink"]

_ASKERS_MAX = 1_000
"""Who may wait for the end of a reload: far more than there is reason to."""


class SupervisorLink:
    """The one peer of the control plane that launches the others."""

    __slots__ = ("_asked", "_askers", "_identity", "_ready", "_reports", "_send")

    def __init__(self, send: Callable[[bytes, ControlMessage], bool], shard_count: int) -> None:
        self._send = send
        self._identity: bytes | None = None
        self._ready: GatewayReady | None = None
        self._reports: list[WorkerReport | None] = [None] * shard_count
        self._asked = 0
        self._askers: dict[bytes, int] = {}
        """Who waits for the end of a reload, and the number of its request."""

    def hello(self, identity: bytes) -> None:
        """A supervisor is there; the last one to say so is told everything from now on."""
        self._identity = identity
        if self._ready is not None:
            self._tell(self._ready)

    def set_ready(self, ready: GatewayReady) -> None:
        """The gateway listens."""
        self._ready = ready
        self._tell(ready)

    def beat(self) -> None:
        """Tell that the gateway works."""
        self._tell(GatewayAlive())

    def report(self, report: ShardReport | SpareReport) -> None:
        """Tell what became of a shard's life, or of a spare."""
        self._tell(report)

    def drained(self) -> None:
        """Tell that the drain is through."""
        self._tell(Drained())

    def reload(self, identity: bytes) -> None:
        """Pass on that somebody asks for a reload, who is told how it ends."""
        if self._identity is None:
            reason = "no `cluster up` runs this node: whoever starts its workers replaces them"
            self._send(identity, Reloaded(succeeded=False, reason=reason))
        elif len(self._askers) >= _ASKERS_MAX:
            reason = f"{_ASKERS_MAX} others wait for one already"
            self._send(identity, Reloaded(succeeded=False, reason=reason))
        else:
            self._asked += 1
            self._askers[identity] = self._asked
            self._tell(Reload(number=self._asked))

    def reloaded(self, outcome: Reloaded) -> None:
        """A reload has ended: those who had asked for it are told."""
        for identity, number in list(self._askers.items()):
            if number <= outcome.number:
                del self._askers[identity]
                self._send(identity, outcome)

    def worker_report(self, report: WorkerReport) -> None:
        """Note what the supervisor knows of a shard's process."""
        if 0 <= report.shard < len(self._reports):
            self._reports[report.shard] = report

    def worker_status(
        self,
        shard: int,
        lane: str,
        life: WorkerLife | None,
        is_draining: bool,
        in_hand: InHand | None = None,
    ) -> WorkerStatus:
        """Put together what the gateway and its supervisor know of a shard."""
        report = self._reports[shard]
        state: WorkerState
        if life is not None and life.is_ready:
            state = "draining" if is_draining else "ready"
        elif report is not None and report.state in ("backoff", "stuck", "fenced"):
            state = report.state
        else:
            state = "starting"
        pid = life.pid if life is not None else (report.pid if report is not None else None)
        restarts = report.restarts if report is not None else 0
        return WorkerStatus(
            shard=shard, pid=pid, state=state, restarts=restarts, lane=lane, in_hand=in_hand
        )

    def _tell(self, message: ControlMessage) -> None:
        if self._identity is not None:
            self._send(self._identity, message)
