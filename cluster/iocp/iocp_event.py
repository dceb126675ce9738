"""Events: one object for each registered operation, in the role of an OVERLAPPED.

An event belongs to the driver from `submit` to its completion. Its `owner` is set by whoever
registers it and taken off by `IocpCore` when the completion is dispatched, so an object that
has an operation pending cannot vanish, and one that has none is not kept alive. Events are
reusable once their completion was dispatched.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from cluster.iocp.causes import Cause
from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.driver.contract import Handle
    from cluster.iocp.iocp_object import IocpObject
    from cluster.iocp.session import Session

__all__ = [
    "IOV_MAX",
    "AcceptEvent",
    "ConnectEvent",
    "DisconnectEvent",
    "EventType",
    "IocpEvent",
    "RecvEvent",
    "SendEvent",
]

Buffer = bytes | bytearray | memoryview

IOV_MAX = 1024
"""Buffers that one gathering send takes at most (Linux: UIO_MAXIOV; POSIX asks for 16)."""


class EventType(IntEnum):
    """What kind of operation an event stands for."""

    ACCEPT = 0
    CONNECT = 1
    DISCONNECT = 2
    RECV = 3
    SEND = 4
    WATCH = 5
    POST = 6


_RECV, _ACCEPT = EventType.RECV, EventType.ACCEPT


class IocpEvent:
    """One operation: its kind, its owner while it is pending, and its outcome.

    `error` is None after success, else the normalised cause, and `raw_error` the system's own
    code. `data` holds what a recv brought, valid until dispatch returns. `in_flight` is the
    driver's: true from `submit` or `post` until the completion is handed out.
    """

    __slots__ = ("data", "error", "event_type", "in_flight", "owner", "raw_error")

    def __init__(self, event_type: EventType, owner: "IocpObject | None" = None) -> None:
        self.event_type = event_type
        self.owner = owner
        self.error: Cause | None = None
        self.raw_error = 0
        self.data: bytes | memoryview | None = None
        self.in_flight = False

    def init(self) -> None:
        """Forget the last outcome; done by the driver when the event is submitted."""
        self.error = None
        self.raw_error = 0
        self.data = None

    def fail(self, cause: Cause, raw_error: int = 0) -> None:
        """Note that the operation failed; called by drivers."""
        self.error = cause
        self.raw_error = raw_error

    def release(self) -> None:
        """Let go of what the operation holds, done or not; it will not be dispatched."""
        self.data = None

    def __repr__(self) -> str:
        state = "in flight" if self.in_flight else "idle"
        outcome = f", {self.error} ({self.raw_error})" if self.error else ""
        return f"<{type(self).__name__} {self.event_type.name} {state}{outcome}>"


class AcceptEvent(IocpEvent):
    """Waits for one client. On success `accepted` is the connected handle, `address` the peer's."""

    __slots__ = ("accepted", "address", "session")

    def __init__(self, session: "Session | None" = None) -> None:
        # `IocpEvent.__init__`, written out: each connection has one, and the call is half of it.
        self.event_type = _ACCEPT
        self.owner = None
        self.error = None
        self.raw_error = 0
        self.data = None
        self.in_flight = False
        self.session = session
        self.accepted: Handle | None = None
        self.address: NetAddress | None = None

    def release(self) -> None:
        """Close an accepted handle that nobody took, and let go of the session."""
        super().release()
        accepted, self.accepted = self.accepted, None
        self.session = None
        if accepted is not None:
            accepted.close()


class ConnectEvent(IocpEvent):
    """Connects the owner's handle to `address`."""

    __slots__ = ("address",)

    def __init__(self, address: NetAddress | None = None) -> None:
        super().__init__(EventType.CONNECT)
        self.address = address


class DisconnectEvent(IocpEvent):
    """Ends the sending side of the owner's handle, after all that was sent before."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(EventType.DISCONNECT)


class RecvEvent(IocpEvent):
    """Receives what has come, at most one driver buffer full, into `data`."""

    __slots__ = ()

    def __init__(self) -> None:
        # Written out as above, because each session has one.
        self.event_type = _RECV
        self.owner = None
        self.error = None
        self.raw_error = 0
        self.data = None
        self.in_flight = False


class SendEvent(IocpEvent):
    """Sends `send_buffers` as one gather; the driver may move only a part of it.

    The event keeps the buffers until `advance` or `release` gives them back.
    """

    __slots__ = ("send_buffers",)

    def __init__(self, send_buffers: Sequence[Buffer] = ()) -> None:
        super().__init__(EventType.SEND)
        self.send_buffers: list[Buffer] = list(send_buffers)

    def gather(self) -> list[Buffer]:
        """Return the buffers for one system call: the first `IOV_MAX` of what is left."""
        buffers = self.send_buffers
        return buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX]

    def advance(self, num_bytes: int) -> bool:
        """Take `num_bytes` sent bytes off the front; return whether anything is left."""
        buffers = self.send_buffers
        done = 0
        for buffer in buffers:
            if num_bytes < len(buffer):
                break
            num_bytes -= len(buffer)
            done += 1
        else:
            buffers.clear()
            return False
        del buffers[:done]
        if num_bytes:
            buffers[0] = memoryview(buffers[0])[num_bytes:]
        return True

    def release(self) -> None:
        """Let go of every buffer, sent or not."""
        super().release()
        self.send_buffers.clear()
