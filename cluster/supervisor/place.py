"""The place of a process, as the supervisor sees it: its processes, one after the other.

It knows its process and when the next one is due. What a death means is decided by its restart
policy; what follows for the node, by the supervisor.
"""

from cluster.supervisor.child import Child
from cluster.supervisor.restart_policy import GiveUp, Restart, RestartPolicy

__all__ = ["Place"]


class Place:
    """One process over all its lives. Times are seconds of any steady clock."""

    def __init__(self) -> None:
        self.policy = RestartPolicy()
        self.child: Child | None = None
        self.was_ready = False
        """Whether the process, or the last one that there was, has got ready."""
        self.started_at = 0.0
        self.restart_due: float | None = None
        """When the next process is to be started, if one is."""
        self._is_told_slow = False

    @property
    def pid(self) -> int | None:
        """The pid of the process, None while there is none."""
        return None if self.child is None else self.child.pid

    @property
    def version(self) -> int | None:
        """The version of the application that the process imports, None while there is none."""
        return None if self.child is None else self.child.version

    def started(self, child: Child, now: float) -> None:
        """`child` is the process of this place now."""
        self.child = child
        self.was_ready = False
        self.started_at = now
        self.restart_due = None
        self._is_told_slow = False
        self.policy.life_started()

    def became_ready(self, now: float) -> None:
        """The process has got ready; told once for each, or more often."""
        self.was_ready = True
        self.policy.life_ready(now)

    def is_slow_to_start(self, now: float, after_s: float) -> bool:
        """Whether the process is not ready after that time; True once for each."""
        if self.child is None or self._is_told_slow or now < self.started_at + after_s:
            return False
        self._is_told_slow = True
        return not self.was_ready

    def ended(self, now: float) -> Restart | GiveUp:
        """The process is dead and reaped; return what follows, which is noted as well."""
        self._forget()
        decision = self.policy.life_ended(now)
        self.restart_due = now + decision.delay_s if isinstance(decision, Restart) else None
        return decision

    def stopped(self) -> None:
        """The process has ended because it was told to; there is no successor."""
        self.withdraw()
        self.restart_due = None

    def withdraw(self) -> None:
        """The process was ended for a reason that is not its own, and is reaped."""
        self._forget()
        self.policy.life_withdrawn()

    def _forget(self) -> None:
        """There is no process any more."""
        self.child = None
