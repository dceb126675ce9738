"""Completions of the kernel itself: io_uring, on Linux 6.1 and newer.

A recv is multishot: armed once, it completes again and again, so that a session that is read
costs neither a system call nor a submission for each packet. What comes while no recv is
registered is kept, and the multishot is cancelled if that does not change by the next poll, so
a paused session holds a few recvs at most and TCP pushes back. A send tries the system call
first, which is cheaper than two queue entries (docs/decisions has the figures); what pends goes
to the ring as one gather. A listener is watched and accepts in a loop.

The numbers in `user_data` are never used twice, so a late completion finds nobody.
"""

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import NamedTuple

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Completion, Handle
from cluster.iocp.driver.queued import QueuedDriver, fail_with, let_go
from cluster.iocp.driver.socket_sends import send_to_each
from cluster.iocp.driver.uring_buffers import BUFFER_BYTES, BUFFER_GROUP, ProvidedBuffers
from cluster.iocp.driver.uring_handle import UringHandle, take_kept
from cluster.iocp.driver.uring_memory import Gather, SocketAddress
from cluster.iocp.driver.uring_refusal import check_kernel, describe_refusal
from cluster.iocp.driver.uring_ring import CQE_BUFFER, CQE_MORE, Ring
from cluster.iocp.errors import (
    DriverUnavailableError,
    EventInFlightError,
    MisuseError,
    classify_os_error,
)
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
    open_listening_socket,
    open_stream_socket,
    set_no_delay,
)

__all__ = ["UringDriver"]

# include/uapi/linux/io_uring.h
_POLL_ADD, _SENDMSG, _ASYNC_CANCEL, _CONNECT, _RECV_OP = 6, 9, 14, 16, 27
_SQE_BUFFER_SELECT = 1 << 5
_RECV_MULTISHOT = 1 << 1
_CANCEL_ALL = 1 << 0 | 1 << 2  # every match, and anything matches
_POLL_ADD_MULTI = 1 << 0

_UNOWNED = 0
"""`user_data` of cancel requests, for whose own completions nobody waits."""
_WAKE = 1
"""`user_data` of the poll on the wake-up descriptor."""

_ACCEPTS_PER_POLL = 32
"""Clients taken from one listener before others get their turn: 1 to 2 ms, if a gateway opens a
session for each. Larger numbers make no client cheaper; with 16, 15,000 that come to a busy machine
and speak take a tenth longer to get in."""

_ENTERS_PER_POLL = 32
"""The kernel completes about 20 recvs in one call, however many are due; a batch takes more."""

_CLOSE_WAIT_S = 1.0
"""Longest wait of a driver that closes for the kernel to let go of memory."""

_REAPED_AT_CLOSE = 1_024

_DATA_AND_MORE = CQE_BUFFER | CQE_MORE
"""Flags of a recv that has brought data and goes on; only one with data has both."""

_EOF = Cause.EOF
_RECV, _SEND, _ACCEPT = EventType.RECV, EventType.SEND, EventType.ACCEPT


class _Operation(NamedTuple):
    """What is in flight in the kernel, but recvs: whom to tell, and the memory it uses."""

    finish: Callable[["_Operation", int], None]
    handle: UringHandle | None
    event: IocpEvent | None
    memory: Gather | SocketAddress | None


