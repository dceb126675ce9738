"""`cluster reload`, `cluster up --reload`: has the workers of a node run what the application's
files say now.

Joins what decides (`Versions`, `next_steps`) to the node and the watch of its files. Nothing of it
counts as a death: a worker that is replaced was asked to end, and one that cannot start is tried
again for as long as the node runs. See docs/decisions/0017-reload.md.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.shared import messages
from cluster.shared.exit_codes import LOST_GATEWAY, TRY_AGAIN
from cluster.shared.start_failure import StartFailure
from cluster.supervisor.child import Child
from cluster.supervisor.file_watch import FileWatch
from cluster.supervisor.node import Node
from cluster.supervisor.place import Place
from cluster.supervisor.replacement import (
    CANDIDATES_MAX,
    ReplaceWorker,
    Retire,
    StartCandidate,
    next_steps,
)
from cluster.supervisor.restart_policy import BACKOFF_MAX_S, GiveUp, Restart
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare
from cluster.supervisor.versions import Verdict, Versions

__all__ = ["PYTHON_OPTIONS", "Reloader"]

logger = logging.getLogger("cluster.supervisor")

PYTHON_OPTIONS = ("-B",)
"""Compiled modules are known by the second and the size of their source: of two changes within a
second that leave the size, the second would not be seen. So workers write none."""

_END_START_WITHIN_S = 1.0
"""Time for a worker that is asked to end before it has started: it has nothing in hand, and in an
import it hears nothing."""

_NAMES_MAX = 3
"""Changed files that are named in the log."""


class Reloader:
    """The versions of a node's application. For the supervisor's main thread."""

    def __init__(
        self,
        node: Node,
        watch: FileWatch | None,
        end_within_s: float,
        write: Callable[[str], None],
    ) -> None:
        """Reload `node` when somebody asks, and when `watch`, which stays the caller's, has news.

        A worker gets `end_within_s` seconds to end in good order, then it is killed;
        `write` tells a person. The gateways of the node that start from now on let candidates wait.
        """
        self.versions = Versions()
        self.watch = watch
        self._node = node
        self._end_within_s = end_within_s
        self._write = write
        self._is_under_way = False
        self._has_ended = False
        """Whether the node is about to end, so that nobody waits for another version."""
        self._began_at = 0.0
        self._told_vacant = False
        self._asked: int | None = None
        """The last request that there is no version for yet."""
        self._number = 0
        """The last request that the latest version answers."""
        node.gateway.candidates_max = CANDIDATES_MAX
        if watch is not None:
            node.python_options = PYTHON_OPTIONS

    # -- what has happened -------------------------------------------------------------------------

    def ask(self, request: messages.Reload) -> None:
        """Somebody asks for a reload, whatever has changed."""
        self._asked = request.number

    def refuse(self, request: messages.Reload, reason: str) -> None:
        """Tell who asks for a reload that there is none now."""
        self._node.gateway.tell(
            messages.Reloaded(
                succeeded=False, is_refusal=True, reason=reason, number=request.number
            )
        )

    def gateway_ended(self) -> None:
        """Nobody waits for a reload any more; the next gateway counts requests anew."""
        self._asked = None
        self._number = 0

    def end(self, reason: str) -> None:
        """Tell who waits for a reload that there is none, since the node is about to end.

        No version follows any more, so a process that cannot start has nothing to wait for: its
        death counts like any other.
        """
        now = time.monotonic()
        for shard in self._node.shards:
            if shard.restart_due is not None:  # after a long pause, maybe
                shard.restart_due = now
        is_awaited = self._is_under_way and self.versions.verdict is not Verdict.FAILS
        if is_awaited or self._asked is not None:
            number = self._number if self._asked is None else self._asked
            self._node.gateway.tell(
                messages.Reloaded(succeeded=False, reason=reason, number=number)
            )
        self._is_under_way = False
        self._asked = None
        self._has_ended = True

    def take_changes(self) -> bool:
        """Make a version of what has changed, or is asked for; False if nothing is, or none
        follows any more."""
        changed = [] if self.watch is None else self.watch.take()
        if self._has_ended or (not changed and self._asked is None):
            return False
        if self._asked is not None:
            self._number, self._asked = self._asked, None
        version = self._node.version = self.versions.changed()
        logger.info("reload: version %d: %s", version, _names(changed) if changed else "asked for")
        self._is_under_way = True
        self._began_at = time.monotonic()
        self._told_vacant = False
        # Whatever processes died of, or could not start for, may be mended.
        self._node.forgive(time.monotonic())
        return True

    def spare_is_ready(self, child: Child) -> None:
        """A process waits: it has imported its version."""
        self.versions.imported(child.version)

    def worker_is_ready(self, child: Child) -> None:
        """A worker has started."""
        if self.versions.served(child.version) and child.version > 0:
            logger.info("reload: version %d starts", child.version)

    def may_be_mended(self, child: Child, failure: StartFailure | None) -> bool:
        """Return whether a process of a node that was never ready could not start for what its
        files say, or said: then the next change is worth waiting for.

        It is if the application raised; what else keeps a worker from starting is no matter of its
        files. The first time that is told, with what the process left to say in `failure`.
        """
        if self.watch is None:
            return False
        if child.version != self.versions.latest:
            return True
        if failure is None or not failure.traceback or self.versions.verdict is Verdict.SERVES:
            return False
        if self.versions.failed(child.version):
            self._tell(child, failure, "it is tried again, and so is each change")
        return True

    def is_at_fault(self, child: Child, exit_code: int, failure: StartFailure | None) -> bool:
        """Return whether a process that ended before it was ready did so because of its version.

        The first time that is told, with what the process left to say in `failure`.
        """
        gateway = self._node.gateway
        if (
            self._has_ended
            or exit_code == TRY_AGAIN
            or (exit_code == LOST_GATEWAY and gateway.has_been_silent(time.monotonic()))
        ):
            return False
        latest = self.versions.latest
        if latest == 0 or child.version != latest or self.versions.verdict is Verdict.SERVES:
            return False
        if self.versions.failed(child.version):
            follows = "and the next change is tried" if self.watch else "until another is asked for"
            reason = self._tell(child, failure, f"what runs goes on, {follows}")
            reason += self._describe_vacant(child)
            gateway.tell(messages.Reloaded(succeeded=False, reason=reason, number=self._number))
        return True

    def try_again(self, shard: ShardPlace, decision: Restart | GiveUp) -> Restart:
        """Return what follows, now that the process of `shard` could not start its version.

        That is a spare of an earlier version, else the version again: never the node's end.
        """
        now = time.monotonic()
        if self._has_earlier_spare():
            shard.restart_due = now
            return Restart(0.0)
        if isinstance(decision, GiveUp):
            shard.restart_due = now + BACKOFF_MAX_S
            decision = Restart(BACKOFF_MAX_S)
        self._tell_vacant(shard, decision.delay_s)
        return decision

    def try_later(self, place: Place, child: Child) -> Restart:
        """Return when `place` gets another process, in a node that was never ready: at the next
        change; and after a while, as what it lacks may come without one."""
        delay_s = BACKOFF_MAX_S if child.version == self.versions.latest else 0.0
        place.restart_due = time.monotonic() + delay_s
        return Restart(delay_s)

    def _has_earlier_spare(self) -> bool:
        return any(_is_earlier(spare, self.versions.latest) for spare in self._node.spares)

    def _describe_vacant(self, ended: Child) -> str:
        """Return what the latest version leaves without a worker, now that its process `ended`:
        more to say than why, "" if nothing.

        A process that is about to start is none if nothing has started with its version yet.
        """
        vacant = [
            str(shard.index)
            for shard in self._node.shards
            if shard.child in (None, ended)
            or (shard.version != self.versions.last_served and not shard.was_ready)
        ]
        if not vacant or self._has_earlier_spare():
            return ""
        whose = (
            f"worker {vacant[0]} has" if len(vacant) == 1 else f"workers {', '.join(vacant)} have"
        )
        return f"; {whose} no process, and the clients there wait for a version that starts"

    def _tell_vacant(self, shard: ShardPlace, delay_s: float) -> None:
        if self._told_vacant:
            return
        self._told_vacant = True
        self._write(
            f"cluster: reload: worker {shard.index} has no process, and none of an earlier version "
            f"waits: its clients wait for a version that starts; trying again in {delay_s:g} s, "
            f"and at each {'change' if self.watch else 'reload'}\n"
        )

    def _tell(self, child: Child, failure: StartFailure | None, what_follows: str) -> str:
        """Tell why a version does not start; return that in short."""
        if failure is not None:
            reason = failure.summary
            self._write(failure.traceback)
        else:
            reason = f"{child.role} ended with {child.describe_exit()} before it was ready"
        self._write(
            f"cluster: reload: version {child.version} does not start: {reason}; {what_follows}\n"
        )
        return reason

    # -- what follows ------------------------------------------------------------------------------

    def step(self) -> None:
        """Do what is to be done now, in a node that was ready and whose gateway is."""
        if not self.versions.latest:
            return
        node, spares = self._node, self._node.spares
        now = time.monotonic()
        for step in next_steps(self.versions, node.shards, spares.lasting, spares.candidates):
            match step:
                case StartCandidate():
                    node.start_candidate()
                case Retire(spare=spare):
                    spares.retire(spare)
                case ReplaceWorker(shard=shard):
                    within_s = self._end_within_s
                    if shard.state == "starting":
                        within_s = min(within_s, _END_START_WITHIN_S)
                    node.end_worker(shard, now + within_s)
        # What would fill the place of a spare is not known to be of use.
        spares.holds = self.versions.verdict is not Verdict.SERVES
        self._check_done(now)

    def _check_done(self, now: float) -> None:
        if not self._is_under_way or any(
            shard.state != "ready" or shard.version != self.versions.latest
            for shard in self._node.shards
        ):
            return
        # The version that comes next may not start. Then the spares of this one are all there are.
        if any(spare.is_awaited for spare in self._node.spares.lasting):
            return
        self._is_under_way = False
        logger.info(
            "reload: all workers run version %d, after %.2f s",
            self.versions.latest,
            now - self._began_at,
        )
        self._node.gateway.tell(messages.Reloaded(succeeded=True, number=self._number))


def _is_earlier(spare: Spare, latest: int) -> bool:
    return spare.version is not None and spare.version < latest and not spare.is_retired


def _names(changed: Sequence[str]) -> str:
    names = [Path(path).name for path in changed[:_NAMES_MAX]]
    more = len(changed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "") + " changed"
