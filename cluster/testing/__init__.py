"""Tests of applications: nodes in this process, with clients as objects and time in hand.

    from cluster.testing import TestCluster, TestNode

It needs no test framework. Nothing here opens a socket, starts a process or sleeps.
"""

from cluster.client.packet import Packet
from cluster.testing.client import NothingReceived, TestClient
from cluster.testing.cluster import TestCluster
from cluster.testing.cluster_node import ClusterNode
from cluster.testing.node import TestNode

__all__ = ["ClusterNode", "NothingReceived", "Packet", "TestClient", "TestCluster", "TestNode"]
