"""Listening with as long a backlog as is asked for.

Winsock takes a plain number for 200 at most and resets the clients beyond, with no error for the
server. More is asked for by SOMAXCONN_HINT, which is the number negated; `socket.listen` makes 0 of
that.
"""

import ctypes
import socket

from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import hold_port

__all__ = ["open_listener"]

_BACKLOG_MAX = 65_535

_ws2_32 = ctypes.WinDLL("ws2_32", use_last_error=True)
_listen = _ws2_32.listen
_listen.argtypes = [ctypes.c_size_t, ctypes.c_int]
_listen.restype = ctypes.c_int


def open_listener(address: NetAddress, backlog: int, shares_port: bool) -> socket.socket:
    """Return a socket that listens on `address`; raises OSError. See `open_listening_socket`."""
    sock = hold_port(address, shares_port)
    try:
        if _listen(sock.fileno(), -min(max(backlog, 1), _BACKLOG_MAX)) != 0:
            raise ctypes.WinError(ctypes.get_last_error())
    except BaseException:
        sock.close()
        raise
    return sock
