"""Sockets that served a client and may serve another: kept for later accepts.

Only where the driver was asked to reuse sockets. The system gives each back when it is through with
the connection, TIME_WAIT included; until then disconnecting it is an operation like any other.
"""

import socket
from collections import deque

from cluster.iocp.driver.windows_handle import Operation, WindowsHandle
from cluster.iocp.iocp_event import EventType, IocpEvent

__all__ = ["SpareSockets"]

_SPARES_MAX = 1_024
"""Most sockets that are kept for later accepts, or are being made fit for one."""

_TF_REUSE_SOCKET = 2


class SpareSockets:
    """Sockets that no handle has. Single steps on them are atomic in CPython."""

    __slots__ = ("_in_flight", "_recycling", "_sockets")

    def __init__(self, in_flight: dict[int, Operation]) -> None:
        """`in_flight` is the driver's table of operations, by the address of their OVERLAPPED."""
        self._in_flight = in_flight
        self._sockets: deque[socket.socket] = deque()
        self._recycling = 0

    def recycle(self, handle: WindowsHandle, sock: socket.socket) -> bool:
        """End the connection of a closed handle, and then keep its socket.

        False when there are enough of them, or it cannot be had: the socket stays the caller's.
        """
        if len(self._sockets) + self._recycling >= _SPARES_MAX:
            return False
        operation = Operation(handle, IocpEvent(EventType.DISCONNECT))
        operation.accepted = sock
        address = operation.overlapped.address
        self._in_flight[address] = operation
        self._recycling += 1
        try:
            operation.overlapped.DisconnectEx(handle.fd, _TF_REUSE_SOCKET)
        except OSError:
            del self._in_flight[address]
            self._recycling -= 1
            return False
        return True

    def add(self, operation: Operation) -> None:
        """The operation of `recycle` has completed: keep its socket, if it is fit for use."""
        sock = operation.accepted
        assert sock is not None
        self._recycling -= 1
        try:
            operation.overlapped.getresult()
        except OSError:
            sock.close()
        else:
            self._sockets.append(sock)

    def take(self, family: int) -> socket.socket | None:
        """Return one of an address family; None when there is none."""
        for _ in range(len(self._sockets)):
            sock = self._sockets.popleft()
            if sock.family == family:
                return sock
            self._sockets.append(sock)
        return None

    def close(self) -> None:
        """Keep no socket."""
        while self._sockets:
            self._sockets.popleft().close()
