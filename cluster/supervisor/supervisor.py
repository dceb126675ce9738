"""Watches a node: starts it, restarts what dies, ends it in order.

One loop in the main thread: it waits for messages of the gateway, for signals, and for time to
pass, then acts on what it finds. Children are spawned and reaped by that thread only. Whatever
way the loop ends, no child is left behind.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

import zmq

from cluster.shared.config import Config
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.messages import (
    ControlMessage,
    Drain,
    Drained,
    GatewayAlive,
    GatewayReady,
    Refuse,
    ShardReport,
    SpareGone,
    SpareReport,
    WorkerGone,
)
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.supervisor.child import CANNOT_START, LOST_GATEWAY, TRY_AGAIN, Child
from cluster.supervisor.file_watch import FileWatch
from cluster.supervisor.node import Node
from cluster.supervisor.reload import Reload
from cluster.supervisor.restart_policy import BACKOFF_FIRST_S, BACKOFF_MAX_S, GiveUp, Restart
from cluster.supervisor.shard import Shard
from cluster.supervisor.signals import SignalWatch
from cluster.supervisor.spare import Spare

__all__ = ["Supervisor", "supervise"]

logger = logging.getLogger("cluster.supervisor")

EXIT_DRAINED = 0
EXIT_NOT_DRAINED = 1
EXIT_CANNOT_START = CANNOT_START
EXIT_GAVE_UP = 3

DRAIN_GRACE_S = 2.0
"""Past the time to drain: for the gateway to report, and for every process to leave."""

GATEWAY_GONE_WAIT_S = 3.0
"""A gateway whose supervisor was killed is gone within this time; any other one is in the way."""

VERDICT_WAIT_S = 0.5
"""Before a shard is given up: the gateway tells in this time whether the death was of use."""

TRY_AGAIN_S = 0.5
"""Pause before a worker asks again a gateway that was out of memory or descriptors."""

STOP_NEWS_S = 0.5
"""A worker that ends in a drain with exit code 0 was told to by the gateway, which tells us so
within this time; or somebody else told it to, and its shard needs a successor."""

WAKE_MAX_S = 1.0
"""Longest sleep of the loop, so that nothing rests on one wake-up."""

WAKE_FOR_DEATHS_S = 0.1
"""The same where deaths send no signal and have to be looked for."""


class Phase(Enum):
    """How far a node is."""

    STARTING = "starting"
    """It was never ready."""
    SERVING = "serving"
    """It was ready; parts of it may be dead and coming back."""
    DRAINING = "draining"
    """It was asked to end."""


def supervise(
    config: Config, run_directory: RunDirectory, reload_directories: Sequence[Path] = ()
) -> int:
    """Run a node until it is drained or cannot go on; return the exit code of the process.

    With `reload_directories` its workers are replaced when Python files there change.

    0 after a drain, and when the end was asked for before there was a gateway; also when the time
    to drain was up and the gateway cut off what was left, which it logs with the number of
    sessions. 1 when the gateway died in the drain, or did not even report that its time was up;
    2 when the node cannot start; 3 when a process died too often; 128 and the signal's number
    after a second signal. Raises
    RunDirectoryError when the run directory cannot be used or is held, OSError when no process
    can be made. For the main thread, whose signal handlers are replaced until this returns.
    """
    run_directory.create()
    drain_timeout_s = config.supervisor.drain_timeout_s
    with ExitStack() as stack:
        stack.enter_context(run_directory.lock("supervisor"))
        signals = stack.enter_context(SignalWatch())
        run_directory.lock("gateway", GATEWAY_GONE_WAIT_S).release()
        run_directory.write_config(config)
        stack.callback(_tidy, run_directory)
        node = Node(config, run_directory)
        stack.callback(node.close)
        reload = None
        if reload_directories:
            watch = FileWatch(reload_directories)
            stack.callback(watch.close)
            reload = Reload(node, watch, drain_timeout_s, _write)
        return Supervisor(node, signals, drain_timeout_s, reload).run()


class Supervisor:
    """What happens to a node, from its start to its end. `run` it once."""

    def __init__(
        self,
        node: Node,
        signals: SignalWatch,
        drain_timeout_s: float,
        reload: Reload | None = None,
    ) -> None:
        """Prepare to run `node`, which stays the caller's to close, and to `reload` it."""
        self._node = node
        self._signals = signals
        self._reload = reload
        self._drain_timeout_s = drain_timeout_s
        self._phase = Phase.STARTING
        self._exit_code: int | None = None
        self._drained = False
        self._drain_deadline = float("inf")
        self._gave_up = False
        self._give_ups: dict[int, tuple[Child, GiveUp, float]] = {}
        """Shards that will be given up when the time is there, unless the gateway objects."""
        self._told_failure = ""
        self._wake_max_s = WAKE_MAX_S if signals.tells_deaths else WAKE_FOR_DEATHS_S

    def run(self) -> int:
        """Start the node and stay until it has ended; return the exit code. Raises OSError."""
        node = self._node
        node.write_record()  # in place of what an earlier supervisor may have left
        node.start()
        if self._reload is not None:
            self._reload.watch.start()
        while self._exit_code is None:
            node.write_record()
            self._wait()
            self._signals.clear()
            self._check_signals()
            self._check_messages()
            self._check_exits()
            self._check_give_ups()
            if self._reload is not None:
                self._check_files(self._reload)
            node.gateway.kill_if_silent(time.monotonic())
            node.kill_overdue()
            if time.monotonic() >= self._drain_deadline:
                self._drain_is_late()
            if self._exit_code is None:
                node.start_due()
                node.tell_slow_starts()
        return self._exit_code

    def _wait(self) -> None:
        due = self._node.next_due()
        first = min(self._drain_deadline, float("inf") if due is None else due)
        first = min([first, *(due for _, _, due in self._give_ups.values())])
        timeout_s = min(max(0.0, first - time.monotonic()), self._wake_max_s)
        poller = zmq.Poller()
        poller.register(self._signals.fileno(), zmq.POLLIN)
        if self._node.gateway.link is not None:
            poller.register(self._node.gateway.link.socket, zmq.POLLIN)
        if self._reload is not None:
            poller.register(self._reload.watch.fileno(), zmq.POLLIN)
        # Rounded up, or the loop would spin through the last millisecond.
        poller.poll(int(timeout_s * 1_000) + 1)

    def _check_signals(self) -> None:
        asked = self._signals.stop_count
        if asked > 1:
            logger.warning("asked twice to end: stopping at once")
            self._finish(128 + self._signals.last_stop_signal)
        elif asked and self._phase is not Phase.DRAINING:
            self._begin_drain()

    def _check_messages(self) -> None:
        link = self._node.gateway.link
        if link is not None:
            for message in link.receive():
                self._node.gateway.heard(time.monotonic())
                self._take_message(message)

    def _check_exits(self) -> None:
        # The gateway first: its death explains that of its workers. Then the spares: none that is
        # dead is to be given a shard.
        gateway = self._node.gateway.child
        if gateway is not None and (exit_code := gateway.exit_code()) is not None:
            self._gateway_ended(gateway, exit_code)
        for spare in self._node.waiting:
            waiting = spare.child
            if waiting is not None and (exit_code := waiting.exit_code()) is not None:
                self._spare_ended(spare, waiting, exit_code)
        for shard in self._node.shards:
            worker = shard.child
            if worker is not None and (exit_code := worker.exit_code()) is not None:
                self._worker_ended(shard, worker, exit_code)

    def _check_files(self, reload: Reload) -> None:
        if reload.take_changes():
            # What a worker died of too often may be mended.
            for shard in self._node.shards:
                if shard.index in self._give_ups:
                    shard.restart_due = time.monotonic()
            self._give_ups.clear()
        if self._phase is Phase.STARTING:
            failure = reload.watch.failure
            if failure is not None:
                _say(f"--reload: the files cannot be watched ({failure}): pass other --reload-dir")
                self._finish(EXIT_CANNOT_START)
            else:
                self._check_ready()
        elif self._phase is Phase.SERVING and self._node.gateway.ready is not None:
            reload.step()

    def _finish(self, exit_code: int) -> None:
        """Leave the loop after this turn; the first reason to is the one that counts."""
        if self._exit_code is None:
            self._exit_code = exit_code

    # -- what the gateway says ---------------------------------------------------------------------

    def _take_message(self, message: ControlMessage) -> None:
        match message:
            case GatewayReady():
                if self._node.gateway.became_ready(message, time.monotonic()):
                    self._node.keep_listen_address(message.listen)
                    self._node.report_all()
                    self._check_ready()
            case ShardReport() if (shard := self._node.shard(message.shard)) is not None:
                self._shard_reported(shard, message)
            case SpareReport():
                self._spare_reported(message)
            case GatewayAlive():
                return
            case Drained():
                self._drained = True
                self._node.gateway.may_be_silent()
                self._node.start_no_more_workers()
            case Refuse(reason=reason):
                _say(f"the gateway refuses its supervisor: {reason}")
                self._finish(EXIT_CANNOT_START)
            case _:
                logger.warning("unexpected control message %s", type(message).__name__)

    def _shard_reported(self, shard: Shard, report: ShardReport) -> None:
        now = time.monotonic()
        if (report.committed or report.set_aside) and shard.proved(report.pid, now):
            self._node.gateway.policy.life_proved()
            if self._give_ups.pop(shard.index, None) is not None:
                shard.restart_due = now
        worker = shard.child
        if worker is None or worker.pid != report.pid or shard.state == "stuck":
            return
        if report.state == "ended":
            return  # which the loop finds by itself
        if report.state == "stuck":
            shard.policy.life_stuck(now - report.silent_s)
            logger.error("%s (pid %d) is stuck; killed", worker.role, worker.pid)
            shard.state = "stuck"
            worker.kill()
        else:
            shard.policy.life_ready(now)
            shard.state = "draining" if self._phase is Phase.DRAINING else "ready"
            if self._reload is not None:
                self._reload.worker_is_ready(worker)
        self._node.report(shard)
        self._check_ready()

    def _spare_reported(self, report: SpareReport) -> None:
        if report.state == "stuck":
            for child in self._node.children:
                # Also one that was given a shard at the same moment.
                if child.pid == report.pid:
                    logger.error("%s (pid %d) is stuck; killed", child.role, child.pid)
                    child.kill()
            return
        for spare in self._node.waiting:
            if spare.child is not None and spare.pid == report.pid:
                spare.became_ready(time.monotonic())
                if self._reload is not None:
                    self._reload.spare_is_ready(spare.child)
                self._node.report_spares()
                self._check_ready()

    def _check_ready(self) -> None:
        ready = self._node.gateway.ready
        is_watching = self._reload is None or self._reload.watch.is_watching
        is_ready = is_watching and self._node.is_ready
        if self._phase is Phase.STARTING and ready is not None and is_ready:
            self._phase = Phase.SERVING
            _print_ready_line(
                f"ready node={ready.node} listen={ready.listen} "
                f"workers={len(self._node.shards)} driver={ready.driver} lane={ready.lane}"
            )

    # -- deaths ------------------------------------------------------------------------------------

    def _worker_ended(self, shard: Shard, worker: Child, exit_code: int) -> None:
        was_replaced = shard.ends_as_asked(exit_code)
        self._node.gateway.tell(
            WorkerGone(shard=shard.index, pid=worker.pid, was_replaced=was_replaced)
        )
        is_version_at_fault = shard.state == "starting" and self._is_version_at_fault(
            worker, exit_code
        )
        if exit_code == CANNOT_START and not is_version_at_fault:
            self._tell_failure(worker)
            if self._phase is Phase.STARTING:
                self._finish(EXIT_CANNOT_START)
                return
        now = time.monotonic()
        if self._drained:
            shard.stopped()
        elif was_replaced:
            shard.replaced(now)
        elif self._phase is Phase.DRAINING and exit_code == 0:
            shard.stopped()
            shard.restart_due = now + STOP_NEWS_S
        elif exit_code == LOST_GATEWAY and self._node.gateway.has_been_silent(now):
            logger.warning("%s (pid %d) has lost the gateway", worker.role, worker.pid)
            shard.withdraw()
            shard.restart_due = now + BACKOFF_FIRST_S
        elif exit_code == TRY_AGAIN and self._phase is not Phase.STARTING:
            # No fault of the worker's, and what is short may be there again soon.
            logger.warning("%s (pid %d) found no lane; trying again", worker.role, worker.pid)
            shard.withdraw()
            shard.restart_due = now + TRY_AGAIN_S
        else:
            decision = shard.ended(now)
            if is_version_at_fault and self._reload is not None:
                decision = self._reload.try_again(shard, decision)
            _log_death(worker, decision)
            if isinstance(decision, GiveUp) and self._phase is Phase.SERVING:
                # The gateway may be about to say that this death had a packet set aside.
                self._give_ups[shard.index] = (worker, decision, now + VERDICT_WAIT_S)
            elif isinstance(decision, GiveUp):
                self._give_up(worker, decision)
        self._node.report(shard)
        self._check_drained()

    def _is_version_at_fault(self, child: Child, exit_code: int) -> bool:
        """Whether a process that was never ready ended because of a change of its files."""
        if self._reload is None or self._phase is Phase.STARTING:
            return False
        return self._reload.is_at_fault(child, exit_code)

    def _spare_ended(self, spare: Spare, child: Child, exit_code: int) -> None:
        self._node.gateway.tell(SpareGone(pid=child.pid))
        self._node.report_spares()
        if spare.is_retired:
            self._node.retired(spare)
            self._check_drained()
            return
        is_starting = self._phase is Phase.SERVING and not spare.is_ready
        if is_starting and self._is_version_at_fault(child, exit_code):
            spare.ended(time.monotonic())
            logger.warning("%s (pid %d): %s", child.role, child.pid, child.describe_exit())
            return
        if exit_code == CANNOT_START:
            self._tell_failure(child)
            if self._phase is Phase.STARTING:
                self._finish(EXIT_CANNOT_START)
                return
        now = time.monotonic()
        if self._phase is Phase.DRAINING:
            spare.withdraw()
            self._check_drained()
        elif exit_code == LOST_GATEWAY and self._node.gateway.has_been_silent(now):
            logger.warning("%s (pid %d) has lost the gateway", child.role, child.pid)
            spare.withdraw()
            spare.restart_due = now + BACKOFF_FIRST_S
        else:
            decision = spare.ended(now)
            if self._phase is Phase.STARTING and isinstance(decision, GiveUp):
                self._give_up(child, decision)
            elif isinstance(decision, GiveUp):
                decision = Restart(BACKOFF_MAX_S)
            _log_death(child, decision)

    def _tell_failure(self, worker: Child) -> None:
        """Tell why a worker cannot start: once, though the same may be true of all of them."""
        if self._exit_code is not None:
            return  # whoever was first has told
        told = self._node.start_failure(worker)
        if told is None:
            _say(f"{worker.role} ended with exit code {CANNOT_START} and did not say why")
        elif told.text != self._told_failure:
            self._told_failure = told.text
            _write(told.text)

    def _gateway_ended(self, gateway: Child, exit_code: int) -> None:
        self._check_messages()  # its last words
        if self._phase is Phase.DRAINING:
            self._node.gateway.stopped()
            self._gateway_ended_in_drain(gateway, exit_code)
            return
        if self._phase is Phase.STARTING and exit_code == CANNOT_START:
            self._finish(EXIT_CANNOT_START)
            return
        self._drained = False  # if it has drained, nobody had asked for that here
        self._give_ups.clear()
        decision = self._node.gateway.ended(time.monotonic())
        _log_death(gateway, decision)
        if isinstance(decision, GiveUp):
            self._give_up(gateway, decision)
        self._node.kill_workers()

    def _check_give_ups(self) -> None:
        now = time.monotonic()
        for shard, (child, decision, due) in list(self._give_ups.items()):
            if now >= due:
                del self._give_ups[shard]
                self._give_up(child, decision)

    def _give_up(self, child: Child, decision: GiveUp) -> None:
        _say(
            f"gave up restarting {child.role}: {decision.lives} lives in {decision.within_s:.1f} s "
            f"were of no use, the last ended with {child.describe_exit()}"
        )
        self._gave_up = True
        if self._phase is not Phase.DRAINING:
            self._finish(EXIT_GAVE_UP)

    # -- the end -----------------------------------------------------------------------------------

    def _begin_drain(self) -> None:
        self._phase = Phase.DRAINING
        self._node.start_no_more_spares()
        if self._node.gateway.ready is None:
            logger.info("asked to end while there is no gateway: stopping")
            self._finish(EXIT_DRAINED)
            return
        logger.info("draining, at most %g s", self._drain_timeout_s)
        self._drain_deadline = time.monotonic() + self._drain_timeout_s + DRAIN_GRACE_S
        self._node.gateway.tell(Drain(timeout_s=self._drain_timeout_s))
        for shard in self._node.shards:
            if shard.state == "ready":
                shard.state = "draining"
                self._node.report(shard)

    def _gateway_ended_in_drain(self, gateway: Child, exit_code: int) -> None:
        if not self._drained and exit_code != 0:
            logger.error("the gateway ended with %s before it was drained", gateway.describe_exit())
            self._finish(EXIT_NOT_DRAINED)
            return
        self._drained = True  # its exit code tells it too
        # Whom the gateway's word to stop did not reach, nobody else would tell.
        self._node.stop_workers()
        self._check_drained()

    def _check_drained(self) -> None:
        """Leave when everybody has left."""
        if self._drained and not self._node.children:
            self._finish_drain()

    def _drain_is_late(self) -> None:
        left = [f"{child.role} (pid {child.pid})" for child in self._node.children]
        logger.error("the time to drain is up; killed: %s", ", ".join(left) or "nobody")
        self._finish_drain()

    def _finish_drain(self) -> None:
        if self._gave_up:
            self._finish(EXIT_GAVE_UP)
        else:
            self._finish(EXIT_DRAINED if self._drained else EXIT_NOT_DRAINED)


def _log_death(child: Child, decision: Restart | GiveUp) -> None:
    follows = "no successor"
    if isinstance(decision, Restart):
        follows = (
            f"successor in {decision.delay_s:g} s" if decision.delay_s else "successor at once"
        )
    logger.warning("%s (pid %d): %s; %s", child.role, child.pid, child.describe_exit(), follows)


def _print_ready_line(line: str) -> None:
    """Write all of what the node ever writes to standard output."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        logger.warning("nobody reads the ready line (%s): %s", error, line)


def _say(reason: str) -> None:
    """Tell the person who started the node why it ends, in one line."""
    _write(f"cluster: {reason}\n")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _tidy(run_directory: RunDirectory) -> None:
    """Remove the sockets that a gateway leaves when it is killed."""
    try:
        with run_directory.lock("gateway"):
            run_directory.remove_stale_sockets()
            run_directory.remove_socket_directory()
            choose_endpoints(run_directory).forget()
    except RunDirectoryError as error:
        logger.debug("sockets stay: %s", error)
