"""Servers under measurement: started as processes, with the CPU time that they have used."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = ["Server", "build_load_generator", "cluster_up", "uvloop_echo"]

HERE = Path(__file__).parent


class Server:
    """A running server: its port, and the processes whose CPU time counts."""

    def __init__(self, name: str, port: int, pids: list[int]) -> None:
        self.name = name
        self.port = port
        self._processes = [psutil.Process(pid) for pid in pids]

    def cpu_seconds(self) -> float:
        """Return user and system time of all its processes so far."""
        total = 0.0
        for process in self._processes:
            times = process.cpu_times()
            total += times.user + times.system
        return total


@contextmanager
def uvloop_echo() -> Iterator[Server]:
    """Run the framed echo on uvloop, in one process and with no hop."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "uvloop_echo.py")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Server("uvloop", int(process.stdout.readline()), [process.pid])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def cluster_up(*flags: str, name: str = "cluster") -> Iterator[Server]:
    """Run `cluster up` with `flags` on a free port; gateway and workers count."""
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as run_dir:
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
            children = [child.pid for child in psutil.Process(process.pid).children()]
            yield Server(name, int(ready["listen"].rpartition(":")[2]), children)
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


@contextmanager
def build_load_generator() -> Iterator[Path]:
    """Compile the load generator and return the path of the program."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the load generator needs a C compiler (cc); install one")
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as directory:
        program = Path(directory, "load_generator")
        source = HERE / "load_generator.c"
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
        yield program
