"""What follows when a process of a node has ended: a successor, a pause before it, or the end.

How often a process may die is its restart policy's to say. What is decided here is whether a death
counts at all: not if the process was asked to end, if its gateway was gone or had no memory for it,
or if a change of the application's files is to blame.
"""

import logging

from cluster.shared.exit_codes import CANNOT_START, LOST_GATEWAY, TRY_AGAIN
from cluster.shared.messages import ShardGivenUp, SpareGone, WorkerGone
from cluster.shared.standard_streams import tell
from cluster.shared.start_failure import StartFailure
from cluster.supervisor.child import Child
from cluster.supervisor.console import say
from cluster.supervisor.course import EXIT_CANNOT_START, EXIT_NOT_DRAINED, Course, Phase
from cluster.supervisor.memory_kills import LATELY_S
from cluster.supervisor.node import Node
from cluster.supervisor.place import Place
from cluster.supervisor.reload import Reloader
from cluster.supervisor.restart_policy import BACKOFF_FIRST_S, BACKOFF_MAX_S, GiveUp, Restart
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare

__all__ = ["Deaths"]

logger = logging.getLogger("cluster.supervisor")

VERDICT_WAIT_S = 0.5
"""Before a shard is given up: the gateway tells in this time whether the death was of use."""

TRY_AGAIN_S = 0.5
"""Pause before a worker asks again a gateway that was out of memory or descriptors."""

STOP_NEWS_S = 0.5
"""A worker that ends in a drain with exit code 0 was told to by the gateway, which tells us so
within this time; or somebody else told it to, and its shard needs a successor."""

KILLED = -9
"""How a process ends that was killed; none does on Windows."""


