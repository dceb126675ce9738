"""A node on a system that refuses io_uring: by default it serves, and when asked for it says no.

The refusal is a real one, by a seccomp filter as containers have it, in a process without
privileges.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.iocp import DriverUnavailableError, choose_driver
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

if sys.platform != "linux":
    pytest.skip("seccomp is a part of Linux", allow_module_level=True)

IO_URING_SETUP = 425
"""The same on every processor."""

EPERM = 1
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x0005_0000, 0x7FFF_0000
CAPABILITY_LAST = Path("/proc/sys/kernel/cap_last_cap")
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06


class Instruction(ctypes.Structure):
    """struct sock_filter"""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("count", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction)))


_INSTRUCTIONS = (Instruction * 4)(
    Instruction(LOAD_WORD, 0, 0, 0),  # the number of the call
    Instruction(JUMP_EQUAL, 0, 1, IO_URING_SETUP),
    Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | EPERM),
    Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW),
)
_PROGRAM = Program(len(_INSTRUCTIONS), _INSTRUCTIONS)
_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


def _set(*arguments: int) -> None:
    if _prctl(*arguments, *(0,) * (5 - len(arguments))):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}")


def _have_neither_privileges_nor_rings() -> None:
    """Let this process, once it is another program, and all that it starts, have none.

    The user stays the same, for it may be the only one who can read the interpreter.
    """
    if os.geteuid() == 0:
        for capability in range(int(CAPABILITY_LAST.read_text()) + 1):
            _set(PR_CAPBSET_DROP, capability)
    _set(PR_SET_NO_NEW_PRIVS, 1)
    _set(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(_PROGRAM))


@pytest.fixture
def refused_node(cluster_up_unready: StartNode) -> Callable[..., ClusterNode]:
    """Starts nodes by `refused_node(*arguments)`, without privileges and without io_uring."""

    def start(*arguments: str) -> ClusterNode:
        return cluster_up_unready(*arguments, preexec_fn=_have_neither_privileges_nor_rings)

    return start


def test_a_node_serves_on_readiness_and_says_why(refused_node: Callable[..., ClusterNode]) -> None:
    node = refused_node("--workers", "1", "--driver", "auto").wait_ready()
    assert node.ready["driver"] == "readiness"
    for process in node.processes():
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        assert "Seccomp:\t2\n" in status
    with PacketClient(node.port) as client:
        assert client.ask(7, b"served all the same") == (7, b"served all the same")
        assert node.status_command()["gateway"]["driver"] == "readiness"
    told = [line for line in node.stderr.splitlines() if "io_uring" in line]
    assert len(told) == 1, node.stderr
    assert "(EPERM); kernel.io_uring_disabled or a seccomp filter forbids it" in told[0]
    assert "the driver is readiness" in told[0]
    assert node.drain() == 0


def test_a_node_that_was_told_to_use_io_uring_ends_with_one_line(
    refused_node: Callable[..., ClusterNode],
) -> None:
    node = refused_node("--workers", "1", "--driver", "io_uring")
    assert node.wait_exit() == 2
    assert node.stdout == ""
    told = [line for line in node.stderr.splitlines() if "io_uring" in line]
    assert len(told) == 1, node.stderr
    assert told[0].startswith("cluster gateway: gateway.driver: driver 'io_uring' is refused")
    assert told[0].endswith("; use 'auto' or 'readiness'")
    assert "Traceback" not in node.stderr
    assert node.processes() == []


def test_a_node_has_a_ring_by_default(cluster_up: StartNode) -> None:
    try:
        choose_driver("io_uring").close()
    except DriverUnavailableError as error:
        pytest.skip(f"driver io_uring: {error}")
    node = cluster_up("--workers", "1")
    assert node.ready["driver"] == "io_uring"
    assert node.status_command()["gateway"]["driver"] == "io_uring"
    with PacketClient(node.port) as client:
        assert client.ask(1, b"hello") == (1, b"hello")
    assert "io_uring" not in node.stderr
    assert node.drain() == 0
