"""Tests of applications: a whole node in this process, with clients as objects and time in hand.

    from cluster.testing import TestNode

It needs no test framework. Nothing here opens a socket, starts a process or sleeps.
"""

from cluster.client.packet import Packet
from cluster.testing.client import NothingReceived, TestClient
from cluster.testing.node import TestNode

__all__ = ["NothingReceived", "Packet", "TestClient", "TestNode"]
