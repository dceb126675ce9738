"""A node keeps the CPUs of its machine awake for as long as its gateway lives."""

import os
import signal
from pathlib import Path
from struct import unpack

import pytest

from cluster.shared.cpu_latency import CPU_LATENCY_DEVICE
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient
from tests.system.test_spares import complete, is_complete, write_config

pytestmark = pytest.mark.skipif(
    not os.access(CPU_LATENCY_DEVICE, os.R_OK | os.W_OK), reason=f"needs {CPU_LATENCY_DEVICE}"
)


def latency_us() -> int:
    """Return within what time every CPU wakes, as all processes of the machine have asked."""
    (asked,) = unpack("=i", CPU_LATENCY_DEVICE.read_bytes())
    return int(asked)


def holders(pids: list[int]) -> list[int]:
    """Return which of these processes have the device open."""
    return [
        pid
        for pid in pids
        for descriptor in Path(f"/proc/{pid}/fd").iterdir()
        if descriptor.readlink() == CPU_LATENCY_DEVICE
    ]


def test_the_gateway_holds_the_request_and_no_other_process(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    before = latency_us()
    node = cluster_up(*write_config(tmp_path, "[gateway]\ncpu_latency_us = 7\n"))
    status = complete(node)
    pids = [process["pid"] for process in (*status["workers"], *status["spares"])]
    gateway = status["gateway"]["pid"]
    assert latency_us() == min(before, 7)
    assert holders([node.pid, gateway, *pids]) == [gateway]
    os.kill(gateway, signal.SIGKILL)
    node.wait_status(
        lambda after: after["epoch"] > status["epoch"] and is_complete(after), "the next epoch"
    )
    with PacketClient(node.port) as client:
        assert client.ask(1, b"again") == (1, b"again")
    assert latency_us() == min(before, 7)
    assert node.drain() == 0
    assert latency_us() == before
