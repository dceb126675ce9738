"""Servers under measurement: started as processes, with the time and memory that they use."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = [
    "LIBRARY_DRIVERS",
    "LibraryServer",
    "Server",
    "asyncio_echo",
    "build",
    "cluster_up",
    "library_echo",
    "nodes_up",
    "uvloop_echo",
    "uvloop_publish",
    "uvloop_typed",
]

LIBRARY_DRIVERS = ("io_uring", "readiness")
"""The drivers that can be measured on Linux."""

HERE = Path(__file__).parent


class Server:
    """A running server: its port, and its processes; the first one holds the clients' sockets."""

    def __init__(self, name: str, port: int, pids: list[int]) -> None:
        self.name = name
        self.port = port
        self.ports = [port]
        """Of several nodes, each one's."""
        self._processes = [psutil.Process(pid) for pid in pids]

    def cpu_seconds(self) -> float:
        """Return user and system time of all its processes so far, as the scheduler counts it.

        That is exact, where the times of a process are counted in hundredths of a second.
        """
        return (
            sum(
                int(Path(f"/proc/{process.pid}/task/{thread.id}/schedstat").read_text().split()[0])
                for process in self._processes
                for thread in process.threads()
            )
            / 1e9
        )

    def memory_bytes(self) -> int:
        """Return what the process that holds the sockets has resident and shares with nobody."""
        own: int = self._processes[0].memory_full_info().uss
        return own

    def descriptor_count(self) -> int:
        """Return how many descriptors the process that holds the sockets has open."""
        count: int = self._processes[0].num_fds()
        return count


class LibraryServer(Server):
    """The bare library, which also tells what objects it has."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        super().__init__(name, int(process.stdout.readline()), [process.pid])
        self._process = process

    def object_count(self) -> int:
        """Return how many objects its collector knows after a collection."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGUSR1)
        return int(self._process.stdout.readline())


@contextmanager
def _script(name: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a script of this directory, which prints its port first."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / name), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def uvloop_echo() -> Iterator[Server]:
    """Run the framed echo on uvloop, in one process and with no hop."""
    with _script("uvloop_echo.py") as process:
        assert process.stdout is not None
        yield Server("uvloop", int(process.stdout.readline()), [process.pid])


@contextmanager
def uvloop_publish() -> Iterator[Server]:
    """Run the publishes of `publish_app` as loops of writes on uvloop, in one process."""
    with _script("uvloop_publish.py") as process:
        assert process.stdout is not None
        yield Server("uvloop, loop of writes", int(process.stdout.readline()), [process.pid])


@contextmanager
def uvloop_typed() -> Iterator[Server]:
    """Run the answers of `typed_app` on uvloop with msgspec, in one process and with no hop."""
    with _script("uvloop_typed.py") as process:
        assert process.stdout is not None
        yield Server("uvloop with msgspec", int(process.stdout.readline()), [process.pid])


@contextmanager
def asyncio_echo() -> Iterator[Server]:
    """Run the same protocol on the event loop of the standard library."""
    with _script("uvloop_echo.py", "asyncio") as process:
        assert process.stdout is not None
        yield Server("asyncio", int(process.stdout.readline()), [process.pid])


@contextmanager
def library_echo(driver: str) -> Iterator[LibraryServer]:
    """Run the framed echo on the bare session library, in one process and with no hop."""
    with _script("library_echo_server.py", driver) as process:
        yield LibraryServer(f"library, {driver}", process)


@contextmanager
def cluster_up(*flags: str, name: str = "cluster", config: str = "") -> Iterator[Server]:
    """Run `cluster up` with `flags` on a free port; gateway and workers count.

    `config` is the text of a configuration file for it, if there is to be one.
    """
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as run_dir:
        if config:
            file = Path(run_dir, "cluster.toml")
            file.write_text(config)
            flags = (*flags, "--config", str(file))
        command = [sys.executable, "-m", "cluster", "up", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            [*command, "--run-dir", f"{run_dir}/run", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            ready = dict(
                field.split("=", 1) for field in process.stdout.readline().split() if "=" in field
            )
            children = psutil.Process(process.pid).children()
            children.sort(key=lambda child: "gateway" not in child.cmdline())
            port = int(ready["listen"].rpartition(":")[2])
            yield Server(name, port, [child.pid for child in children])
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


@contextmanager
def nodes_up(count: int, *flags: str) -> Iterator[Server]:
    """Run `cluster up --nodes COUNT` with `flags` on free ports; all processes count.

    `ports` are in the order of ids.
    """
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as run_dir:
        command = [sys.executable, "-m", "cluster", "up", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            [*command, "--run-dir", f"{run_dir}/run", "--nodes", str(count), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            ports = {}
            for _ in range(count):
                fields = process.stdout.readline().split()
                ready = dict(field.split("=", 1) for field in fields if "=" in field)
                ports[int(ready["node"])] = int(ready["listen"].rpartition(":")[2])
            children = psutil.Process(process.pid).children(recursive=True)
            pids = [process.pid, *(child.pid for child in children)]
            server = Server(f"{count} node{'s' * (count > 1)}", ports[min(ports)], pids)
            server.ports = [ports[node] for node in sorted(ports)]
            yield server
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


@contextmanager
def build(name: str) -> Iterator[Path]:
    """Compile the program NAME.c of this directory and return its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(f"{name}.c needs a C compiler (cc); install one")
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as directory:
        program = Path(directory, name)
        subprocess.run([compiler, "-O2", "-o", str(program), str(HERE / f"{name}.c")], check=True)
        yield program
