"""Runs a whole node, loads it with bots for a second, and ends it as Ctrl-C would.

`python -m tests.windows.node_for_a_moment RUN_DIR` prints what the node prints, and exits with the
node's exit code, or 1 when something was wrong. The supervisor belongs to the main thread; the
rest is done in another.
"""

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from cluster.shared.config import Config
from cluster.shared.logs import configure_logging
from cluster.shared.node_status import NodeStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.supervisor import supervise
from tests.support import wait_until

WAIT_S = 60.0


class ReadyLine(io.StringIO):
    """Takes the place of standard output: the ready line is all that a node writes there."""

    def address(self) -> str | None:
        text = self.getvalue()
        return text.split("listen=")[1].split()[0] if text.endswith("\n") else None


def cluster(*arguments: str) -> bytes:
    """Run the command line, which must succeed, and return what it prints."""
    command = [sys.executable, "-m", "cluster", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=WAIT_S)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}"
    return done.stdout


def use_node(output: ReadyLine, run_directory: Path) -> None:
    address = wait_until(output.address, timeout_s=WAIT_S, what="the ready line")
    assert address is not None
    load = ["--connect", address, "--sessions", "20", "--depth", "2", "--seconds", "1"]
    report = msgspec.json.decode(cluster("bots", *load))
    assert report["packets"] > 0, report
    told = msgspec.json.decode(cluster("status", "--run-dir", str(run_directory)), type=NodeStatus)
    assert [worker.state for worker in told.workers] == ["ready", "ready"], told
    assert told.counters["accept_errors"] == 0, told


def main() -> int:
    configure_logging("supervisor")
    config = msgspec.convert({"node": {"listen": "127.0.0.1:0"}}, Config)
    run_directory = Path(sys.argv[1])
    output, standard_output = ReadyLine(), sys.stdout
    failures: list[BaseException] = []

    def use_and_stop() -> None:
        try:
            use_node(output, run_directory)
        except BaseException as error:
            failures.append(error)
        finally:
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=use_and_stop)
    thread.start()
    sys.stdout = output
    try:
        exit_code = supervise(config, RunDirectory(run_directory))
    finally:
        sys.stdout = standard_output
        thread.join()
    sys.stdout.write(output.getvalue())
    for failure in failures:
        sys.stderr.write(f"{type(failure).__name__}: {failure}\n")
    return exit_code or bool(failures)


if __name__ == "__main__":
    sys.exit(main())
