"""Fixtures of the tests of the front: an echo node for a module, a node by hand for a test."""

from collections.abc import Iterator

import pytest

from tests.system.cluster_node import ClusterNode
from tests.system.conftest import cluster_up, cluster_up_unready
from tests.websocket.front import FakeNode

__all__ = ["cluster_up", "cluster_up_unready"]


@pytest.fixture(scope="module")
def echo_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNode]:
    """A node with the echo application."""
    node = ClusterNode(tmp_path_factory.mktemp("echo"), ["--workers", "2"])
    try:
        yield node.wait_ready()
    finally:
        node.close()


@pytest.fixture
def fake_node() -> Iterator[FakeNode]:
    """A node whose connections are the test's."""
    with FakeNode() as node:
        yield node
