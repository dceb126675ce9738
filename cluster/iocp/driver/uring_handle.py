"""A socket of the io_uring driver, and what is in flight on it."""

import socket
from collections import deque
from typing import TYPE_CHECKING

from cluster.iocp.driver.contract import RECV_BYTES_MAX
from cluster.iocp.driver.socket_handle import SocketHandle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import AcceptEvent, IocpEvent

if TYPE_CHECKING:
    from cluster.iocp.driver.uring import UringDriver

__all__ = ["UringHandle", "take_kept"]


class UringHandle(SocketHandle):
    """A socket and what is in flight on it."""

    __slots__ = (
        "accepts",
        "armed",
        "driver",
        "end",
        "fd",
        "flows",
        "is_cancelled",
        "kept",
        "recv",
        "recv_is_cancelled",
        "send",
        "send_id",
        "send_is_cancelled",
    )

    def __init__(self, driver: "UringDriver", sock: socket.SocketType) -> None:
        # `SocketHandle.__init__`, written out: there is one for each connection.
        self.sock = sock
        self.broken = 0
        self.driver = driver
        self.fd = sock.fileno()
        self.armed = 0
        """`user_data` of the multishot recv, or of a listener's poll; 0 without."""
        self.flows = False
        """Whether a recv has nothing to do but to wait: armed, nothing kept, no end seen, and one
        thread does all."""
        self.is_cancelled = False
        """Whether the end of what is armed was asked for."""
        self.kept: deque[bytes] | None = None
        """What came while no recv was registered."""
        self.end: int | None = None
        """0 after the peer's EOF, the errno of a broken connection, None before."""
        self.recv: IocpEvent | None = None
        self.recv_is_cancelled = False
        """Whether it was asked to end the recv that is registered."""
        self.send: IocpEvent | None = None
        self.send_id = 0
        self.send_is_cancelled = False
        """Whether it was asked to end the send or connect that is registered."""
        self.accepts: deque[AcceptEvent] | None = None
        driver._open.add(self)

    def close(self) -> None:
        if self.sock is None:
            return
        if self.recv is not None or self.send is not None or self.accepts:
            raise MisuseError("a handle was closed while an operation on it is in flight")
        self.driver._close_handle(self, self.sock)
        self.sock = None


def take_kept(handle: UringHandle) -> bytes:
    """Return what was kept, up to the size of one recv."""
    kept = handle.kept
    assert kept
    parts = [kept.popleft()]
    num_bytes = len(parts[0])
    while kept and num_bytes + len(kept[0]) <= RECV_BYTES_MAX:
        parts.append(kept.popleft())
        num_bytes += len(parts[-1])
    if not kept:
        handle.kept = None
    return parts[0] if len(parts) == 1 else b"".join(parts)
