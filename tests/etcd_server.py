"""A real etcd for tests, as a process: on a free port, fast, and gone afterwards."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import wait_until

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None, reason="etcd is not installed (apt-get install etcd-server)"
)


class EtcdServer:
    """One server with its data in `directory`; it may be stopped and started again."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("etcd", "--data-dir", str(self._directory / "data")),
                    *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                    *("--listen-peer-urls", "http://127.0.0.1:0"),
                    *("--initial-advertise-peer-urls", "http://127.0.0.1:0"),
                    *("--initial-cluster", "default=http://127.0.0.1:0"),
                    # Elections of one are quick, and leases may last 1 s.
                    *("--heartbeat-interval", "10", "--election-timeout", "50"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(self._is_healthy, timeout_s=20, interval_s=0.05, what="a healthy etcd")

    def kill(self) -> None:
        """End it as a crash does; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()[-2_000:]
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return json.load(answer)["health"] == "true"
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def run_etcd(directory: Path) -> Iterator[EtcdServer]:
    """Run a server on a port that nobody else is given meanwhile."""
    with socket.socket() as holder:
        # Bound without listening, with the option that lets the server bind it as well.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        server = EtcdServer(directory, holder.getsockname()[1])
        try:
            yield server
        finally:
            server.kill()
