"""Fixtures of the system tests. Every node gets a run directory and a free port of its own."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp import DriverUnavailableError, choose_driver
from cluster.shared.lane_choice import choose_lane
from tests.system.cluster_node import ClusterNode

StartNode = Callable[..., ClusterNode]

SOCKET_DRIVERS = [*{"win32": ["iocp"], "linux": ["io_uring"]}.get(sys.platform, []), "readiness"]
"""The best driver of this system, and the one that takes its place where it is refused."""


LANES = [*dict.fromkeys([choose_lane("auto"), "zmq"])]
"""The kinds of lane that a node can have on this system, the one by default first."""


@pytest.fixture(
    params=[LANES[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in LANES[1:])]
)
def lane(request: pytest.FixtureRequest) -> str:
    """Each kind of lane; a test that takes it runs its node with `--lane`."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module", params=SOCKET_DRIVERS)
def socket_driver(request: pytest.FixtureRequest) -> str:
    """The name of each driver that a gateway serves clients on; skips what cannot run."""
    name: str = request.param
    try:
        choose_driver(name).close()
    except DriverUnavailableError as error:
        pytest.skip(f"driver {name}: {error}")
    return name


@pytest.fixture
def cluster_up_unready(tmp_path: Path) -> Iterator[StartNode]:
    """Start nodes by `cluster_up_unready(*arguments, ...)` without waiting for them."""
    nodes: list[ClusterNode] = []
    numbers = itertools.count()

    def start(*arguments: str, **options: Any) -> ClusterNode:
        nodes.append(ClusterNode(tmp_path / f"node{next(numbers)}", arguments, **options))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()
        print(f"what {node.run_dir} said:\n{node.stderr}")  # shown when the test fails


@pytest.fixture
def cluster_up(cluster_up_unready: StartNode) -> StartNode:
    """Start nodes by `cluster_up(*arguments, listen=, run_dir=, cwd=, env=)`; each is ready."""

    def start(*arguments: str, **options: Any) -> ClusterNode:
        return cluster_up_unready(*arguments, **options).wait_ready()

    return start