class UringDriver(QueuedDriver):
    """The driver for Linux. See `Driver` for the contract."""

    name = "io_uring"

    __slots__ = (
        "_accepting",
        "_buffers",
        "_closing",
        "_is_enabled",
        "_next_id",
        "_open",
        "_operations",
        "_recvs",
        "_ring",
        "_starved",
        "_unclaimed",
        "_watches",
        "wake_descriptor",
    )

    def __init__(self, threads: int = 1) -> None:
        """Make a driver; raises DriverUnavailableError that says what the kernel refuses."""
        super().__init__(threads)
        check_kernel(os.uname().release)
        try:
            self._ring = Ring(threads > 1)
            with contextlib.ExitStack() as stack:
                stack.callback(self._ring.close)
                self._buffers = ProvidedBuffers(self._ring.fd)
                stack.callback(self._buffers.close)
                self.wake_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                stack.pop_all()
        except OSError as error:
            raise DriverUnavailableError(describe_refusal(error)) from error
        self._recvs: dict[int, UringHandle] = {}
        """Multishot recvs by their number."""
        self._operations: dict[int, _Operation] = {}
        self._open: set[UringHandle] = set()
        self._watches: dict[int, tuple[IocpEvent, int]] = {}
        """By descriptor: the event, and its number, 0 once its end was asked for."""
        self._accepting: list[UringHandle] = []
        """Listeners where more clients may wait, so that none has to be waited for."""
        self._unclaimed: list[UringHandle] = []
        """Handles that kept something in the last poll."""
        self._starved: list[UringHandle] = []
        """Handles whose recv found no buffer."""
        self._closing: deque[tuple[UringHandle, socket.SocketType]] = deque()
        """Handles that other threads closed, with sockets that the kernel may hold yet."""
        self._next_id = _WAKE + 1
        self._is_enabled = False

    def now(self) -> float:
        return time.monotonic()

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        self._check_open()
        sock = open_listening_socket(address, backlog, shares_port)
        set_no_delay(sock)  # those that it accepts inherit it
        handle = self._new_handle(sock)
        handle.accepts = deque()
        return handle

    def open_socket(self, remote: NetAddress) -> Handle:
        self._check_open()
        sock = open_stream_socket(remote)
        return self._new_handle(sock)

    def _new_handle(self, sock: socket.SocketType) -> UringHandle:
        handle = UringHandle(self, sock)
        self._open.add(handle)
        return handle

    # -- operations --------------------------------------------------------------------------------

    def recv_again(self, event: IocpEvent) -> None:
        handle = event.owner.handle  # type: ignore[union-attr]  # the caller has just set it
        if handle.flows and handle.recv is None and not self._is_shared:  # type: ignore[union-attr]
            event.in_flight = True
            handle.recv = event  # type: ignore[union-attr]
        else:
            self.submit(event)

    def send_now(self, handle: Handle, data: Buffer) -> int:
        try:
            return handle.sock.send(data)  # type: ignore[attr-defined, no-any-return]
        except BlockingIOError:
            return 0
        except OSError as error:
            handle.broken = error.errno or 0  # type: ignore[attr-defined]
            return 0
        except AttributeError:  # the handle is closed
            return 0

    def send_now_to_each(self, handles: Sequence[Handle], buffers: Iterable[Buffer]) -> list[int]:
        return send_to_each(handles, buffers)  # type: ignore[arg-type]

    def _start(self, event: IocpEvent) -> None:
        owner = event.owner
        handle = None if owner is None else owner.handle
        if not isinstance(handle, UringHandle) or handle.driver is not self or handle.sock is None:
            self._check_open()
            raise MisuseError(f"{event!r} has no owner with an open handle of this driver")
        kind = event.event_type
        if kind is _RECV:
            if handle.recv is not None:
                raise EventInFlightError("a recv is in flight on this handle already")
            event.data = None
            if handle.armed or handle.kept or handle.end is not None:
                self._recv(handle, event)
            else:
                # `_recv`, written out for a new connection.
                handle.recv = event
                handle.recv_is_cancelled = False
                self._arm(handle)
        elif kind is _ACCEPT:
            assert isinstance(event, AcceptEvent)
            if handle.accepts is None:
                raise MisuseError("accept needs the handle of a listener")
            event.accepted = event.address = None
            handle.accepts.append(event)
            if not handle.armed and handle not in self._accepting:
                self._watch_listener(handle)
        elif kind is _SEND or kind is EventType.CONNECT:
            if handle.send is not None:
                raise EventInFlightError("a send or connect is in flight on this handle already")
            if isinstance(event, SendEvent):
                self._send(handle, handle.sock, event)
            else:
                assert isinstance(event, ConnectEvent)
                self._connect(handle, event)
        elif kind is EventType.DISCONNECT:
            try:
                handle.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                fail_with(event, error)
            self._ready.append((event, 0))
        else:
            raise MisuseError(f"{event!r} cannot be submitted; use post or watch")

    def _push(
        self,
        opcode: int,
        fd: int,
        operation: _Operation,
        addr: int = 0,
        length: int = 0,
        *,
        off: int = 0,
        op_flags: int = 0,
    ) -> int:
        """Queue one operation, remember it, and return its number."""
        number = self._next_id
        self._next_id = number + 1
        self._operations[number] = operation
        self._ring.push(opcode, fd, number, addr, length, off=off, op_flags=op_flags)
        return number

    def _push_cancel(self, number: int) -> None:
        self._ring.push(_ASYNC_CANCEL, -1, _UNOWNED, number)

    # -- receiving ---------------------------------------------------------------------------------

    def _recv(self, handle: UringHandle, event: IocpEvent) -> None:
        if handle.kept:
            event.data = take_kept(handle)
            self._ready.append((event, len(event.data)))
        elif handle.end is not None:
            if handle.end:
                self._complete_failed(event, handle.end)
            else:
                event.error = _EOF
                self._ready.append((event, 0))
        else:
            handle.recv = event
            handle.recv_is_cancelled = False
            if not handle.armed:
                self._arm(handle)
            elif not handle.is_cancelled:
                handle.flows = True

    def _arm(self, handle: UringHandle) -> None:
        number = self._next_id
        self._next_id = number + 1
        handle.armed = number
        handle.is_cancelled = False
        handle.flows = True
        self._recvs[number] = handle
        self._ring.push(
            _RECV_OP,
            handle.fd,
            number,
            flags=_SQE_BUFFER_SELECT,
            ioprio=_RECV_MULTISHOT,
            buf_group=BUFFER_GROUP,
        )

    def _disarm(self, handle: UringHandle) -> None:
        """Ask for the end of what is armed."""
        if handle.armed and not handle.is_cancelled:
            handle.is_cancelled = True
            handle.flows = False
            self._push_cancel(handle.armed)

    def _keep(self, handle: UringHandle, data: bytes) -> None:
        kept = handle.kept
        if kept is None:
            kept = handle.kept = deque()
        kept.append(data)  # another thread may close the handle meanwhile
        handle.flows = False
        self._unclaimed.append(handle)

    def _recv_ended(self, number: int, result: int) -> None:
        """A multishot recv completes for the last time, without data."""
        handle = self._recvs.pop(number)
        handle.armed = 0
        handle.flows = False
        handle.is_cancelled = False
        if result == -errno.ENOBUFS:
            if not handle.recv_is_cancelled:
                self._starved.append(handle)
                return
            # The cancel came too late for it, and there must be no other: nothing was received.
        elif result != -errno.ECANCELED:
            handle.end = -result or handle.broken
        event = handle.recv
        if event is None:
            return
        if handle.end is None and not handle.recv_is_cancelled:
            # This recv came after the cancel, or the thread that armed it has ended.
            self._arm(handle)
            return
        handle.recv = None
        if handle.end is None:
            self._complete_cancelled(event)
            return
        if handle.end:
            event.fail(classify_os_error(handle.end), handle.end)
        else:
            event.error = _EOF
        self._ends.append((event, 0))

    # -- sending and connecting --------------------------------------------------------------------

    def _send(self, handle: UringHandle, sock: socket.SocketType, event: SendEvent) -> None:
        buffers = event.gather()
        try:
            if len(buffers) == 1:
                sent = sock.send(buffers[0])
            else:
                sent = sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            memory = Gather(buffers)
            handle.send = event
            handle.send_is_cancelled = False
            operation = _Operation(self._finish_send, handle, event, memory)
            handle.send_id = self._push(_SENDMSG, handle.fd, operation, memory.address, 1)
            return
        except OSError as error:
            handle.broken = error.errno or 0
            fail_with(event, error)
            sent = 0
        self._ready.append((event, sent))

    def _connect(self, handle: UringHandle, event: ConnectEvent) -> None:
        if event.address is None:
            raise MisuseError("a connect needs the address to connect to")
        try:
            address = SocketAddress(event.address)
        except OSError as error:
            fail_with(event, error)
            self._ready.append((event, 0))
            return
        handle.send = event
        handle.send_is_cancelled = False
        operation = _Operation(self._finish_connect, handle, event, address)
        handle.send_id = self._push(
            _CONNECT, handle.fd, operation, address.address, off=address.size
        )

    def _finish_send(self, operation: _Operation, result: int) -> None:
        handle, memory = operation.handle, operation.memory
        assert handle is not None
        assert memory is not None
        if result == -errno.ECANCELED and not handle.send_is_cancelled:
            # The thread that submitted it has ended.
            handle.send_id = self._push(_SENDMSG, handle.fd, operation, memory.address, 1)
            return
        memory.release()
        self._complete_send(handle, operation.event, result)

    def _finish_connect(self, operation: _Operation, result: int) -> None:
        handle = operation.handle
        assert handle is not None
        if result == -errno.ECANCELED and not handle.send_is_cancelled:
            # The thread that submitted it has ended, and the connect goes on without it.
            waiting = operation._replace(finish=self._finish_connect_wait)
            handle.send_id = self._push(_POLL_ADD, handle.fd, waiting, op_flags=select.POLLOUT)
            return
        self._complete_send(handle, operation.event, result)

    def _finish_connect_wait(self, operation: _Operation, result: int) -> None:
        handle = operation.handle
        assert handle is not None
        assert handle.sock is not None
        if result >= 0:
            result = -handle.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._finish_connect(operation, result)

    def _complete_send(self, handle: UringHandle, event: IocpEvent | None, result: int) -> None:
        assert event is not None
        handle.send = None
        if result >= 0:
            self._ready.append((event, result))
        elif result == -errno.ECANCELED:
            self._complete_cancelled(event)
        else:
            handle.broken = -result
            self._complete_failed(event, -result)

    # -- accepting ---------------------------------------------------------------------------------

    def _watch_listener(self, handle: UringHandle) -> None:
        if not handle.armed and handle.accepts:
            operation = _Operation(self._accept, handle, None, None)
            handle.armed = self._push(_POLL_ADD, handle.fd, operation, op_flags=select.POLLIN)

    def _accept(self, operation: _Operation, result: int) -> None:
        handle = operation.handle
        assert handle is not None
        handle.armed = 0
        self._accept_some(handle)

    def _accept_some(self, handle: UringHandle) -> None:
        """Accept clients that wait; either there are no more then, or the next poll goes on."""
        accepts = handle.accepts
        listener = handle.sock
        if listener is None or not accepts:
            return
        take, complete, keep = accepts.popleft, self._ready.append, self._open.add
        for _ in range(min(_ACCEPTS_PER_POLL, len(accepts))):
            try:
                sock, peer = accept_stream(listener)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                event = take()
                fail_with(event, error)
                complete((event, 0))
                break
            event = take()
            sock.setblocking(False)
            event.accepted = accepted = UringHandle(self, sock)
            keep(accepted)
            event.address = NetAddress.from_sockaddr(peer)
            complete((event, 0))
        else:
            self._accepting.append(handle)
            return
        self._watch_listener(handle)

    def _go_on_accepting(self, count: int) -> None:
        """Accept at the listeners that had more clients at the end of the last poll."""
        handles = self._accepting[:count]
        del self._accepting[:count]
        for handle in handles:
            self._accept_some(handle)

    # -- foreign descriptors, and waking -----------------------------------------------------------

    def _is_watched(self, fd: int) -> bool:
        return fd in self._watches

    def _start_watch(self, fd: int, event: IocpEvent) -> None:
        operation = _Operation(self._finish_watch, None, event, None)
        number = self._push(_POLL_ADD, fd, operation, op_flags=select.POLLIN)
        self._watches[fd] = (event, number)

    def _finish_watch(self, operation: _Operation, result: int) -> None:
        event = operation.event
        assert event is not None
        fd, number = next(
            (fd, number) for fd, (watching, number) in self._watches.items() if watching is event
        )
        del self._watches[fd]
        if result == -errno.ECANCELED and number:
            self._start_watch(fd, event)  # the thread that submitted it has ended
        elif result >= 0:
            self._ready.append((event, 0))
        elif result == -errno.ECANCELED:
            self._complete_cancelled(event)
        else:
            self._complete_failed(event, -result)

    def _wake(self) -> None:
        try:
            os.eventfd_write(self.wake_descriptor, 1)
        except OSError:
            if not self._closed:
                raise

    def _watch_wake_ups(self) -> None:
        self._ring.push(
            _POLL_ADD, self.wake_descriptor, _WAKE, length=_POLL_ADD_MULTI, op_flags=select.POLLIN
        )

    # -- cancelling and closing handles ------------------------------------------------------------

    def _cancel(self, event: IocpEvent) -> None:
        if not event.in_flight:
            return
        if event.event_type is EventType.WATCH or event.owner is None:
            for fd, (watching, number) in self._watches.items():
                if watching is event and number:
                    self._watches[fd] = (event, 0)
                    self._push_cancel(number)
            return
        handle = event.owner.handle
        if not isinstance(handle, UringHandle):
            return
        if handle.recv is event:
            handle.recv_is_cancelled = True
            self._disarm(handle)
        elif handle.send is event:
            handle.send_is_cancelled = True
            self._push_cancel(handle.send_id)
        elif handle.accepts and event in handle.accepts:
            assert isinstance(event, AcceptEvent)
            handle.accepts.remove(event)
            self._complete_cancelled(event)

    def _close_handle(self, handle: UringHandle, sock: socket.SocketType) -> None:
        """Close a socket on which nothing is registered, though the kernel may hold it yet."""
        self._open.discard(handle)
        handle.kept = None
        if not handle.armed or self._closed:
            sock.close()
        elif self._thread == get_ident():
            self._disarm_and_close(handle, sock)
        else:
            self._closing.append((handle, sock))
            self._defer(self._close_next, IocpEvent(EventType.POST))

    def _close_next(self, event: IocpEvent) -> None:
        self._disarm_and_close(*self._closing.popleft())

    def _disarm_and_close(self, handle: UringHandle, sock: socket.SocketType) -> None:
        # Closing a descriptor ends nothing while the ring refers to the socket: a listener would
        # go on listening, and a peer would not see the end. So cancel first, and at once.
        self._disarm(handle)
        self._recvs.pop(handle.armed, None)
        self._operations.pop(handle.armed, None)
        handle.kept = None
        self._ring.settle()
        sock.close()

    # -- reaping -----------------------------------------------------------------------------------

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        if not self._is_enabled:
            self._check_open()
            self._enable()
        wait_s = self._begin_poll(timeout)
        ring = self._ring
        accepting_count = 0
        if self._accepting:
            accepting_count = len(self._accepting)
            wait_s = 0
        try:
            if self._unclaimed:
                self._stop_unclaimed()
            ring.enter(wait_s)
        finally:
            self._sleeping = False
        received: list[Completion] = []
        used: list[int] = []
        recvs, memory = self._recvs, self._buffers.memory
        left = self._room(limit) if self._ends else limit
        enters = 1
        while cqes := ring.reap(left - len(used)):
            for number, result, flags, buffer in cqes:
                if flags & _DATA_AND_MORE != _DATA_AND_MORE:
                    left -= flags & CQE_BUFFER  # data counts, ends do not
                    self._complete(number, result, flags, buffer, received)
                    continue
                first = buffer * BUFFER_BYTES
                data = memory[first : first + result]
                used.append(buffer)
                try:
                    handle = recvs[number]
                except KeyError:  # the last words of a recv whose handle was closed
                    continue
                event = handle.recv
                if event is None:
                    self._keep(handle, data)
                else:
                    handle.recv = None
                    event.in_flight = False
                    event.data = data
                    received.append((event, result))
            if len(used) >= left or enters == _ENTERS_PER_POLL or not ring.has_more():
                break
            enters += 1
            try:
                ring.enter(0)
            except OSError:
                if not received:
                    raise
                break  # the next poll says it; what was received is handed out first
        if used:
            self._buffers.give_back(used)
        if accepting_count:
            self._go_on_accepting(accepting_count)
        if self._starved:
            self._arm_starved()
        if self._foreign or self._ready or self._ends:
            return self._hand_out(received, limit)
        return received

    def _complete(
        self, number: int, result: int, flags: int, buffer: int, received: list[Completion]
    ) -> None:
        """What is not the data of a recv that goes on."""
        if number == _WAKE:
            # Each write completes the poll, read or not; but who fills it up stops those of others.
            try:
                os.eventfd_read(self.wake_descriptor)
            except BlockingIOError:  # two wake-ups have become one
                pass
            if not flags & CQE_MORE:
                self._watch_wake_ups()
            return
        handle = self._recvs.get(number)
        if handle is not None and result > 0:
            # The queue was full, or the kernel wants others to have their turn.
            del self._recvs[number]
            handle.armed = 0
            handle.flows = False
            handle.is_cancelled = False
            first = buffer * BUFFER_BYTES
            data = self._buffers.memory[first : first + result]
            event = handle.recv
            if event is None:
                self._keep(handle, data)
            else:
                handle.recv = None
                event.in_flight = False
                event.data = data
                received.append((event, result))
        if flags & CQE_BUFFER:
            # Of data, or of an end that took one.
            self._buffers.give_back([buffer])
        if handle is not None:
            if result <= 0:
                self._recv_ended(number, result)
        elif (operation := self._operations.pop(number, None)) is not None:
            operation.finish(operation, result)

    def _enable(self) -> None:
        self._ring.enable()
        self._is_enabled = True
        self._watch_wake_ups()

    def _stop_unclaimed(self) -> None:
        unclaimed, self._unclaimed = self._unclaimed, []
        for handle in unclaimed:
            if handle.kept and handle.recv is None:
                self._disarm(handle)

    def _arm_starved(self) -> None:
        starved, self._starved = self._starved, []
        for handle in starved:
            if handle.recv is not None and not handle.armed:
                self._arm(handle)

    # -- closing -----------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._let_go_of_queued()
        self._cancel_everything()
        for handle in self._open:
            for event in (handle.recv, handle.send, *(handle.accepts or ())):
                if event is not None:
                    let_go(event)
            handle.recv = handle.send = None
            if handle.accepts:
                handle.accepts.clear()
            if handle.sock is not None:
                handle.sock.close()
                handle.sock = None
        while self._closing:
            self._closing.popleft()[1].close()
        for event, _ in self._watches.values():
            let_go(event)
        self._ring.close()
        for operation in self._operations.values():
            if operation.memory is not None:
                operation.memory.release()
        self._operations.clear()
        self._recvs.clear()
        self._watches.clear()
        self._open.clear()
        self._buffers.close()
        os.close(self.wake_descriptor)

    def _cancel_everything(self) -> None:
        """Wait until the kernel uses no memory of ours, as far as this thread can.

        Closing the ring ends everything too, but some time after the call. A thread that is not
        the one of an unshared ring may not ask; nothing is carried out for that one meanwhile.
        """
        if not self._is_enabled or not (self._is_shared or self._thread == get_ident()):
            return
        using = {number for number, operation in self._operations.items() if operation.memory}
        using.update(self._recvs)
        deadline = time.monotonic() + _CLOSE_WAIT_S
        try:
            self._ring.push(_ASYNC_CANCEL, -1, _UNOWNED, op_flags=_CANCEL_ALL)
            while using and (left := deadline - time.monotonic()) > 0:
                self._ring.enter(left)
                for number, _, flags, _ in self._ring.reap(_REAPED_AT_CLOSE):
                    if not flags & CQE_MORE:
                        using.discard(number)
        except OSError:
            return  # closing the ring is what is left
