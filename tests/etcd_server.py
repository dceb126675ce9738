"""A real etcd for tests, as a process: on a free port, fast, and gone afterwards."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait_until

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None, reason="etcd is not installed (apt-get install etcd-server)"
)


class EtcdServer:
    """One server with its data in `directory`; it may be stopped and started again.

    With `certificates`, a directory in which `self_signed` has made some, it speaks TLS, and wants
    of its clients a certificate that its own has signed.
    """

    def __init__(self, directory: Path, port: int, certificates: Path | None = None) -> None:
        self.port = port
        self._certificates = certificates
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.context: ssl.SSLContext | None = None
        if certificates is not None:
            self.context = ssl.create_default_context(cafile=certificates / "certificate")
            self.context.load_cert_chain(certificates / "both.pem")
        directory.mkdir(exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        tls = []
        if self._certificates is not None:
            certificate, key = self._certificates / "certificate", self._certificates / "key"
            tls += ["--cert-file", str(certificate), "--key-file", str(key)]
            tls += ["--trusted-ca-file", str(certificate), "--client-cert-auth"]
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
                    *tls,
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
            url = f"{self.url}/health"
            with urllib.request.urlopen(url, timeout=1, context=self.context) as answer:
                return json.load(answer)["health"] == "true"
        except (urllib.error.URLError, OSError):
            return False


class EtcdUsers:
    """Those of an etcd: `root`, and one that may have what is under a cluster's name."""

    def __init__(self, etcd: EtcdServer) -> None:
        self._etcd = etcd
        self._token = ""
        self.ask("auth/user/add", name="root", password="of root")
        self.ask("auth/user/grant", user="root", role="root")
        self.ask("auth/role/add", name="games")
        span = {"key": _text(b"iocp-cluster/"), "range_end": _text(b"iocp-cluster0")}
        self.ask("auth/role/grant", name="games", perm={"permType": "READWRITE", **span})
        for user in ("game", "guest"):
            self.ask("auth/user/add", name=user, password=f"of {user}")
        self.ask("auth/user/grant", user="game", role="games")

    def ask(self, path: str, **request: Any) -> Any:
        headers = {"Authorization": self._token} if self._token else {}
        asked = urllib.request.Request(
            f"{self._etcd.url}/v3/{path}", json.dumps(request).encode(), headers
        )
        with urllib.request.urlopen(asked, timeout=10, context=self._etcd.context) as answer:
            return json.load(answer)

    def enable(self) -> None:
        self.ask("auth/enable")
        self._token = self.ask("auth/authenticate", name="root", password="of root")["token"]

    def change_password(self, user: str, password: str) -> None:
        """Change it; the tokens that the user has are none any more."""
        self.ask("auth/user/changepw", name=user, password=password)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def run_etcd(directory: Path, certificates: Path | None = None) -> Iterator[EtcdServer]:
    """Run a server on a port that nobody else is given meanwhile."""
    with socket.socket() as holder:
        # Bound without listening, with the option that lets the server bind it as well.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        server = EtcdServer(directory, holder.getsockname()[1], certificates)
        try:
            yield server
        finally:
            server.kill()
