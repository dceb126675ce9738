"""The socket of a driver that uses the system's sockets, up to what waits for it."""

import socket

from cluster.iocp.errors import MisuseError
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import set_linger_reset

__all__ = ["SocketHandle"]


class SocketHandle:
    """A socket until it is closed, when `sock` becomes None."""

    __slots__ = ("broken", "sock")

    def __init__(self, sock: socket.SocketType | None) -> None:
        self.sock = sock
        self.broken = 0
        """The errno that a send failed with. The system tells a broken connection once: the
        recv that comes after such a send would take it for an orderly end."""

    @property
    def local_address(self) -> NetAddress:
        if self.sock is None:
            raise MisuseError("the handle is closed; it has no address any more")
        return NetAddress.from_sockaddr(self.sock.getsockname())

    @property
    def is_closed(self) -> bool:
        return self.sock is None

    def reset_on_close(self) -> None:
        if self.sock is not None:
            set_linger_reset(self.sock)
