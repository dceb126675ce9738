"""A place for a spare, as the supervisor sees it: the processes that wait in it, one by one.

A spare that is given a shard leaves its place, which is filled a moment later. One that ends
by itself is succeeded after a pause, by the rules for workers, but is never given up while shards
are served: the node only takes longer over the next death.
"""

from cluster.supervisor.child import Child
from cluster.supervisor.place import Place
from cluster.supervisor.restart_policy import BACKOFF_MAX_S, GiveUp, Restart, RestartPolicy

__all__ = ["REFILL_AFTER_S", "Spare"]

REFILL_AFTER_S = 0.25
"""A place that was left is filled after this time. By then its process has taken its shard over,
also one of many sessions; the imports of the next one would compete with it for processors."""


class Spare(Place):
    """One of the processes that wait. Times are seconds of any steady clock."""

    def __init__(self) -> None:
        super().__init__()
        self.is_retired = False
        """Whether the process was killed because it is to have no shard any more."""

    @property
    def is_ready(self) -> bool:
        """Whether the process has its application imported, and waits."""
        return self.child is not None and self.was_ready

    @property
    def is_awaited(self) -> bool:
        """Whether a process is soon to wait here that does not yet; not if the last one failed."""
        return (self.is_retired or not self.is_ready) and not self.policy.failures

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
        decision = super().ended(now)
        if self.restart_due is None:
            self.restart_due = now + BACKOFF_MAX_S
        return decision

    def retire(self) -> None:
        """End the process; its place is filled again when it is reaped, if somebody says so."""
        if self.child is not None:
            self.is_retired = True
            self.child.kill()

    def _forget(self) -> None:
        super()._forget()
        self.is_retired = False
