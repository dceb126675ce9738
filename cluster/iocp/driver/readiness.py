"""Completions made from readiness: for every system that can tell when a socket is ready.

A send tries the system call at once and waits for writability only if the kernel took
nothing; a recv waits for readability, unless the last one filled its buffer, which means that
more is there. Either way the outcome goes through one queue, in order, so that no operation
completes inside `submit` and no busy session gets ahead of the others.
"""

import errno
import socket
import time
from collections import deque

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import RECV_BYTES_MAX, Completion, Handle
from cluster.iocp.driver.outcomes import fail_with, let_go
from cluster.iocp.driver.queued import QueuedDriver, accepts_beside
from cluster.iocp.driver.readiness_handle import ReadinessHandle, take_off
from cluster.iocp.driver.readiness_interest import ReadinessInterest
from cluster.iocp.driver.selector_poller import READABLE, WRITABLE, Poller, SelectorPoller
from cluster.iocp.driver.socket_sends import SocketSends
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
from cluster.iocp.socket_utils import (
    accept_stream,
    has_no_delay,
    open_listening_socket,
    open_stream_socket,
    set_no_delay,
)
from cluster.iocp.wake_pair import WakePair

__all__ = ["ReadinessDriver"]

# Members of an enum, taken out of it for the paths that every packet takes.
_RECV, _SEND, _ACCEPT = EventType.RECV, EventType.SEND, EventType.ACCEPT
_EOF = Cause.EOF

_CONNECT_PENDING = frozenset(
    code
    for name in ("EINPROGRESS", "EWOULDBLOCK", "WSAEWOULDBLOCK", "WSAEINPROGRESS")
    if (code := getattr(errno, name, None)) is not None
)


