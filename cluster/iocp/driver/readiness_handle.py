"""A descriptor of the readiness driver, and what waits for it."""

import socket
from collections import deque
from typing import TYPE_CHECKING

from cluster.iocp.driver.socket_handle import SocketHandle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import AcceptEvent, IocpEvent

if TYPE_CHECKING:
    from cluster.iocp.driver.readiness import ReadinessDriver

__all__ = ["ReadinessHandle", "take_off"]


class ReadinessHandle(SocketHandle):
    """A socket and what waits for it. `sock` is None for a watched foreign descriptor."""

    __slots__ = ("accepts", "driver", "fd", "more", "recv", "registered", "send")

    def __init__(self, driver: "ReadinessDriver", sock: socket.SocketType | None, fd: int) -> None:
        # `SocketHandle.__init__`, written out: there is one for each connection.
        self.sock = sock
        self.broken = 0
        self.driver = driver
        self.fd = fd
        self.registered = 0
        """The bits that the poller waits for."""
        self.more = False
        """Whether the last recv filled its buffer: then the next one tries at once."""
        self.recv: IocpEvent | None = None
        """A recv, or the watch of a foreign descriptor."""
        self.send: IocpEvent | None = None
        """A send or a connect."""
        self.accepts: deque[AcceptEvent] | None = None

    def close(self) -> None:
        if self.sock is None:
            return
        if self.recv is not None or self.send is not None or self.accepts:
            raise MisuseError("a handle was closed while an operation on it is in flight")
        self.driver._close_handle(self, self.sock)
        self.sock = None


def take_off(handle: ReadinessHandle, event: IocpEvent) -> bool:
    """Take `event` off its handle; False when it is not pending there (it has completed)."""
    if handle.recv is event:
        handle.recv = None
    elif handle.send is event:
        handle.send = None
    elif handle.accepts and event in handle.accepts:
        assert isinstance(event, AcceptEvent)
        handle.accepts.remove(event)
    else:
        return False
    return True
