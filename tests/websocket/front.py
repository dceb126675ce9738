"""`cluster websocket` as a process, and a node whose part the test takes itself."""

import re
import signal
import socket
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil

from tests.support import wait_until
from tests.system.cluster_node import cluster_command, cluster_environment

__all__ = ["FakeNode", "Front", "front_of", "read_to_end", "reset"]

_READY_LINE = re.compile(r"websocket (wss?://\S+)\n")


class Front:
    """A front that listens."""

    def __init__(self, process: "subprocess.Popen[str]", address: str, stderr: Path) -> None:
        self.process = process
        self.address = address
        self._stderr = stderr
        self._metrics: str | None = None

    @property
    def port(self) -> int:
        """The port that browsers connect to."""
        return int(self.address.rpartition(":")[2].partition("/")[0])

    @property
    def stderr(self) -> str:
        """Everything on standard error so far."""
        return self._stderr.read_text("utf-8")

    def count_connections(self) -> int:
        """Return how many connections are in its memory; of `tests.websocket.counted_front`."""
        counts = re.compile(r"connections in memory: (\d+)\n")
        before = len(counts.findall(self.stderr))
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(counts.findall(self.stderr)) > before, what="the count")
        return int(counts.findall(self.stderr)[-1])

    @property
    def descriptors(self) -> int:
        """How many it has open."""
        return psutil.Process(self.process.pid).num_fds()

    def wait_for_line(self, pattern: str) -> None:
        """Wait until the log has something that matches `pattern`."""
        wait_until(
            lambda: re.search(pattern, self.stderr), what=f"{pattern!r} in the log of the front"
        )

    def read_metrics(self) -> dict[str, float]:
        """Return what `--metrics` has to tell, by name and labels as they are written."""
        if self._metrics is None:
            assert self.process.stdout is not None
            word, self._metrics = self.process.stdout.readline().split()
            assert word == "metrics"
        with urllib.request.urlopen(self._metrics, timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        told = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in told}

    def stop(self) -> int:
        """End it in order and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def front_of(
    directory: Path,
    *nodes: int,
    more: tuple[str, ...] = (),
    listen: str = "127.0.0.1:0",
    module: str = "cluster",
) -> Iterator[Front]:
    """Run a front for the nodes at these ports; at the end it is stopped, and ends with 0.

    `module` is one like `cluster` that runs it.
    """
    arguments = [*("--listen", listen), *more]
    for port in nodes:
        arguments += ("--node", f"127.0.0.1:{port}")
    stderr = directory / f"front{len(list(directory.glob('front*')))}"
    with (
        stderr.open("wb") as log,
        subprocess.Popen(
            cluster_command("websocket", *arguments, module=module),
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            env=cluster_environment(),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            match = _READY_LINE.fullmatch(process.stdout.readline())
            assert match, stderr.read_text()
            front = Front(process, match[1], stderr)
            yield front
            if process.poll() is None:
                assert front.stop() == 0, front.stderr
            assert "Traceback" not in front.stderr
        finally:
            process.kill()
            print(stderr.read_text())


class FakeNode:
    """Listens as a node does; each connection is the test's."""

    def __init__(self, buffer_bytes: int | None = None) -> None:
        """Listen, with buffers of so many bytes in each connection."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        if buffer_bytes is not None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self._listener.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        self._accepted: list[socket.socket] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def accept(self) -> socket.socket:
        """Return the next connection; it is closed at the end."""
        accepted, _ = self._listener.accept()
        accepted.settimeout(20)
        self._accepted.append(accepted)
        return accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for accepted in self._accepted:
            accepted.close()


def reset(connection: socket.socket) -> None:
    """End a connection at once, with whatever waits in it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything until the other side has ended, and end this one."""
    data = b""
    while more := connection.recv(1_000_000):
        data += more
    connection.close()
    return data
