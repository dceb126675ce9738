"""Hundreds of clients that come, do nothing and go: the gateway is as it was before.

The short form of `benchmarks.idle_sessions`, which has the figures for 15,000.
"""

import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

SESSIONS = 400
GROWTH_BYTES_MAX = 300_000
"""Fewer than 1 KB for each session that has gone: an allocator does not give back every page."""


def own_memory(process: psutil.Process) -> int:
    """Return how many bytes it has in memory by itself: pages of the lanes are its workers' too,
    and are there once a record has come to each."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def come_and_go(node: ClusterNode) -> None:
    with ExitStack() as stack:
        for _ in range(SESSIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=20))
        node.wait_status(
            lambda status: status["gateway"]["sessions"] == SESSIONS, f"{SESSIONS} sessions"
        )
    node.wait_status(lambda status: status["gateway"]["sessions"] == 0, "no sessions")


@pytest.mark.parametrize("driver", ["auto", "readiness"])
def test_the_gateway_gives_back_what_hundreds_of_sessions_took(
    cluster_up: StartNode, driver: str
) -> None:
    node = cluster_up("--workers", "1", "--driver", driver)
    come_and_go(node)
    gateway = psutil.Process(node.status()["gateway"]["pid"])
    if sys.platform == "linux":  # so that no client waits while the table of them grows
        import resource

        room = Path(f"/proc/{gateway.pid}/status").read_text().split("FDSize:")[1].split()[0]
        assert int(room) >= min(16_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    memory = own_memory(gateway)
    descriptors = wait_until(gateway.num_fds)
    for _ in range(3):
        come_and_go(node)
    wait_until(lambda: gateway.num_fds() <= descriptors, what="the descriptors to be closed")
    assert own_memory(gateway) - memory < GROWTH_BYTES_MAX
    assert node.drain() == 0
