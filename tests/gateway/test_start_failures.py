"""What keeps a gateway from starting is told in one line, and its core is closed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from cluster.gateway import local_door, process
from cluster.gateway.control import ControlPlane
from cluster.gateway.process import run_gateway
from cluster.iocp import IocpCore
from cluster.shared.config import Config, GatewayConfig, NodeConfig
from cluster.shared.cpu_latency import CpuLatencyError
from cluster.shared.run_directory import RunDirectory

CONFIG = Config(node=NodeConfig(listen="127.0.0.1:0"), gateway=GatewayConfig(driver="readiness"))


def raises(error: Exception) -> Callable[..., object]:
    def fail(*arguments: object, **options: object) -> object:
        raise error

    return fail


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[IocpCore]:
    """The cores that were closed."""
    cores: list[IocpCore] = []

    class Watched(IocpCore):
        def close(self) -> None:
            cores.append(self)
            super().close()

    monkeypatch.setattr(process, "IocpCore", Watched)
    return cores


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EMFILE, "Too many open files; raise the limit (ulimit -Hn, LimitNOFILE)"),
        (errno.ENFILE, "Too many open files in system"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_driver_that_the_system_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: int,
    told: str,
):
    monkeypatch.setattr(process, "choose_driver", raises(os_error(number)))
    assert run_gateway(RunDirectory(tmp_path / "run"), CONFIG) == 2
    assert capfd.readouterr().err == f"cluster gateway: gateway.driver: it cannot be had: {told}\n"


def test_cpus_that_cannot_be_kept_from_sleeping(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    closed: list[IocpCore],
):
    monkeypatch.setattr(process, "cpu_latency", raises(CpuLatencyError("there is none")))
    config = Config(gateway=GatewayConfig(driver="readiness", cpu_latency_us=0))
    assert run_gateway(RunDirectory(tmp_path / "run"), config) == 2
    assert capfd.readouterr().err == (
        "cluster gateway: gateway.cpu_latency_us = 0: there is none\n"
    )
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EMFILE, "cannot be had: Too many open files; raise the limit (ulimit -Hn"),
        (errno.ENOMEM, "Cannot allocate memory; lower lane.bytes or workers.count"),
    ],
)
def test_lanes_that_the_system_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    closed: list[IocpCore],
    number: int,
    told: str,
):
    monkeypatch.setattr(local_door, "open_lane_hub", raises(os_error(number)))
    assert run_gateway(RunDirectory(tmp_path / "run"), CONFIG) == 2
    assert told in capfd.readouterr().err
    assert len(closed) == 1


def test_a_control_plane_that_cannot_be_bound(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    closed: list[IocpCore],
):
    monkeypatch.setattr(ControlPlane, "__init__", raises(zmq.ZMQError(errno.EADDRINUSE)))
    assert run_gateway(RunDirectory(tmp_path / "run"), CONFIG) == 2
    assert capfd.readouterr().err.startswith("cluster gateway: cannot bind ")
    assert len(closed) == 1
