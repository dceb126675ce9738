"""A place for a spare, as the supervisor sees it: the processes that wait in it, one by one.

A spare that is given a shard leaves its place, which is filled a moment later. One that ends
by itself is succeeded after a pause, by the rules for workers, but is never given up while shards
are served: the node only takes longer over the next death.
"""

from cluster.supervisor.child import Child
from cluster.supervisor.restart_policy import BACKOFF_MAX_S, GiveUp, Restart, RestartPolicy

__all__ = ["REFILL_AFTER_S", "Spare"]

REFILL_AFTER_S = 0.25
"""A place that was left is filled after this time. By then its process has taken its shard over,
also one of many sessions; the imports of the next one would compete with it for processors."""


class Spare:
    """One of the processes that wait. Times are seconds of any steady clock."""

    def __init__(self) -> None:
        self.policy = RestartPolicy()
        self.child: Child | None = None
        self.is_ready = False
        """Whether the gateway has told that it waits."""
        self.restart_due: float | None = None
        """When the next process is to be started, if one is."""
        self.started_at = 0.0
        self.is_retired = False
        """Whether the process was killed because it is to have no shard any more."""
        self._waited_for_since: float | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the process, None while there is none."""
        return None if self.child is None else self.child.pid

    @property
    def version(self) -> int | None:
        """The version that the process imports, None while there is none."""
        return None if self.child is None else self.child.version

    def started(self, child: Child, now: float) -> None:
        """`child` is going to wait."""
        self.child = child
        self.is_ready = False
        self.restart_due = None
        self.started_at = now
        self._waited_for_since = now
        self.policy.life_started()

    def became_ready(self, now: float) -> None:
        """The process has its application imported, and waits."""
        self.is_ready = True
        self.policy.life_ready(now)

    def is_slow_to_start(self, now: float, after_s: float) -> bool:
        """Whether the process is not ready after that time; True once for each."""
        if self._waited_for_since is None or now < self._waited_for_since + after_s:
            return False
        self._waited_for_since = None
        return self.child is not None and not self.is_ready

    def take(self, now: float) -> Child:
        """Take out the process, which is given a shard; the next one is due in a moment."""
        child = self.child
        assert child is not None, "nobody waits here"
        self._forget()
        self.policy = RestartPolicy()  # it was of use
        self.restart_due = now + REFILL_AFTER_S
        return child

    def ended(self, now: float) -> Restart | GiveUp:
        """The process is dead and reaped; return what its policy says.

        Whatever that is, a successor is due, unless the caller takes that back.
        """
        self._forget()
        decision = self.policy.life_ended(now)
        delay_s = decision.delay_s if isinstance(decision, Restart) else BACKOFF_MAX_S
        self.restart_due = now + delay_s
        return decision

    def retire(self) -> None:
        """End the process; its place is filled again when it is reaped, if somebody says so."""
        if self.child is not None:
            self.is_retired = True
            self.child.kill()

    def withdraw(self) -> None:
        """The process was ended for a reason that is not its own, and is reaped."""
        self._forget()
        self.policy.life_withdrawn()

    def _forget(self) -> None:
        self.child = None
        self.is_ready = False
        self.is_retired = False
