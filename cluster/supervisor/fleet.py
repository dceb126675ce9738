"""Several nodes on one machine as one cluster, for development: `cluster up --nodes N`.

Each node has a supervisor of its own, a child of this process, and a folder of the run directory.
They are told their private addresses and a secret that is made here. Their ready lines come when
all links stand. A node that ends is not started again: the others go on, as they would if its
machine was lost.
"""

import logging
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import IO

from cluster.shared.config import Config
from cluster.shared.descriptor_limit import check_descriptors
from cluster.shared.messages import ProtocolError
from cluster.shared.node_status import NodeStatus
from cluster.shared.process import spawn
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.supervisor.child import Child
from cluster.supervisor.console import print_ready_line
from cluster.supervisor.course import EXIT_NOT_DRAINED
from cluster.supervisor.fleet_plan import plan_nodes, private_ports, with_client_port
from cluster.supervisor.signals import SignalWatch
from cluster.supervisor.status import read_status

__all__ = ["NODES_MAX", "supervise_nodes"]

logger = logging.getLogger("cluster.supervisor")

NODES_MAX = 16
"""Each node is four processes or more."""

DESCRIPTORS = 96
"""Open files of who runs 16 nodes: 13 with two of them, and those by which it asks each."""

_STATUS_TIMEOUT_S = 0.3
_TURN_S = 0.05
_TELL_UNLINKED_S = 10.0
_END_GRACE_S = 5.0
"""Past the time that the nodes have to drain, until they are killed."""


def supervise_nodes(
    config: Config, directory: Path, count: int, reload_directories: Sequence[Path] = ()
) -> int:
    """Run `count` nodes until a signal drains them or all have ended; return the exit code.

    Each replaces its workers when Python files in `reload_directories` change, if there are any.

    0 when all have drained, else the first other code of a node, in the order of ids; 1 if there
    is no such and one had to be killed; 128 and the signal's number after a second signal. Raises
    ConfigError, RunDirectoryError and OSError when nothing was started. For the main thread of a
    process that ends when this returns: signals that ask for that are ignored from then on.
    """
    check_descriptors("cluster up --nodes", DESCRIPTORS)
    base = RunDirectory(directory)
    base.create()
    with ExitStack() as stack:
        stack.enter_context(base.lock("nodes"))
        signals = stack.enter_context(SignalWatch())
        ports = stack.enter_context(private_ports(count))
        if config.node.shared_port:
            config = stack.enter_context(with_client_port(config))
        secret = directory / "secret"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32) + "\n")
        plans = plan_nodes(config, directory, ports, secret)
        end_timeout_s = config.supervisor.drain_timeout_s + _END_GRACE_S
        fleet = _Fleet(signals, end_timeout_s, reload_directories)
        try:
            for node, path in plans:
                run_directory = RunDirectory(path)
                run_directory.create()
                run_directory.lock("supervisor").release()  # before its config is replaced
                run_directory.write_config(node)
                fleet.start(node.node.id, run_directory)
            return fleet.run()
        finally:
            fleet.close()
            signals.ignore_what_comes_behind()


def exit_code_of(codes: Sequence[int | None]) -> int:
    """Return the exit code of a fleet whose nodes had `codes`; None for one that was cut off.

    A supervisor dies of SIGTERM only where it was asked to end before it had begun anything, so
    that counts as drained.
    """
    failed = [code for code in codes if code not in (None, 0, -signal.SIGTERM)]
    return next((code if code > 0 else 128 - code for code in failed if code), 0)


def has_all_links(status: NodeStatus | None, count: int) -> bool:
    """Whether a node has said by `status` that its links with `count` others stand.

    What the supervisor knows, where the gateway did not answer in time, names no links.
    """
    if status is None or len(status.links) != count:
        return False
    return all(link.state == "linked" for link in status.links)


