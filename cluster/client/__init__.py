"""A client for Python programs on asyncio: tools, bots, tests, and other servers.

It needs nothing of a node: what it speaks is packets over TCP.
"""

from cluster.client.client import BadPacketError, Client, connect
from cluster.client.packet import Packet

__all__ = ["BadPacketError", "Client", "Packet", "connect"]
