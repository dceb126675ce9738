"""Connects to a node, from the event loop's thread.

What comes of it is a plain socket, for the loop's `sock_recv` and `sock_sendall`. A transport would
lose what the node sent last: it ends with the first write that fails, whatever is still to be read.
"""

import asyncio
import contextlib
import socket

from cluster.iocp import NetAddress

__all__ = ["connect_node"]

_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A node whose machine is gone is noticed, also while nobody sends anything."""


async def connect_node(node: NetAddress, source: str | None, header: bytes) -> socket.socket:
    """Return a connection to `node` that begins with `header`, a few bytes or none.

    It comes from the local address `source`, if there is one. Tries all addresses of a name. Raises
    OSError.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    error = OSError("no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            if source is not None:
                connection.bind((source, 0))
            await loop.sock_connect(connection, address)
            _set_options(connection)
            await loop.sock_sendall(connection, header)
        except OSError as failed:
            connection.close()
            error = failed
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise error


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
