"""The processes of a node as one thing: starting them, telling of them, ending them.

The gateway, its workers and its spares are of one life: workers know sessions of that gateway
only, so they start together, and none outlives it. What to do when is decided by the supervisor.
"""

import logging
import time
from collections.abc import Sequence

import msgspec

from cluster.shared.addresses import parse_listen
from cluster.shared.config import Config
from cluster.shared.messages import Assign, EndWorker
from cluster.shared.run_directory import RunDirectory, RunDirectoryError, RunDirectoryLock
from cluster.shared.start_failure import StartFailure, read_start_failure
from cluster.supervisor.child import Child, launch_spare, launch_worker
from cluster.supervisor.gateway_keeper import GatewayKeeper
from cluster.supervisor.memory_kills import MemoryKills
from cluster.supervisor.node_record import make_node_record, write_node_record
from cluster.supervisor.place import Place
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare
from cluster.supervisor.spares import Spares
from cluster.supervisor.upkeep import Upkeep

__all__ = ["Node"]

logger = logging.getLogger("cluster.supervisor")

LAUNCH_RETRY_S = 1.0
"""After a process could not be made, for example because the user has too many."""


class Node:
    """The gateway, the shards, the spares, and the record of them.

    For the supervisor's main thread.
    """

    def __init__(
        self, config: Config, run_directory: RunDirectory, lock: RunDirectoryLock | None = None
    ) -> None:
        """Prepare the node of `config`, whose run directory this process has locked by `lock`."""
        self._config = config
        self._run_directory = run_directory
        self._upkeep = Upkeep(run_directory, lock)
        self.memory_kills = MemoryKills()
        self.gateway = GatewayKeeper(run_directory, config.workers.worker_timeout_s)
        remote = config.remote.shards
        self.shards = [ShardPlace(i) for i in range(config.workers.count) if i not in remote]
        """Those whose workers are started here, in order; the others are served from elsewhere."""
        self.spares = Spares(config.workers.spares if self.shards else 0)
        self.version = 0
        """Which version of the application the processes import that are started from now on."""
        self.python_options: Sequence[str] = ()
        """Options of the interpreter for workers and spares."""
        self._spares_launched = 0
        self._record_is_old = True
        self._record_error = ""  # why the last one could not be written; empty if it could

    @property
    def children(self) -> list[Child]:
        """Every process that runs, or was not reaped yet."""
        places = [self.gateway, *self._places]
        return [place.child for place in places if place.child is not None]

    @property
    def _places(self) -> list[Place]:
        return [*self.shards, *self.spares]

    def shard(self, index: int) -> ShardPlace | None:
        """Return the shard with that number, None where it is not one of this supervisor's."""
        return next((shard for shard in self.shards if shard.index == index), None)

    @property
    def is_ready(self) -> bool:
        """Whether the gateway listens, every shard of this machine is served, and every spare
        waits."""
        return (
            self.gateway.ready is not None
            and all(shard.state == "ready" for shard in self.shards)
            and self.spares.are_ready
        )

    def next_due(self) -> float | None:
        """Return when the next process is to be started or spoken to, or None."""
        places: list[Place] = [*self.shards, *self.spares.fillable]
        dues = [self.gateway.next_due(), *(place.restart_due for place in places)]
        dues += [shard.end_due for shard in self.shards]
        dues += [child.kill_due for child in self.children]
        return min((due for due in dues if due is not None), default=None)

    # -- starting ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the gateway and, at the same time, all workers and spares.

        Raises OSError, RunDirectoryError.
        """
        self.gateway.start(time.monotonic())
        for shard in self.shards:
            self.start_worker(shard)
        for spare in self.spares:
            self._start_spare(spare)

    def start_worker(self, shard: ShardPlace) -> None:
        """Give `shard` to a spare, or else start a process for it.

        Raises OSError, RunDirectoryError.
        """
        now = time.monotonic()
        spare = self.spares.choose() if self.gateway.ready is not None else None
        if spare is None:
            self._upkeep.mend(self._config)
            child = launch_worker(self._run_directory, shard.index, self.python_options)
            child.version = self.version
            shard.started(child, now)
        else:
            child = self.spares.take(spare, now)
            # First of all: clients wait for it.
            self.gateway.tell(Assign(shard=shard.index, pid=child.pid))
            logger.info("%s is worker %d now", child, shard.index)
            child.role = f"worker {shard.index}"
            shard.started(child, now)
        self.report(shard)

    def _start_spare(self, spare: Spare) -> None:
        """Start a process that waits for a shard; raises OSError, RunDirectoryError."""
        self._upkeep.mend(self._config)
        self._spares_launched += 1
        child = launch_spare(self._run_directory, self._spares_launched, self.python_options)
        child.version = self.version
        spare.started(child, time.monotonic())
        self._record_is_old = True

    def start_candidate(self) -> None:
        """Start a process that waits beside the spares, until it replaces a worker.

        If that cannot be for want of processes or memory, it is due again soon.
        """
        self._start_waiting(self.spares.add_candidate())

    def _start_waiting(self, spare: Spare) -> None:
        try:
            self._start_spare(spare)
        except (OSError, RunDirectoryError) as error:
            spare.restart_due = _launch_again_at(time.monotonic(), "a spare", error)

    def start_due(self) -> None:
        """Start what is due, and say hello to a gateway that has not answered.

        What cannot be started for want of processes or memory, or of a run directory, is due again
        soon.
        """
        now = time.monotonic()
        if _is_due(self.gateway.restart_due, now):
            try:
                self._upkeep.mend(self._config)
                self.gateway.start(now)
            except (OSError, RunDirectoryError) as error:
                self.gateway.restart_due = _launch_again_at(now, "the gateway", error)
                return
            for place in self._places:
                place.restart_due = now
        for shard in self.shards:
            if _is_due(shard.restart_due, now):
                try:
                    self.start_worker(shard)
                except (OSError, RunDirectoryError) as error:
                    shard.restart_due = _launch_again_at(now, f"worker {shard.index}", error)
        for spare in self.spares.fillable:
            if _is_due(spare.restart_due, now):
                self._start_waiting(spare)
        self.gateway.say_hello(now)

    def tell_slow_starts(self) -> None:
        """Log, once for each life, who takes long to get ready. Slow imports are legal."""
        now = time.monotonic()
        after_s = self._config.workers.slow_start_s
        if self.gateway.ready is None:  # which all others wait for
            if self.gateway.is_slow_to_start(now, after_s):
                logger.warning(
                    "the gateway (pid %s) is not ready after %g s", self.gateway.pid, after_s
                )
            return
        if now < self.gateway.ready_at + after_s:
            return
        for place in self._places:
            child = place.child
            if not place.is_slow_to_start(now, after_s) or child is None:
                continue
            app = self._config.node.app
            reason = (
                f"the import of {app!r}, or its on_start, takes long, or never ends; the "
                "process writes a traceback that says where it is"
                if app
                else "it has not come to ask the gateway for a shard"
            )
            logger.warning("%s is not ready after %g s; %s", child, after_s, reason)

    def start_failure(self, worker: Child) -> StartFailure | None:
        """Return what `worker`, which has ended, left to say why it could not start."""
        return read_start_failure(self._run_directory, worker.started_as, worker.pid)

    def start_no_more_workers(self) -> None:
        """Forget the successors that are due."""
        for place in self._places:
            place.restart_due = None

    def forgive(self, now: float) -> None:
        """Forget the failures of all processes but the gateway; have start now what is due."""
        for place in self._places:
            place.policy.forgive()
            if place.restart_due is not None:
                place.restart_due = now

    # -- replacing ---------------------------------------------------------------------------------

    def end_worker(self, shard: ShardPlace, due: float) -> None:
        """Have the worker of `shard` end in good order until `due`; its successor waits."""
        child = shard.child
        assert child is not None, "nobody is there to end"
        shard.asked_to_end(due)
        self.gateway.tell(EndWorker(shard=shard.index, pid=child.pid))

    def kill_overdue(self) -> None:
        """Kill the workers that have not ended when they were asked to, and whoever hangs."""
        now = time.monotonic()
        for process in self.children:
            process.kill_if_due(now)
        for shard in self.shards:
            child = shard.child
            if child is not None and shard.kill_if_overdue(now):
                logger.warning("%s has not ended in time for its successor; killed", child)

    # -- ending ------------------------------------------------------------------------------------

    def kill_workers(self) -> None:
        """End the workers of a gateway that died, which says nothing against them."""
        for place in self._places:
            if place.child is not None:
                place.child.kill_and_reap()
                place.withdraw()
        self.spares.candidates.clear()
        self.start_no_more_workers()
        self._record_is_old = True

    def stop_workers(self) -> None:
        """Have the workers of a gateway that is drained end, those that it never met included."""
        self.start_no_more_workers()
        for shard in self.shards:
            _stop(shard.child, is_starting=shard.state == "starting")
        for spare in self.spares:
            if spare.child is not None:
                spare.child.kill()  # it has had its time, and nothing to bring to an end

    def close(self) -> None:
        """Kill every process that is left, wait until it is gone, and give everything back."""
        children = self.children
        for child in children:
            child.kill()
        for child in children:
            child.kill_and_reap()
        self.gateway.close()

    # -- telling -----------------------------------------------------------------------------------

    def report(self, shard: ShardPlace) -> None:
        """Tell the gateway, and whoever reads the record, what a shard's process is doing."""
        self._record_is_old = True
        self.gateway.tell(shard.report())

    def report_spares(self) -> None:
        """Note for whoever reads the record that other spares wait."""
        self._record_is_old = True

    def report_all(self) -> None:
        """Tell a gateway that has just become ready of all shards."""
        for shard in self.shards:
            self.report(shard)

    def keep_listen_address(self, listen: str) -> None:
        """Have later gateways listen where the first one was given a port for port 0."""
        if parse_listen(self._config.node.listen)[1] != 0:
            return
        node = msgspec.structs.replace(self._config.node, listen=listen)
        self._config = msgspec.structs.replace(self._config, node=node)
        self._run_directory.write_config(self._config)

    def look_after_run_directory(self) -> None:
        """Put back what was removed there, and tell what cannot be; looks once a second."""
        gateway_pid = None if self.gateway.ready is None else self.gateway.pid
        if self._upkeep.look(self._config, gateway_pid, time.monotonic()):
            self._record_is_old = True

    def write_record(self) -> None:
        """Leave what changed for `cluster status`; the node does not depend on it."""
        if not self._record_is_old:
            return
        self._record_is_old = False
        gateway = self.gateway
        record = make_node_record(
            self._config, gateway.pid, gateway.last_ready, self.shards, self.spares
        )
        told, self._record_error = self._record_error, ""
        try:
            write_node_record(self._run_directory, record)
        except RunDirectoryError as error:
            self._record_error = str(error)
            if self._record_error != told:
                logger.error("%s", error)


def _stop(child: Child | None, *, is_starting: bool) -> None:
    if child is not None:
        if is_starting:
            child.kill()
        else:
            child.ask_to_end()


def _is_due(due: float | None, now: float) -> bool:
    return due is not None and now >= due


def _launch_again_at(now: float, role: str, error: OSError | RunDirectoryError) -> float:
    logger.error("cannot start %s: %s; trying again in %g s", role, error, LAUNCH_RETRY_S)
    return now + LAUNCH_RETRY_S
