"""How the Windows driver starts each kind of operation, and what it makes of its completion.

An operation is in the table, under the address of its OVERLAPPED, from before it is started until
its completion was taken from the port: the system writes there until then. A recv waits with no
buffer at all (WSARecv of nothing completes when something has come) and then reads what is there,
so an idle session pins no memory and a cancelled recv loses no bytes.
"""

import logging
import socket
import struct
from collections import deque
from collections.abc import Callable

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import RECV_BYTES_MAX, Completion
from cluster.iocp.driver.outcomes import let_go
from cluster.iocp.driver.windows_handle import Operation, WindowsHandle
from cluster.iocp.driver.windows_port import new_overlapped
from cluster.iocp.driver.windows_spares import SpareSockets
from cluster.iocp.errors import EventInFlightError, MisuseError, classify_os_error
from cluster.iocp.iocp_event import (
    AcceptEvent,
    Buffer,
    ConnectEvent,
    EventType,
    IocpEvent,
    SendEvent,
)
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import set_no_delay

__all__ = ["OPERATION_ABORTED", "Operations", "begin"]

logger = logging.getLogger("cluster.iocp")

OPERATION_ABORTED = 995
"""ERROR_OPERATION_ABORTED: the raw code of what was cancelled."""

_JOIN_BYTES_MAX = 65_536
"""Most bytes that are copied together for one send: WSASend of `_overlapped` takes one buffer.
A buffer that does not fit is sent alone and uncopied, and the rest follows as it does after any
partial send."""

_SO_UPDATE_ACCEPT_CONTEXT = 0x700B
_SO_UPDATE_CONNECT_CONTEXT = 0x7010
_SOCKET = struct.Struct("P")

# Members of an enum, taken out of it for the paths that every packet takes.
_RECV, _SEND = EventType.RECV, EventType.SEND


