"""`cluster up` as a real process, for tests: start it, look at it, end it without a trace."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 30.0
READY_LINE = re.compile(
    r"ready node=(?P<node>\d+) listen=(?P<listen>\S+):(?P<port>\d+) workers=(?P<workers>\d+) "
    r"driver=(?P<driver>iocp|io_uring|readiness) lane=(?P<lane>shm|zmq)\n"
)


def cluster_command(*arguments: str, module: str = "cluster") -> list[str]:
    """Return the command line of `cluster`, or of another module like it, for these tests."""
    return [sys.executable, "-m", module, *arguments]


def cluster_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which children find this source, wherever they start."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


def run_cluster(
    *arguments: str,
    cwd: Path | None = None,
    timeout_s: float = EXIT_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run one `cluster` command to its end."""
    return subprocess.run(
        cluster_command(*arguments),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        cwd=cwd,
        env=cluster_environment(env),
        stdin=subprocess.DEVNULL,
        check=False,
    )


def run_without_library(
    name: str, directory: Path, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Run a `cluster` command that finds no module `name`, with what is made in `directory`."""
    (directory / f"{name}.py").write_text("raise ModuleNotFoundError(name=__name__)")
    path = os.pathsep.join([str(directory), cluster_environment()["PYTHONPATH"]])
    return run_cluster(*arguments, env={"PYTHONPATH": path})


class ClusterNode:
    """One `cluster up` with a run directory of its own. `close` leaves no process of it."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        *,
        listen: str = "127.0.0.1:0",
        run_dir: Path | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
        module: str = "cluster",
    ) -> None:
        """Start it with its output going to files in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir or directory / "run"
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        options = ("--listen", listen, "--run-dir", str(self.run_dir))
        command = cluster_command("up", *options, module=module)
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                cwd=cwd or directory,
                env=cluster_environment(env),
                preexec_fn=preexec_fn,
            )
        self.ready: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        return self.process.pid

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self.ready["port"])

    @property
    def stdout(self) -> str:
        """Everything on standard output so far."""
        return self._stdout.read_text("utf-8")

    @property
    def stderr(self) -> str:
        """Everything on standard error so far."""
        return self._stderr.read_text("utf-8", errors="replace")

    def wait_ready(self) -> "ClusterNode":
        """Wait for the ready line, or fail with what was said instead."""

        def found() -> bool:
            return "\n" in self.stdout or self.process.poll() is not None

        wait_until(found, timeout_s=READY_TIMEOUT_S, what="the ready line")
        match = READY_LINE.fullmatch(self.stdout)
        assert match, f"stdout {self.stdout!r}, exit code {self.process.poll()}\n{self.stderr}"
        self.ready = match.groupdict()
        return self

    def status(self) -> Any:
        """Return what `cluster status --json` prints, parsed; without the cost of a process.

        Without counters where the gateway has not answered within two seconds.
        """
        status = read_status(RunDirectory(self.run_dir))
        assert status is not None, f"nothing runs in {self.run_dir}"
        return json.loads(msgspec.json.encode(status))

    def counters(self) -> dict[str, int]:
        """Return the counters of the gateway, however long that takes to answer."""
        counters: dict[str, int] = self.wait_status(
            lambda status: status["counters"], "an answer of the gateway"
        )["counters"]
        return counters

    def status_command(self) -> Any:
        """Return the parsed output of `cluster status --json`."""
        done = run_cluster("status", "--run-dir", str(self.run_dir), "--json")
        assert done.returncode == 0, (done.returncode, done.stderr)
        return json.loads(done.stdout)

    def told_reason(self) -> str:
        """Return the last line on stderr that tells a person why the node ended."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("cluster")]
        assert lines, self.stderr
        return lines[-1]

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers by shard, all of which must be ready."""
        workers = self.status()["workers"]
        assert [worker["state"] for worker in workers] == ["ready"] * len(workers)
        return [worker["pid"] for worker in workers]

    def wait_restarts(self, *restarts: int) -> Any:
        """Return the first status with these restarts of the workers, in the order of shards.

        A spare serves before the supervisor has told the gateway of the restart.
        """
        return self.wait_status(
            lambda status: [worker["restarts"] for worker in status["workers"]] == list(restarts),
            f"the restarts {restarts}",
        )

    def wait_status(self, predicate: Any, what: str, timeout_s: float = 20.0) -> Any:
        """Return the first status for which `predicate` holds.

        One for which it looks for a counter holds only if the gateway has answered.
        """
        seen: list[Any] = []

        def holds() -> bool:
            seen[:] = [self.status()]
            try:
                return bool(predicate(seen[0]))
            except KeyError:
                if seen[0]["counters"]:
                    raise
                return False

        try:
            wait_until(holds, timeout_s=timeout_s, interval_s=0.05, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}\n{self.stderr}") from None
        return seen[0]

    def kill_worker(self, restarts: int) -> None:
        """Kill the first worker as soon as it is ready after so many restarts."""
        status = self.wait_status(
            lambda status: (
                status["workers"][0]["restarts"] == restarts
                and status["workers"][0]["state"] == "ready"
            ),
            f"a worker after {restarts}",
        )
        psutil.Process(status["workers"][0]["pid"]).kill()

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait_exit(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Return the exit code of the supervisor."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`cluster up` has not ended:\n{self.stderr}") from None

    def drain(self) -> int:
        """End the node in order and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this node: they all name its run directory."""
        return [process for process in psutil.process_iter() if self._is_of_node(process)]

    def _is_of_node(self, process: psutil.Process) -> bool:
        try:
            return (
                str(self.run_dir) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def close(self) -> None:
        """Kill what is left of the node, each process by its pid, and wait until it is gone."""
        deadline = time.monotonic() + 10
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.process.poll() is None:
                self.process.wait(10)
            assert time.monotonic() < deadline, f"cannot be killed: {left}"
        self.process.wait(10)
        # One that was killed leaves it, which is not below pytest's directory.
        RunDirectory(self.run_dir).sockets.remove_directory()