class _Member:
    """One node of the fleet."""

    def __init__(
        self, node: int, run_directory: RunDirectory, reload_directories: Sequence[Path]
    ) -> None:
        process = spawn(
            [
                *(sys.executable, "-m", "cluster.supervisor"),
                *("--run-dir", str(run_directory.path), "--parent-pid", str(os.getpid())),
                *(f"--reload-dir={path}" for path in reload_directories),
            ],
            os.environ,
            stdout=-1,
        )
        assert process.stdout is not None
        self.node = node
        self.run_directory = run_directory
        self.child = Child(f"node {node}", process)
        self.exit_code: int | None = None
        self.ready_line = ""
        self._reader = Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                self.ready_line = line.decode()

    def is_linked(self, count: int) -> bool:
        """Whether its links with `count` others stand, as far as it says so now."""
        try:
            return has_all_links(read_status(self.run_directory, _STATUS_TIMEOUT_S), count)
        except (RunDirectoryError, ProtocolError):
            return False

    def close(self) -> None:
        if self.exit_code is None:
            self.child.kill_and_reap()
        self._reader.join(1.0)


class _Fleet:
    """The nodes from their start to their end."""

    def __init__(
        self, signals: SignalWatch, end_timeout_s: float, reload_directories: Sequence[Path]
    ) -> None:
        self._signals = signals
        self._reload_directories = reload_directories
        self._end_timeout_s = end_timeout_s
        self._members: list[_Member] = []
        self._is_ready = False
        self._told_at = time.monotonic()
        """When it was last told which links do not stand."""
        self._end_deadline = float("inf")

    def start(self, node: int, run_directory: RunDirectory) -> None:
        """Start a node whose configuration is in `run_directory`; raises OSError."""
        self._members.append(_Member(node, run_directory, self._reload_directories))

    def run(self) -> int:
        """Stay until every node has ended; return the exit code."""
        while any(member.exit_code is None for member in self._members):
            select.select([self._signals.fileno()], [], [], _TURN_S)
            self._signals.clear()
            is_late = time.monotonic() > self._end_deadline
            if self._signals.stop_count > 1:
                return 128 + self._signals.last_stop_signal
            if is_late:
                return self._cut_off()
            if self._signals.stop_count:
                self._end_all()
            self._check_exits()
            if not (self._is_ready or self._is_ending):
                self._check_ready()
        return exit_code_of([member.exit_code for member in self._members])

    def _cut_off(self) -> int:
        """Tell who has not ended in time, and is killed; return the exit code."""
        left = [member for member in self._members if member.exit_code is None]
        names = ", ".join(str(member.child) for member in left)
        logger.error("the time for the nodes to end is up; killed: %s", names)
        code = exit_code_of([member.exit_code for member in self._members])
        return code or EXIT_NOT_DRAINED

    @property
    def _is_ending(self) -> bool:
        return self._end_deadline < float("inf")

    def _check_exits(self) -> None:
        for member in self._members:
            if member.exit_code is not None:
                continue
            member.exit_code = member.child.exit_code()
            if member.exit_code is None or self._is_ending:
                continue
            logger.error("%s ended: %s", member.child.role, member.child.describe_exit())
            if not self._is_ready:
                self._end_all()

    def _check_ready(self) -> None:
        """Tell that all nodes are ready, once they are linked too; now and then which are not."""
        if not all(member.ready_line for member in self._members):
            return
        others = len(self._members) - 1
        waiting = [member for member in self._members if not member.is_linked(others)]
        if not waiting:
            self._is_ready = True
            for member in self._members:
                print_ready_line(member.ready_line.rstrip("\n"))
        elif time.monotonic() - self._told_at > _TELL_UNLINKED_S:
            self._told_at = time.monotonic()
            names = ", ".join(str(member.node) for member in waiting)
            logger.warning("the links of these nodes are not up yet: %s", names)

    def _end_all(self) -> None:
        if not self._is_ending:
            self._end_deadline = time.monotonic() + self._end_timeout_s
            for member in self._members:
                if member.exit_code is None:
                    member.child.ask_to_end()

    def close(self) -> None:
        """Leave no process behind."""
        for member in self._members:
            member.close()
