"""The place of a shard's worker, as the supervisor sees it: its processes, one after the other.

It knows what its process is doing and when the next one is due. What a death means is decided by
its restart policy; what follows for the node, by the supervisor.
"""

from cluster.shared.messages import WorkerReport
from cluster.shared.node_status import WorkerState, WorkerStatus
from cluster.supervisor.child import Child
from cluster.supervisor.restart_policy import GiveUp, Restart, RestartPolicy

__all__ = ["ShardPlace"]


class ShardPlace:
    """The process of a shard over all its lives. Times are seconds of any steady clock."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.policy = RestartPolicy()
        self.child: Child | None = None
        self.state: WorkerState = "starting"
        self.was_ready = False
        """Whether the process, or the last one that there was, has taken up its work."""
        self.restarts = 0
        """Processes that were started after the first one."""
        self.restart_due: float | None = None
        """When the next process is to be started, if one is."""
        self.end_due: float | None = None
        """Until when the process is to have ended, if it was asked to; then it is killed."""
        self._is_overdue = False
        self._was_replaced = False
        self._last_pid: int | None = None
        self._waited_for_since: float | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the process, None while there is none."""
        return None if self.child is None else self.child.pid

    @property
    def version(self) -> int | None:
        """The version that the process runs, None while there is none."""
        return None if self.child is None else self.child.version

    @property
    def is_ending(self) -> bool:
        """Whether the process was asked to end, so that another has its shard."""
        return self.child is not None and (self.end_due is not None or self._is_overdue)

    @property
    def is_cut_off(self) -> bool:
        """Whether the gateway takes nothing more from the process, which is being killed."""
        return self.state in ("stuck", "fenced")

    def started(self, child: Child, now: float) -> None:
        """`child` is the shard's process now."""
        self.child = child
        self._waited_for_since = now
        self.state = "starting"
        self.was_ready = False
        self.restart_due = None
        if self._last_pid is not None and not self._was_replaced:
            self.restarts += 1
        self._was_replaced = False
        self._last_pid = child.pid
        self.policy.life_started()

    def became_ready(self, now: float) -> None:
        """The process has taken up its work; told once for each, or more often."""
        self.was_ready = True
        self.policy.life_ready(now)

    def is_slow_to_start(self, now: float, after_s: float) -> bool:
        """Whether the process is not ready after that time; True once for each."""
        if self._waited_for_since is None or now < self._waited_for_since + after_s:
            return False
        self._waited_for_since = None
        return self.child is not None and self.state == "starting"

    def ended(self, now: float) -> Restart | GiveUp:
        """The process is dead and reaped; return what follows, which is noted as well."""
        self._forget()
        decision = self.policy.life_ended(now)
        self.restart_due = now + decision.delay_s if isinstance(decision, Restart) else None
        return decision

    def proved(self, pid: int, now: float) -> bool:
        """Process `pid` was of use, see `RestartPolicy`; False if it is not the shard's latest.

        If that one has ended in the meantime, its successor is due at once.
        """
        if pid != self._last_pid:
            return False
        if self.policy.life_proved() and self.restart_due is not None:
            self.restart_due = now
        return True

    def stopped(self) -> None:
        """The process has ended because it was told to; there is no successor."""
        self.withdraw()
        self.restart_due = None

    def withdraw(self) -> None:
        """The process was ended for a reason that is not its own, and is reaped."""
        self._forget()
        self.policy.life_withdrawn()

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
        self.child = None
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