class ReadinessDriver(SocketSends, QueuedDriver):
    """The driver of last resort, and a fast one. See `Driver` for the contract."""

    name = "readiness"
    wake_descriptor: int | None = None

    __slots__ = (
        "_handles",
        "_inherits_no_delay",
        "_interest",
        "_open",
        "_poller",
        "_wakes",
    )

    def __init__(self, poller: Poller | None = None, threads: int = 1) -> None:
        """Make a driver on `poller`, which it owns from now on; by default a selector."""
        self._poller: Poller = SelectorPoller() if poller is None else poller
        super().__init__(threads)
        self._interest = ReadinessInterest(self._poller, self._ready)
        self._handles = self._interest.by_descriptor  # what each poll looks its answers up in
        self._open: set[ReadinessHandle] = set()
        self._inherits_no_delay = False
        self._wakes = WakePair()
        self._poller.register(self._wakes.fileno(), READABLE)

    now = staticmethod(time.monotonic)

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        self._check_open()
        sock = open_listening_socket(address, backlog, shares_port)
        set_no_delay(sock)
        handle = self._new_handle(sock)
        handle.accepts = deque()
        return handle

    def open_socket(self, remote: NetAddress) -> Handle:
        self._check_open()
        return self._new_handle(open_stream_socket(remote))

    def _new_handle(self, sock: socket.SocketType) -> ReadinessHandle:
        handle = ReadinessHandle(self, sock, sock.fileno())
        self._open.add(handle)
        return handle

    # -- operations --------------------------------------------------------------------------------

    def recv_again(self, event: IocpEvent) -> None:
        # A socket that was read in this batch: nothing to do but to wait for it.
        handle = event.owner.handle  # type: ignore[union-attr]  # the caller has just set it
        if (
            self._is_shared
            or handle.more  # type: ignore[union-attr]
            or handle.recv is not None  # type: ignore[union-attr]
            or not handle.registered & READABLE  # type: ignore[union-attr]
        ):
            self.submit(event)
        else:
            event.in_flight = True
            handle.recv = event  # type: ignore[union-attr]

    def _is_watched(self, fd: int) -> bool:
        handle = self._interest.watched.get(fd)
        return handle is not None and handle.recv is not None

    def _start_watch(self, fd: int, event: IocpEvent) -> None:
        watched = self._interest.watched
        handle = watched.get(fd)
        if handle is None:
            handle = watched[fd] = ReadinessHandle(self, None, fd)
        handle.recv = event
        self._interest.want_anew(handle, READABLE)

    def _start(self, event: IocpEvent) -> None:
        owner = event.owner
        handle = None if owner is None else owner.handle
        if (
            not isinstance(handle, ReadinessHandle)
            or handle.driver is not self
            or handle.sock is None
        ):
            self._check_open()
            raise MisuseError(f"{event!r} has no owner with an open handle of this driver")
        kind = event.event_type
        if kind is _RECV:
            if handle.recv is not None:
                raise EventInFlightError("a recv is in flight on this handle already")
            event.data = None
            if handle.more:
                self._recv(handle, event)
            else:
                handle.recv = event
                if not handle.registered & READABLE:
                    self._interest.want(handle, READABLE)
        elif kind is _SEND:
            if handle.send is not None:
                raise EventInFlightError("a send or connect is in flight on this handle already")
            self._send(handle, event)
        elif kind is _ACCEPT:
            assert isinstance(event, AcceptEvent)
            if handle.accepts is None:
                raise MisuseError("accept needs the handle of a listener")
            event.accepted = event.address = None
            handle.accepts.append(event)
            if not handle.registered & READABLE:
                self._interest.want(handle, READABLE)
        elif kind is EventType.CONNECT:
            if handle.send is not None:
                raise EventInFlightError("a send or connect is in flight on this handle already")
            assert isinstance(event, ConnectEvent)
            self._connect(handle, event)
        elif kind is EventType.DISCONNECT:
            self._shut_down(handle.sock, event)
        else:
            raise MisuseError(f"{event!r} cannot be submitted; use post or watch")

    def _send(self, handle: ReadinessHandle, event: IocpEvent) -> None:
        assert isinstance(event, SendEvent)
        assert handle.sock is not None
        buffers = event.send_buffers
        try:
            if len(buffers) == 1:
                sent = handle.sock.send(buffers[0])
            else:
                sent = _send_gather(handle.sock, event.gather())
        except (BlockingIOError, InterruptedError):
            handle.send = event
            self._interest.want(handle, WRITABLE)
            return
        except OSError as error:
            handle.broken = error.errno or 0
            fail_with(event, error)
            sent = 0
        handle.send = None
        self._queue(event, sent)

    def _recv(self, handle: ReadinessHandle, event: IocpEvent) -> None:
        assert handle.sock is not None
        try:
            data = handle.sock.recv(RECV_BYTES_MAX)
        except OSError as error:
            self._recv_failed(handle, event, error)
            return
        num_bytes = len(data)
        if num_bytes:
            event.data = data
        else:
            _end(handle, event)
        handle.more = num_bytes == RECV_BYTES_MAX
        handle.recv = None
        self._queue(event, num_bytes)

    def _recv_failed(self, handle: ReadinessHandle, event: IocpEvent, error: OSError) -> None:
        handle.more = False
        if isinstance(error, BlockingIOError | InterruptedError):
            handle.recv = event
            self._interest.want(handle, READABLE)
        else:
            handle.recv = None
            fail_with(event, error)
            self._queue(event, 0)

    def _connect(self, handle: ReadinessHandle, event: ConnectEvent) -> None:
        assert handle.sock is not None
        if event.address is None:
            raise MisuseError("a connect needs the address to connect to")
        try:
            code = handle.sock.connect_ex(event.address.sockaddr)
        except OSError as error:
            fail_with(event, error)
        else:
            if code in _CONNECT_PENDING:
                handle.send = event
                self._interest.want(handle, WRITABLE)
                return
            if code:
                event.fail(classify_os_error(code), code)
        self._ready.append((event, 0))

    def _shut_down(self, sock: socket.SocketType, event: IocpEvent) -> None:
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            fail_with(event, error)
        self._ready.append((event, 0))

    def _cancel(self, event: IocpEvent) -> None:
        if not event.in_flight:
            return
        if event.event_type is EventType.WATCH or event.owner is None:
            handle = next((h for h in self._interest.watched.values() if h.recv is event), None)
        else:
            candidate = event.owner.handle
            handle = candidate if isinstance(candidate, ReadinessHandle) else None
        if handle is None or not take_off(handle, event):
            return
        kind = event.event_type
        (self._ends if kind is _RECV or kind is _SEND else self._ready).add_cancelled(event)

    def _wake(self) -> None:
        try:
            self._wakes.wake()
        except OSError:
            if not self._closed:
                raise

    # -- reaping -----------------------------------------------------------------------------------

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        wait = self._begin_poll(timeout)
        try:
            answers = self._poller.poll(wait, limit)
        finally:
            self._sleeping = False
        find = self._handles.get
        received: list[Completion] = []
        self._came = 0
        for fd, mask in answers:
            handle = find(fd)
            if handle is None:
                self._wakes.drain()
            elif mask != READABLE or (event := handle.recv) is None or handle.sock is None:
                self._take(handle, mask)
            else:
                # `_recv` written out, because there is one for each packet or so.
                try:
                    data = handle.sock.recv(RECV_BYTES_MAX)
                except OSError as error:
                    self._recv_failed(handle, event, error)
                    continue
                num_bytes = len(data)
                handle.more = num_bytes == RECV_BYTES_MAX
                handle.recv = None
                if num_bytes:
                    event.data = data
                    event.in_flight = False
                    received.append((event, num_bytes))
                else:
                    _end(handle, event)
                    self._ends.append((event, 0))
        if self._foreign or self._ready or self._ends:
            return self._hand_out(received, limit)
        return received

    def _take(self, handle: ReadinessHandle, mask: int) -> None:
        used = False
        if mask != WRITABLE:
            event = handle.recv
            if event is not None:
                used = True
                if handle.sock is not None:
                    self._recv(handle, event)
                else:
                    handle.recv = None
                    self._ready.append((event, 0))
            elif handle.accepts:
                used = True
                self._accept(handle, handle.accepts)
        if mask != READABLE and handle.send is not None:
            used = True
            event = handle.send
            if event.event_type is _SEND:
                self._send(handle, event)
            else:
                self._finish_connect(handle, event)
        if not used or handle.registered & mask & WRITABLE:
            self._interest.reduce(handle)

    def _accept(self, handle: ReadinessHandle, accepts: deque[AcceptEvent]) -> None:
        assert handle.sock is not None
        keep = self._open.add
        for _ in range(min(accepts_beside(self._ends), len(accepts))):
            try:
                sock, peer = accept_stream(handle.sock)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                event = accepts.popleft()
                fail_with(event, error)
                self._ready.append((event, 0))
                return
            event = accepts.popleft()
            try:
                sock.setblocking(False)
                if not self._inherits_no_delay:
                    self._set_no_delay(sock)
            except OSError as error:  # the client has gone already
                sock.close()
                fail_with(event, error)
            else:
                event.accepted = accepted = ReadinessHandle(self, sock, sock.fileno())
                keep(accepted)
                event.address = NetAddress.from_sockaddr(peer)
                self._came += 1
            self._ready.append((event, 0))

    def _set_no_delay(self, sock: socket.SocketType) -> None:
        """Where clients have the option from their listener, no other is asked for it again."""
        if has_no_delay(sock):
            self._inherits_no_delay = True
        else:
            set_no_delay(sock)

    def _finish_connect(self, handle: ReadinessHandle, event: IocpEvent) -> None:
        assert handle.sock is not None
        code = handle.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            event.fail(classify_os_error(code), code)
        handle.send = None
        self._ready.append((event, 0))

    # -- closing -----------------------------------------------------------------------------------

    def _close_handle(self, handle: ReadinessHandle, sock: socket.SocketType) -> None:
        self._interest.forget(handle)
        self._open.discard(handle)
        sock.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._let_go_of_queued()
        for handle in [*self._open, *self._interest.watched.values()]:
            for event in (handle.recv, handle.send, *(handle.accepts or ())):
                if event is not None:
                    let_go(event)
            handle.recv = handle.send = None
            handle.registered = 0
            if handle.accepts:
                handle.accepts.clear()
            if handle.sock is not None:
                handle.sock.close()
                handle.sock = None
        self._open.clear()
        self._handles.clear()
        self._interest.watched.clear()
        self._poller.close()
        self._wakes.close()


def _end(handle: ReadinessHandle, event: IocpEvent) -> None:
    """A recv brought nothing: the peer's end, or that of a connection that a send saw break."""
    if handle.broken:
        event.fail(classify_os_error(handle.broken), handle.broken)
    else:
        event.error = _EOF


def _send_gather(sock: socket.SocketType, buffers: list[Buffer]) -> int:
    if hasattr(sock, "sendmsg"):
        sent: int = sock.sendmsg(buffers)
        return sent
    return sock.send(b"".join(buffers))