class Deaths:
    """What becomes of a node whose processes end. Told of each once, when it is reaped.

    For the supervisor's main thread. Times are seconds of any steady clock.
    """

    def __init__(self, node: Node, course: Course, reload: Reloader) -> None:
        """Decide for `node`, which is on `course`; `reload` knows versions of its application."""
        self._node = node
        self._course = course
        self._reload = reload
        self._give_ups: dict[int, tuple[Child, GiveUp, float]] = {}
        """Shards that will be given up when the time is there, unless the gateway objects."""
        self._told_failure = ""

    # -- workers -----------------------------------------------------------------------------------

    def worker_ended(self, shard: ShardPlace, worker: Child, exit_code: int, now: float) -> None:
        """The process of `shard` has ended."""
        was_replaced = shard.ends_as_asked(exit_code)
        self._node.gateway.tell(
            WorkerGone(shard=shard.index, pid=worker.pid, was_replaced=was_replaced)
        )
        failure = self._node.start_failure(worker) if exit_code == CANNOT_START else None
        is_version_at_fault = not shard.was_ready and self._is_version_at_fault(
            worker, exit_code, failure
        )
        if (
            exit_code == CANNOT_START
            and not is_version_at_fault
            and self._cannot_start(worker, failure)
        ):
            return
        course = self._course
        if course.is_drained:
            shard.stopped()
        elif was_replaced:
            shard.replaced(now)
        elif course.phase is Phase.DRAINING and exit_code == 0:
            shard.stopped()
            shard.restart_due = now + STOP_NEWS_S
        elif self._has_lost_gateway(exit_code, now):
            _lost_gateway(shard, worker, now)
        elif exit_code == TRY_AGAIN and course.phase is not Phase.STARTING:
            # No fault of the worker's, and what is short may be there again soon.
            logger.warning("%s found no lane; trying again", worker)
            shard.withdraw()
            shard.restart_due = now + TRY_AGAIN_S
        else:
            self._worker_failed(shard, worker, is_version_at_fault, now)
        self._node.report(shard)
        self._check_drained()

    def _worker_failed(
        self, shard: ShardPlace, worker: Child, is_version_at_fault: bool, now: float
    ) -> None:
        """The death counts."""
        decision = shard.ended(now)
        if is_version_at_fault:
            if self._course.phase is Phase.STARTING:
                decision = self._reload.try_later(shard, worker)
            else:
                decision = self._reload.try_again(shard, decision)
        self._log_death(worker, decision)
        if isinstance(decision, GiveUp) and self._course.phase is Phase.STARTING:
            self._give_up(worker, decision)
        elif isinstance(decision, GiveUp):
            # The gateway may be about to say that this death had a packet set aside.
            self._give_ups[shard.index] = (worker, decision, now + VERDICT_WAIT_S)

    def was_of_use(self, shard: ShardPlace, now: float) -> None:
        """The life of `shard` that ended last was of use after all: it is not given up."""
        if self._give_ups.pop(shard.index, None) is not None:
            shard.restart_due = now

    def forgive(self, now: float) -> None:
        """What workers died of too often may be mended: give none of them up."""
        for shard in self._node.shards:
            if shard.index in self._give_ups:
                shard.restart_due = now
        self._give_ups.clear()

    @property
    def next_due(self) -> float:
        """When `check_give_ups` has something to do."""
        return min((due for _, _, due in self._give_ups.values()), default=float("inf"))

    def check_give_ups(self, now: float) -> None:
        """Give up the shards for which the gateway has had its time to object."""
        for shard, (child, decision, due) in list(self._give_ups.items()):
            if now >= due:
                del self._give_ups[shard]
                self._give_up(child, decision)
                if self._course.phase is Phase.DRAINING:
                    self._node.gateway.tell(ShardGivenUp(shard=shard))

    # -- spares ------------------------------------------------------------------------------------

    def spare_ended(self, spare: Spare, child: Child, exit_code: int, now: float) -> None:
        """The process that waited in the place `spare`, or was to, has ended."""
        self._node.gateway.tell(SpareGone(pid=child.pid))
        self._node.report_spares()
        course = self._course
        if spare.is_retired:
            self._node.spares.retired(spare, now)
            self._check_drained()
            return
        failure = self._node.start_failure(child) if exit_code == CANNOT_START else None
        is_starting = course.phase is not Phase.DRAINING and not spare.is_ready
        if is_starting and self._is_version_at_fault(child, exit_code, failure):
            spare.ended(now)
            if course.phase is Phase.STARTING:
                self._reload.try_later(spare, child)
            logger.warning("%s: %s", child, child.describe_exit())
            return
        if exit_code == CANNOT_START and self._cannot_start(child, failure):
            return
        if course.phase is Phase.DRAINING or course.is_drained:
            spare.withdraw()
            self._check_drained()
        elif self._has_lost_gateway(exit_code, now):
            _lost_gateway(spare, child, now)
        else:
            self._spare_failed(spare, child, now)

    def _spare_failed(self, spare: Spare, child: Child, now: float) -> None:
        """The death counts, but ends no node that was ready."""
        decision = spare.ended(now)
        if self._course.phase is Phase.STARTING and isinstance(decision, GiveUp):
            self._give_up(child, decision)
        elif isinstance(decision, GiveUp):
            decision = Restart(BACKOFF_MAX_S)
        self._log_death(child, decision)

    # -- the gateway -------------------------------------------------------------------------------

    def gateway_ended(self, gateway: Child, exit_code: int, now: float) -> None:
        """The gateway has ended, and its last words were heard."""
        course = self._course
        if course.phase is Phase.DRAINING:
            self._node.gateway.stopped()
            self._gateway_ended_in_drain(gateway, exit_code, now)
            return
        if course.phase is Phase.STARTING and exit_code == CANNOT_START:
            course.finish(EXIT_CANNOT_START)
            return
        course.goes_on()
        self._give_ups.clear()
        self._reload.gateway_ended()
        decision = self._node.gateway.ended(now)
        self._log_death(gateway, decision)
        if isinstance(decision, GiveUp):
            self._give_up(gateway, decision)
        self._node.kill_workers()

    def _gateway_ended_in_drain(self, gateway: Child, exit_code: int, now: float) -> None:
        course = self._course
        if not course.is_drained and exit_code != 0:
            logger.error("the gateway ended with %s before it was drained", gateway.describe_exit())
            course.finish(EXIT_NOT_DRAINED)
            return
        course.drained(now)  # its exit code tells it too
        # Whom the gateway's word to stop did not reach, nobody else would tell.
        self._node.stop_workers()
        self._check_drained()

    # -- of any process ----------------------------------------------------------------------------

    def _is_version_at_fault(
        self, child: Child, exit_code: int, failure: StartFailure | None
    ) -> bool:
        """Whether a process that was never ready ended because of what its files say."""
        if self._course.phase is Phase.STARTING:
            return exit_code == CANNOT_START and self._reload.may_be_mended(child, failure)
        return self._reload.is_at_fault(child, exit_code, failure)

    def _has_lost_gateway(self, exit_code: int, now: float) -> bool:
        return exit_code == LOST_GATEWAY and self._node.gateway.has_been_silent(now)

    def _cannot_start(self, worker: Child, failure: StartFailure | None) -> bool:
        """Tell why a worker cannot start; return whether that ends a node that was never ready."""
        self._tell_failure(worker, failure)
        if self._course.phase is not Phase.STARTING:
            return False
        self._course.finish(EXIT_CANNOT_START)
        return True

    def _tell_failure(self, worker: Child, failure: StartFailure | None) -> None:
        """Tell why a worker cannot start: once, though the same may be true of all of them."""
        if self._course.exit_code is not None:
            return  # whoever was first has told
        if failure is None:
            say(f"{worker.role} ended with exit code {CANNOT_START} and did not say why")
        elif failure.text != self._told_failure:
            self._told_failure = failure.text
            tell(failure.text)

    def _give_up(self, child: Child, decision: GiveUp) -> None:
        say(
            f"gave up restarting {child.role}: {decision.lives} lives in {decision.within_s:.1f} s "
            f"were of no use, the last ended with {self._described(child)}"
        )
        self._course.give_up()

    def _log_death(self, child: Child, decision: Restart | GiveUp) -> None:
        follows = "no successor"
        if isinstance(decision, Restart):
            follows = (
                f"successor in {decision.delay_s:g} s" if decision.delay_s else "successor at once"
            )
        logger.warning("%s: %s; %s", child, self._described(child), follows)

    def _described(self, child: Child) -> str:
        """Return how the child ended, and what it may have ended of if somebody else killed it."""
        end = child.describe_exit()
        if child.exit_code() == KILLED and not child.was_killed:
            count = self._node.memory_kills.lately()
            if count:
                end += (
                    f", probably for want of memory: the system has killed {count} "
                    f"{'process' if count == 1 else 'processes'} for that in the last "
                    f"{LATELY_S:g} s"
                )
        return end

    def _check_drained(self) -> None:
        """End when everybody has left."""
        if self._course.is_drained and not self._node.children:
            self._course.finish_drain()


def _lost_gateway(place: Place, child: Child, now: float) -> None:
    """A process ended because its gateway is silent, which says nothing against it."""
    logger.warning("%s has lost the gateway", child)
    place.withdraw()
    place.restart_due = now + BACKOFF_FIRST_S
