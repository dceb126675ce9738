"""A listening socket that knows its connections from the moment in which they come.

The event loop tells of a connection when its TLS handshake is complete: how many are in one, and
how many never complete it, shows nowhere else. Where the loop does not call `accept`, which is on
Windows, nobody is counted here.
"""

import socket
from typing import Any, Protocol

from cluster.iocp import NetAddress

__all__ = ["Door", "DoorKeeper"]


class DoorKeeper(Protocol):
    """Is asked and told. In the event loop's thread."""

    def admits(self, peer: NetAddress) -> bool:
        """Whether a connection from `peer`, which has come, is not one too many."""

    def entered(self, fd: int, peer: NetAddress) -> None:
        """One that was admitted is open, and has the descriptor `fd`."""

    def left(self, fd: int) -> None:
        """It is about to be closed."""


class Door(socket.socket):
    """Accepts those whom its keeper admits; the others are closed."""

    def __init__(self, listener: socket.socket, keeper: DoorKeeper) -> None:
        """Take the place of `listener`, which is not to be used any more."""
        super().__init__(fileno=listener.detach())
        self._keeper = keeper
        self._is_shut = False

    def shut(self) -> None:
        """Accept nobody any more; who has come waits until the door is closed."""
        self._is_shut = True

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address.

        Raises ConnectionAbortedError, for which the event loop goes on, if it is one too many;
        BlockingIOError, as if there were none, once it is shut.
        """
        if self._is_shut:
            raise BlockingIOError
        accepted, address = super().accept()
        peer = NetAddress.from_sockaddr(address)
        if not self._keeper.admits(peer):
            accepted.close()
            raise ConnectionAbortedError("one too many")
        entered = _Entered(accepted, self._keeper)
        self._keeper.entered(entered.fileno(), peer)
        return entered, address


class _Entered(socket.socket):
    def __init__(self, accepted: socket.socket, keeper: DoorKeeper) -> None:
        super().__init__(fileno=accepted.detach())
        self._keeper = keeper

    def close(self) -> None:
        """Close it, as ever, and tell of it."""
        if self.fileno() != -1:
            self._keeper.left(self.fileno())
        super().close()
