"""A socket of the Windows driver, and what the system is doing on it."""

import socket
from collections.abc import Callable
from threading import Lock

from cluster.iocp.driver.windows_port import Overlapped, new_overlapped
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import IocpEvent
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import set_linger_reset

__all__ = ["Operation", "WindowsHandle"]


class Operation:
    """What the system is doing for one event.

    `accepted` is a socket that has no handle: that of an accept, or one that is made fit for one.
    `is_reused` says that it had a handle before.
    """

    __slots__ = ("accepted", "cancelled", "event", "handle", "is_reused", "overlapped")

    def __init__(self, handle: "WindowsHandle", event: IocpEvent) -> None:
        self.handle = handle
        self.event = event
        self.overlapped: Overlapped = new_overlapped()
        self.cancelled = False
        self.accepted: socket.socket | None = None
        self.is_reused = False

    def cancel(self) -> None:
        """Ask for the end of it. Any thread."""
        # The flag first: whoever starts the next stage looks at it after the start.
        self.cancelled = True
        self.overlapped.cancel()


class WindowsHandle:
    """A socket and its operations. `sock` is None once it is closed."""

    __slots__ = (
        "_dispose",
        "_lock",
        "accepts",
        "fd",
        "may_be_reused",
        "more",
        "owner",
        "recv",
        "send",
        "sock",
    )

    def __init__(
        self,
        owner: object,
        sock: socket.socket,
        lock: Lock,
        dispose: "Callable[[WindowsHandle, socket.socket], None]",
    ) -> None:
        """Take over `sock` for the driver `owner`, and leave it to `dispose` in the end.

        The lock, which is held then, keeps out a thread that is starting something on it.
        """
        self.owner = owner
        self.sock: socket.socket | None = sock
        self.fd = sock.fileno()
        self.more = False
        """The last recv filled its buffer: read before waiting."""
        self.recv: Operation | None = None
        self.send: Operation | None = None
        """A send or a connect."""
        self.accepts: dict[IocpEvent, Operation] | None = None
        self.may_be_reused = False
        """It was accepted, and ends in good order."""
        self._lock = lock
        self._dispose = dispose

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
            self.may_be_reused = False
            set_linger_reset(self.sock)

    def close(self) -> None:
        with self._lock:
            sock = self.sock
            if sock is None:
                return
            if self.recv is not None or self.send is not None or self.accepts:
                raise MisuseError("a handle was closed while an operation on it is in flight")
            self.sock = None
            self._dispose(self, sock)

    def abandon(self) -> None:
        """Close the socket whatever is in flight, when its driver is closed."""
        self.recv = self.send = None
        if self.accepts:
            self.accepts.clear()
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def find(self, event: IocpEvent) -> Operation | None:
        """Return what the system is doing here for `event`."""
        for operation in (self.recv, self.send):
            if operation is not None and operation.event is event:
                return operation
        return None if self.accepts is None else self.accepts.get(event)
