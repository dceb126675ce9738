"""The place of a shard's worker, and what gateway and status are told of it."""

from cluster.shared.messages import WorkerReport
from cluster.shared.node_status import WorkerState, WorkerStatus
from cluster.supervisor.child import Child
from cluster.supervisor.place import Place

__all__ = ["ShardPlace"]


class ShardPlace(Place):
    """The process of a shard over all its lives. Times are seconds of any steady clock."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.state: WorkerState = "starting"
        self.restarts = 0
        """Processes that were started after the first one."""
        self.end_due: float | None = None
        """Until when the process is to have ended, if it was asked to; then it is killed."""
        self._is_overdue = False
        self._was_replaced = False
        self._last_pid: int | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the process was asked to end, so that another has its shard."""
        return self.child is not None and (self.end_due is not None or self._is_overdue)

    @property
    def is_cut_off(self) -> bool:
        """Whether the gateway takes nothing more from the process, which is being killed."""
        return self.state in ("stuck", "fenced")

    def is_slow_to_start(self, now: float, after_s: float) -> bool:
        """As for all places; but of a process that was cut off it is known what is wrong."""
        return super().is_slow_to_start(now, after_s) and not self.is_cut_off

    def started(self, child: Child, now: float) -> None:
        super().started(child, now)
        self.state = "starting"
        if self._last_pid is not None and not self._was_replaced:
            self.restarts += 1
        self._was_replaced = False
        self._last_pid = child.pid

    def proved(self, pid: int, now: float) -> bool:
        """Process `pid` was of use, see `RestartPolicy`; False if it is not the shard's latest.

        If that one has ended in the meantime, its successor is due at once.
        """
        if pid != self._last_pid:
            return False
        if self.policy.life_proved() and self.restart_due is not None:
            self.restart_due = now
        return True

    # -- another process is to have the shard ------------------------------------------------------

    def asked_to_end(self, due: float) -> None:
        """The process is to end in good order until `due`."""
        self.end_due = due

    def kill_if_overdue(self, now: float) -> bool:
        """Kill a process that has not ended when it was asked to; return whether that was so."""
        if self.child is None or self.end_due is None or now < self.end_due:
            return False
        self.end_due = None
        self._is_overdue = True
        self.child.kill()
        return True

    def ends_as_asked(self, exit_code: int) -> bool:
        """Whether the process, which is reaped, ended because it was asked to."""
        return self.is_ending and (exit_code == 0 or self._is_overdue)

    def replaced(self, now: float) -> None:
        """The process ended because it was asked to; its successor, due at once, is no restart."""
        self.withdraw()
        self._was_replaced = True
        self.restart_due = now

    def _forget(self) -> None:
        super()._forget()
        self.state = "backoff"
        self.end_due = None
        self._is_overdue = False

    # -- telling -----------------------------------------------------------------------------------

    def report(self) -> WorkerReport:
        """Return what the gateway is to know."""
        return WorkerReport(
            shard=self.index, pid=self.pid, state=self.state, restarts=self.restarts
        )

    def status(self, lane: str) -> WorkerStatus:
        """Return what `cluster status` shows when the gateway cannot be asked."""
        return WorkerStatus(
            shard=self.index, pid=self.pid, state=self.state, restarts=self.restarts, lane=lane
        )
