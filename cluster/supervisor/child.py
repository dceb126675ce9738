"""One child process of the supervisor: how it is started, how it ended.

A child is started by `python -m`, never by fork, and lives in a session of its own. Its handle
keeps the pid from being used again until the child is reaped, so killing by it is safe.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from cluster.shared.process import is_stopped, spawn
from cluster.shared.run_directory import RunDirectory
from cluster.shared.tracebacks import ASK_SIGNAL, TELL_WITHIN_S

__all__ = ["Child", "launch_gateway", "launch_spare", "launch_worker"]

_REAP_TIMEOUT_S = 10.0
"""A killed process is gone within milliseconds, unless the system holds it in a device call."""


class Child:
    """A running child process. For the thread that started it."""

    def __init__(self, role: str, process: "subprocess.Popen[bytes]") -> None:
        """Take over `process`; `role` names it in messages, for example `worker 1`."""
        self.role = role
        self.started_as = role.replace(" ", "-")
        """What it calls itself; a spare that is given a shard gets another role."""
        self.version = 0
        """Which version of the application it imports, see `Versions`."""
        self.kill_due: float | None = None
        """When it is killed, if it is: it was asked before where it hangs."""
        self.was_killed = False
        """Whether its supervisor has killed it."""
        self._process = process

    @property
    def pid(self) -> int:
        """The process id; nobody else's until the child was reaped."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Reap the child if it has ended and return its exit code; None while it runs.

        A signal that ended it counts as its negative number.
        """
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Send SIGTERM, on which a worker ends after what it has in hand; none on Windows."""
        if os.name == "posix":
            self._process.terminate()

    def kill(self) -> None:
        """End the child at once; it is still to be reaped."""
        self.kill_due = None
        self.was_killed = True
        self._process.kill()

    def kill_once_told(self) -> None:
        """Have the child write where it hangs, and end it a moment later, by `kill_if_due`.

        At once if it cannot write, because it is stopped or this system has no way to ask.
        """
        if self.kill_due is not None:
            return
        if ASK_SIGNAL is None or is_stopped(self.pid):
            self.kill()
            return
        self._process.send_signal(ASK_SIGNAL)
        self.kill_due = time.monotonic() + TELL_WITHIN_S

    def kill_if_due(self, now: float) -> None:
        """End the child if its time to tell where it hangs is over."""
        if self.kill_due is not None and now >= self.kill_due:
            self.kill()

    def kill_and_reap(self) -> None:
        """End the child at once and wait until it is gone."""
        self.kill()
        self._process.wait(_REAP_TIMEOUT_S)

    def describe_exit(self) -> str:
        """Return how the child ended, in words."""
        code = self._process.returncode
        assert code is not None, "the child was not reaped"
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"signal {-code}"

    def __str__(self) -> str:
        """Return what log lines call it: `worker 1 (pid 4711)`."""
        return f"{self.role} (pid {self.pid})"


def launch_gateway(run_directory: RunDirectory) -> Child:
    """Start the gateway of the node in `run_directory`; raises OSError."""
    return _launch("gateway", "cluster.gateway", run_directory)


def launch_worker(run_directory: RunDirectory, shard: int, python: Sequence[str] = ()) -> Child:
    """Start a worker for `shard` of the node in `run_directory`; raises OSError.

    `python` are options of the interpreter.
    """
    arguments = ("--shard", str(shard))
    return _launch(f"worker {shard}", "cluster.worker", run_directory, arguments, python)


def launch_spare(run_directory: RunDirectory, number: int, python: Sequence[str] = ()) -> Child:
    """Start a process that waits for any shard of the node; raises OSError.

    `number` tells it from all other spares; `python` are options of the interpreter.
    """
    arguments = ("--spare", str(number))
    return _launch(f"spare {number}", "cluster.worker", run_directory, arguments, python)


def _launch(
    role: str,
    module: str,
    run_directory: RunDirectory,
    arguments: Sequence[str] = (),
    python: Sequence[str] = (),
) -> Child:
    common = ["--run-dir", str(run_directory.path), "--parent-pid", str(os.getpid())]
    process = spawn([sys.executable, *python, "-m", module, *arguments, *common], os.environ)
    return Child(role, process)
