"""Watches a node: starts it, restarts what dies, ends it in order.

One loop in the main thread: it waits for messages of the gateway, for signals, and for time to
pass, then acts on what it finds. Children are spawned and reaped by that thread only. Whatever
way the loop ends, no child is left behind.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path

import zmq

from cluster.shared import messages
from cluster.shared.config import Config
from cluster.shared.descriptor_limit import check_descriptors
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.messages import (
    ControlMessage,
    Drain,
    Drained,
    GatewayAlive,
    GatewayReady,
    Refuse,
    ShardReport,
    SpareReport,
)
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.standard_streams import tell
from cluster.supervisor.child import Child
from cluster.supervisor.console import print_ready_line, say
from cluster.supervisor.course import EXIT_CANNOT_START, EXIT_DRAINED, Course, Phase
from cluster.supervisor.deaths import Deaths
from cluster.supervisor.file_watch import FileWatch
from cluster.supervisor.node import Node
from cluster.supervisor.reload import Reloader
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.signals import SignalWatch

__all__ = ["Supervisor", "supervise"]

logger = logging.getLogger("cluster.supervisor")

DRAIN_GRACE_S = 2.0
"""Past the time to drain: for the gateway to report, and for every process to leave. As much past
the time of a worker for `on_stop`, behind which it has its last words."""

DESCRIPTORS = 64
"""Open files of a supervisor: 16, with --reload 21, and what comes and goes."""

WAKE_MAX_S = 1.0
"""Longest sleep of the loop, so that nothing rests on one wake-up."""

WAKE_FOR_DEATHS_S = 0.1
"""The same where deaths send no signal and have to be looked for."""


def supervise(
    config: Config, run_directory: RunDirectory, reload_directories: Sequence[Path] = ()
) -> int:
    """Run a node until it is drained or cannot go on; return the exit code of the process.

    Its workers are replaced when somebody asks for that, and when Python files in
    `reload_directories` change, if there are any.

    0 after a drain, and when the end was asked for before there was a gateway; also when the time
    to drain was up and the gateway cut off what was left, which it logs with the number of
    sessions. 1 when the gateway died in the drain, or did not even report that its time was up;
    2 when the node cannot start; 3 when a process died too often; 128 and the signal's number
    after a second signal. Raises
    RunDirectoryError when the run directory cannot be used or is held, OSError when no process
    can be made or this one may open too few files. For the main thread of a process that ends when
    this returns: signals that ask for that are ignored from then on.
    """
    check_descriptors("a supervisor", DESCRIPTORS)
    run_directory.create()
    drain_timeout_s = config.supervisor.drain_timeout_s
    with ExitStack() as stack:
        lock = stack.enter_context(run_directory.lock("supervisor"))
        signals = stack.enter_context(SignalWatch())
        stack.callback(signals.ignore_what_comes_behind)
        run_directory.begin_with(config)
        stack.callback(_tidy, run_directory)
        node = Node(config, run_directory, lock)
        stack.callback(node.close)
        watch = None
        if reload_directories:
            watch = FileWatch(reload_directories)
            stack.callback(watch.close)
        reload = Reloader(node, watch, drain_timeout_s, tell)
        timeouts = (drain_timeout_s, config.workers.worker_timeout_s)
        return Supervisor(node, signals, *timeouts, reload).run()


class Supervisor:
    """What happens to a node, from its start to its end. `run` it once."""

    def __init__(
        self,
        node: Node,
        signals: SignalWatch,
        drain_timeout_s: float,
        worker_timeout_s: float,
        reload: Reloader,
    ) -> None:
        """Prepare to run `node`, which stays the caller's to close, and to `reload` it."""
        self._node = node
        self._signals = signals
        self._reload = reload
        self._drain_timeout_s = drain_timeout_s
        self._course = Course(worker_timeout_s + DRAIN_GRACE_S)
        self._deaths = Deaths(node, self._course, reload)
        self._wake_max_s = WAKE_MAX_S if signals.tells_deaths else WAKE_FOR_DEATHS_S

    def run(self) -> int:
        """Start the node and stay until it has ended; return the exit code.

        Raises OSError, RunDirectoryError.
        """
        node, course = self._node, self._course
        node.write_record()  # in place of what an earlier supervisor may have left
        node.start()
        if self._reload.watch is not None:
            self._reload.watch.start()
        while course.exit_code is None:
            node.write_record()
            self._wait()
            self._signals.clear()
            self._check_signals()
            self._check_messages()
            node.look_after_run_directory()
            node.memory_kills.look(time.monotonic())
            self._check_exits()
            self._deaths.check_give_ups(time.monotonic())
            self._check_versions()
            node.gateway.kill_if_silent(time.monotonic())
            node.kill_overdue()
            if time.monotonic() >= course.drain_due:
                self._drain_is_late()
            elif time.monotonic() >= course.leave_due:
                self._leaving_is_late()
            if course.exit_code is None:
                node.start_due()
                node.tell_slow_starts()
        return course.exit_code

    def _wait(self) -> None:
        due = self._node.next_due()
        first = min(self._course.drain_due, self._course.leave_due, self._deaths.next_due)
        if due is not None:
            first = min(first, due)
        timeout_s = min(max(0.0, first - time.monotonic()), self._wake_max_s)
        poller = zmq.Poller()
        poller.register(self._signals.fileno(), zmq.POLLIN)
        if self._node.gateway.link is not None:
            poller.register(self._node.gateway.link.socket, zmq.POLLIN)
        if self._reload.watch is not None:
            poller.register(self._reload.watch.fileno(), zmq.POLLIN)
        # Rounded up, or the loop would spin through the last millisecond.
        poller.poll(int(timeout_s * 1_000) + 1)

    def _check_signals(self) -> None:
        asked = self._signals.stop_count
        if asked > 1:
            logger.warning("asked twice to end: stopping at once")
            self._course.finish(128 + self._signals.last_stop_signal)
        elif asked and self._course.phase is not Phase.DRAINING:
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
            self._check_messages()  # its last words
            self._deaths.gateway_ended(gateway, exit_code, time.monotonic())
        for spare in self._node.spares:
            waiting = spare.child
            if waiting is not None and (exit_code := waiting.exit_code()) is not None:
                self._deaths.spare_ended(spare, waiting, exit_code, time.monotonic())
        for shard in self._node.shards:
            worker = shard.child
            if worker is not None and (exit_code := worker.exit_code()) is not None:
                self._deaths.worker_ended(shard, worker, exit_code, time.monotonic())

    def _check_versions(self) -> None:
        reload, watch = self._reload, self._reload.watch
        if reload.take_changes():
            self._deaths.forgive(time.monotonic())
        if self._course.phase is Phase.STARTING and watch is not None:
            failure = watch.failure
            if failure is not None:
                say(f"--reload: the files cannot be watched ({failure}): pass other --reload-dir")
                self._course.finish(EXIT_CANNOT_START)
            else:
                self._check_ready()
        elif self._course.phase is Phase.SERVING and self._node.gateway.ready is not None:
            reload.step()

    # -- what the gateway says ---------------------------------------------------------------------

    def _take_message(self, message: ControlMessage) -> None:
        match message:
            case GatewayReady():
                if self._node.gateway.heard_ready(message, time.monotonic()):
                    self._node.keep_listen_address(message.listen)
                    self._node.report_all()
                    self._check_ready()
            case ShardReport() if (shard := self._node.shard(message.shard)) is not None:
                self._shard_reported(shard, message)
            case SpareReport():
                self._spare_reported(message)
            case messages.Reload():
                self._reload_asked(message)
            case GatewayAlive():
                return
            case Drained():
                self._course.drained(time.monotonic())
                self._node.gateway.may_be_silent()
                self._node.start_no_more_workers()
            case Refuse(reason=reason):
                say(f"the gateway refuses its supervisor: {reason}")
                self._course.finish(EXIT_CANNOT_START)
            case _:
                logger.warning("unexpected control message %s", type(message).__name__)

    def _shard_reported(self, shard: ShardPlace, report: ShardReport) -> None:
        now = time.monotonic()
        if (report.committed or report.set_aside) and shard.proved(report.pid, now):
            self._node.gateway.policy.life_proved()
            self._deaths.was_of_use(shard, now)
        if report.state == "fenced":  # it may have ended for that by now
            logger.error(
                "worker %d (pid %d) was fenced by the gateway: %s",
                shard.index,
                report.pid,
                report.reason,
            )
        worker = shard.child
        if worker is None or worker.pid != report.pid or shard.is_cut_off:
            return
        if report.state == "ended":
            return  # which the loop finds by itself
        if report.state == "stuck":
            shard.policy.life_stuck(now - report.silent_s)
            self._kill_stuck(worker)
            shard.state = "stuck"
        elif report.state == "fenced":
            worker.kill()  # it does not hang: it has answered, and wrongly
            shard.state = "fenced"
        else:
            shard.became_ready(now)
            shard.state = "draining" if self._course.phase is Phase.DRAINING else "ready"
            self._reload.worker_is_ready(worker)
        self._node.report(shard)
        self._check_ready()

    def _spare_reported(self, report: SpareReport) -> None:
        if report.state == "stuck":
            for child in self._node.children:
                # Also one that was given a shard at the same moment.
                if child.pid == report.pid:
                    self._kill_stuck(child)
            return
        for spare in self._node.spares:
            if spare.child is not None and spare.pid == report.pid:
                spare.became_ready(time.monotonic())
                self._reload.spare_is_ready(spare.child)
                self._node.report_spares()
                self._check_ready()

    def _kill_stuck(self, worker: Child) -> None:
        logger.error("%s is stuck; killed once it has logged where it hangs", worker)
        worker.kill_once_told()

    def _reload_asked(self, request: messages.Reload) -> None:
        if self._course.phase is Phase.SERVING and not self._node.shards:
            reason = "all workers of this node are on other machines: they are started anew there"
            self._reload.refuse(request, reason)
        elif self._course.phase is Phase.SERVING:
            self._reload.ask(request)
        else:
            is_starting = self._course.phase is Phase.STARTING
            reason = "the node is not ready yet" if is_starting else "the node is about to end"
            self._reload.refuse(request, reason)

    def _check_ready(self) -> None:
        ready = self._node.gateway.ready
        is_watching = self._reload.watch is None or self._reload.watch.is_watching
        is_ready = is_watching and self._node.is_ready
        if self._course.phase is Phase.STARTING and ready is not None and is_ready:
            self._course.became_ready()
            print_ready_line(
                f"ready node={ready.node} listen={ready.listen} "
                f"workers={len(self._node.shards)} driver={ready.driver} lane={ready.lane}"
            )

    # -- the end -----------------------------------------------------------------------------------

    def _begin_drain(self) -> None:
        self._course.begin_drain(time.monotonic() + self._drain_timeout_s + DRAIN_GRACE_S)
        self._node.spares.refill_no_more()
        self._reload.end("the node is about to end")
        if self._node.gateway.ready is None:
            logger.info("asked to end while there is no gateway: stopping")
            self._course.finish(EXIT_DRAINED)
            return
        logger.info("draining, at most %g s", self._drain_timeout_s)
        self._node.gateway.tell(Drain(timeout_s=self._drain_timeout_s))
        for shard in self._node.shards:
            if shard.state == "ready":
                shard.state = "draining"
                self._node.report(shard)

    def _leaving_is_late(self) -> None:
        """End those that hang, though all is done: nobody else would notice."""
        self._course.leave_due = inf
        for child in self._node.children:
            logger.error(
                "%s has not ended, though the node is drained; killed once it has logged where it "
                "hangs",
                child,
            )
            child.kill_once_told()

    def _drain_is_late(self) -> None:
        left = ", ".join(map(str, self._node.children))
        logger.error("the time to drain is up; killed: %s", left or "nobody")
        self._course.finish_drain()


def _tidy(run_directory: RunDirectory) -> None:
    """Remove the sockets that a gateway leaves when it is killed."""
    try:
        with run_directory.lock("gateway"):
            run_directory.sockets.remove_stale()
            run_directory.sockets.remove_directory()
            choose_endpoints(run_directory).forget()
    except RunDirectoryError as error:
        logger.debug("sockets stay: %s", error)