class Operations:
    """What is in flight on sockets. What is done goes to the `ready` queue of the driver.

    Started in the thread that submits; completed in the one that polls. Single steps on the table
    and the queue are atomic in CPython.
    """

    __slots__ = ("_in_flight", "_new_handle", "_ready", "spares")

    def __init__(
        self, ready: deque[Completion], new_handle: Callable[[socket.socket, bool], WindowsHandle]
    ) -> None:
        """`new_handle` makes handles of accepted sockets, and is told of those it knows."""
        self._in_flight: dict[int, Operation] = {}
        self._ready = ready
        self._new_handle = new_handle
        self.spares = SpareSockets(self._in_flight)

    def __len__(self) -> int:
        return len(self._in_flight)

    # -- starting ----------------------------------------------------------------------------------

    def start(self, handle: WindowsHandle, event: IocpEvent) -> None:
        """Start `event` on an open handle; raises MisuseError.

        A cancel that another thread asks for meanwhile can do nothing before the system knows the
        operation. So the handle knows it before its event is in flight, and once it is started it
        is looked at whether it was cancelled.
        """
        kind = event.event_type
        if kind is _RECV:
            if handle.recv is not None:
                raise EventInFlightError("a recv is in flight on this handle already")
            operation = handle.recv = Operation(handle, event)
            begin(event)
            if handle.more:
                self._read(operation)
            else:
                self._await_data(operation)
        elif kind is _SEND:
            _check_send(handle)
            assert isinstance(event, SendEvent)
            self._send(handle, event)
        elif kind is EventType.ACCEPT:
            assert isinstance(event, AcceptEvent)
            if handle.accepts is None:
                raise MisuseError("accept needs the handle of a listener")
            self._accept(handle, handle.accepts, event)
        elif kind is EventType.CONNECT:
            _check_send(handle)
            assert isinstance(event, ConnectEvent)
            if event.address is None:
                raise MisuseError("a connect needs the address to connect to")
            self._connect(handle, event, event.address)
        elif kind is EventType.DISCONNECT:
            begin(event)
            self._shut_down(handle, event)
        else:
            raise MisuseError(f"{event!r} cannot be submitted; use post or watch")

    def _await_data(self, operation: Operation) -> None:
        overlapped = operation.overlapped
        address = overlapped.address
        # Before the start: the completion may be taken while this thread still returns from it.
        self._in_flight[address] = operation
        try:
            overlapped.WSARecv(operation.handle.fd, 0, 0)
        except OSError as error:
            del self._in_flight[address]
            operation.handle.recv = None
            self._fail(operation.event, error)
            return
        if operation.cancelled:
            overlapped.cancel()

    def _read(self, operation: Operation) -> None:
        """Take what has come; go on waiting if nothing has."""
        handle, event = operation.handle, operation.event
        assert handle.sock is not None
        data = b""
        try:
            data = handle.sock.recv(RECV_BYTES_MAX)
        except BlockingIOError:
            handle.more = False
            if not operation.cancelled:
                operation.overlapped = new_overlapped()
                self._await_data(operation)
                return
            event.fail(Cause.CANCELLED, OPERATION_ABORTED)
        except OSError as error:
            _note(event, error)
        num_bytes = len(data)
        if num_bytes:
            event.data = data
        elif event.error is None:
            event.error = Cause.EOF
        handle.more = num_bytes == RECV_BYTES_MAX
        handle.recv = None
        self._ready.append((event, num_bytes))

    def _send(self, handle: WindowsHandle, event: SendEvent) -> None:
        buffers = event.send_buffers
        data = buffers[0] if len(buffers) == 1 else _join(event.gather())
        operation = handle.send = Operation(handle, event)
        begin(event)
        self._in_flight[operation.overlapped.address] = operation
        try:
            operation.overlapped.WSASend(handle.fd, data, 0)
        except OSError as error:
            self._send_not_started(operation, error)
            return
        except (BufferError, TypeError, ValueError):  # it is no buffer that can be sent
            del self._in_flight[operation.overlapped.address]
            handle.send = None
            event.in_flight = False
            raise
        if operation.cancelled:
            operation.overlapped.cancel()

    def _connect(self, handle: WindowsHandle, event: ConnectEvent, address: NetAddress) -> None:
        operation = handle.send = Operation(handle, event)
        begin(event)
        self._in_flight[operation.overlapped.address] = operation
        assert handle.sock is not None
        try:
            # ConnectEx looks no names up, and wants all four parts of an IPv6 address.
            found = address.look_up(handle.sock.family)
            operation.overlapped.ConnectEx(handle.fd, found[0])
        except OSError as error:
            self._send_not_started(operation, error)
            return
        if operation.cancelled:
            operation.overlapped.cancel()

    def _send_not_started(self, operation: Operation, error: OSError) -> None:
        del self._in_flight[operation.overlapped.address]
        operation.handle.send = None
        self._fail(operation.event, error)

    def _accept(
        self, handle: WindowsHandle, accepts: dict[IocpEvent, Operation], event: AcceptEvent
    ) -> None:
        event.accepted = event.address = None
        assert handle.sock is not None
        operation = accepts[event] = Operation(handle, event)
        begin(event)
        sock = self.spares.take(handle.sock.family)
        operation.is_reused = sock is not None
        try:
            if sock is None:
                sock = socket.socket(handle.sock.family, socket.SOCK_STREAM)
        except OSError as error:
            del accepts[event]
            self._fail(event, error)
            return
        operation.accepted = sock
        self._in_flight[operation.overlapped.address] = operation
        try:
            operation.overlapped.AcceptEx(handle.fd, sock.fileno())
        except OSError as error:
            del self._in_flight[operation.overlapped.address]
            del accepts[event]
            sock.close()
            self._fail(event, error)
            return
        if operation.cancelled:
            operation.overlapped.cancel()

    def _shut_down(self, handle: WindowsHandle, event: IocpEvent) -> None:
        assert handle.sock is not None
        try:
            handle.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            _note(event, error)
        self._ready.append((event, 0))

    def _fail(self, event: IocpEvent, error: OSError) -> None:
        _note(event, error)
        self._ready.append((event, 0))

    # -- completing --------------------------------------------------------------------------------

    def complete(self, address: int, num_bytes: int) -> None:
        """The operation at `address` has ended; `num_bytes` were moved."""
        operation = self._in_flight.pop(address, None)
        if operation is None:
            return
        event, handle = operation.event, operation.handle
        kind = event.event_type
        if kind is EventType.DISCONNECT:
            self.spares.add(operation)
            return
        try:
            operation.overlapped.getresult()
            if kind is _RECV:
                self._read(operation)
                return
            if kind is EventType.ACCEPT:
                self._take_accepted(operation)
            elif kind is EventType.CONNECT:
                assert handle.sock is not None
                handle.sock.setsockopt(socket.SOL_SOCKET, _SO_UPDATE_CONNECT_CONTEXT, 0)
        except OSError as error:
            _note(event, error)
            num_bytes = 0
            if operation.accepted is not None:
                operation.accepted.close()
        if kind is _RECV:
            handle.recv = None
        elif kind is EventType.ACCEPT:
            assert handle.accepts is not None
            handle.accepts.pop(event, None)
        else:
            handle.send = None
        self._ready.append((event, num_bytes))

    def _take_accepted(self, operation: Operation) -> None:
        """Make a connected socket of what AcceptEx filled in; raises OSError if it has gone."""
        event, sock = operation.event, operation.accepted
        assert isinstance(event, AcceptEvent)
        assert sock is not None
        context = _SOCKET.pack(operation.handle.fd)
        sock.setsockopt(socket.SOL_SOCKET, _SO_UPDATE_ACCEPT_CONTEXT, context)
        sock.setblocking(False)
        set_no_delay(sock)
        address = NetAddress.from_sockaddr(sock.getpeername())
        accepted = self._new_handle(sock, operation.is_reused)
        accepted.may_be_reused = True
        event.accepted = accepted
        event.address = address

    # -- closing -----------------------------------------------------------------------------------

    def cancel_all(self) -> None:
        """Ask for the end of everything, and keep no socket."""
        self.spares.close()
        for operation in list(self._in_flight.values()):
            operation.cancel()

    def close_sockets(self) -> None:
        """Close the sockets that are in no handle, which ends what is in flight on them."""
        for operation in list(self._in_flight.values()):
            if operation.accepted is not None:
                operation.accepted.close()

    def forget(self, address: int) -> None:
        """The operation at `address` has ended, and nobody wants to know how."""
        operation = self._in_flight.pop(address, None)
        if operation is not None:
            if operation.accepted is not None:
                operation.accepted.close()
            let_go(operation.event)

    def abandon(self) -> None:
        """Give up on what does not end, and keep its memory for ever.

        The system may still write there: better lost than given to others.
        """
        if self._in_flight:
            logger.error("%d operations did not end; their memory is kept", len(self._in_flight))
            _ABANDONED.append(list(self._in_flight.values()))
            for operation in self._in_flight.values():
                let_go(operation.event)
            self._in_flight.clear()


_ABANDONED: list[list[Operation]] = []


def begin(event: IocpEvent) -> None:
    """Note that an operation starts: `IocpEvent.init` written out."""
    event.in_flight = True
    event.error = None
    event.raw_error = 0
    event.data = None


def _check_send(handle: WindowsHandle) -> None:
    if handle.send is not None:
        raise EventInFlightError("a send or connect is in flight on this handle already")


def _join(buffers: list[Buffer]) -> Buffer:
    """Return the first buffers as one: small ones joined, or a large one as it is."""
    total = 0
    for count, buffer in enumerate(buffers):
        size = len(buffer)
        if total + size > _JOIN_BYTES_MAX:
            return buffer if total == 0 else b"".join(buffers[:count])
        total += size
    return b"".join(buffers)


def _note(event: IocpEvent, error: OSError) -> None:
    code = getattr(error, "winerror", None) or error.errno or 0
    event.fail(classify_os_error(code), code)
