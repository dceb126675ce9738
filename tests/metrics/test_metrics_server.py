"""The server of metrics: what those cost it that connect and do not ask."""

import socket
import threading

import pytest

from cluster.iocp import NetAddress
from cluster.metrics.metrics_server import MetricsHandler, metrics_served
from tests.support import wait_until


def test_who_does_not_ask_is_let_go(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MetricsHandler, "timeout", 0.1)
    with metrics_served([], NetAddress("127.0.0.1", 0), "--listen") as line:
        threads_before = threading.active_count()
        address = NetAddress.parse(line.removeprefix("metrics http://").removesuffix("/metrics"))
        with (
            socket.create_connection((address.host, address.port), timeout=20) as silent,
            socket.create_connection((address.host, address.port), timeout=20) as dripping,
        ):
            dripping.sendall(b"GET /metrics HTTP/1.1\r\n")
            assert silent.recv(1) == b""
            assert dripping.recv(1) == b""
        wait_until(lambda: threading.active_count() == threads_before)
    assert capfd.readouterr().err == ""
