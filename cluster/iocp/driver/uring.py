"""Completions of the kernel itself: io_uring, on Linux 6.1 and newer.

What is in flight is kept by kind: `Recvs`, which complete again and again, `PendingSends`,
`Accepts` and `Watches`; here they meet the queue of completions, other threads, and the end. A send
tries the system call first, which is cheaper than two queue entries (docs/decisions has the
figures); what pends goes to the ring as one gather.
"""

import contextlib
import os
import select
import socket
import time
from collections import deque
from functools import partial
from threading import get_ident

from cluster.iocp.driver.contract import Completion, Handle
from cluster.iocp.driver.outcomes import fail_with, let_go
from cluster.iocp.driver.queued import QueuedDriver
from cluster.iocp.driver.socket_sends import SocketSends
from cluster.iocp.driver.uring_accepts import Accepts
from cluster.iocp.driver.uring_buffers import BUFFER_BYTES, ProvidedBuffers
from cluster.iocp.driver.uring_handle import UringHandle
from cluster.iocp.driver.uring_operations import WAKE, Operations
from cluster.iocp.driver.uring_recvs import Recvs
from cluster.iocp.driver.uring_refusal import check_kernel, describe_refusal
from cluster.iocp.driver.uring_ring import CQE_BUFFER, CQE_MORE, Ring
from cluster.iocp.driver.uring_sends import PendingSends
from cluster.iocp.driver.uring_watches import Watches
from cluster.iocp.errors import DriverUnavailableError, EventInFlightError, MisuseError
from cluster.iocp.iocp_event import (
    AcceptEvent,
    ConnectEvent,
    EventType,
    IocpEvent,
    SendEvent,
)
from cluster.iocp.net_address import NetAddress
from cluster.iocp.posix_eventfd import ring_full
from cluster.iocp.socket_utils import open_listening_socket, open_stream_socket, set_no_delay

__all__ = ["UringDriver"]

_ENTERS_PER_POLL = 32
"""The kernel completes about 20 recvs in one call, however many are due; a batch takes more."""

_CLOSE_WAIT_S = 1.0
"""Longest wait of a driver that closes for the kernel to let go of memory."""

_REAPED_AT_CLOSE = 1_024

_DATA_AND_MORE = CQE_BUFFER | CQE_MORE
"""Flags of a recv that has brought data and goes on; only one with data has both."""

_RECV, _SEND, _ACCEPT = EventType.RECV, EventType.SEND, EventType.ACCEPT


class UringDriver(SocketSends, QueuedDriver):
    """The driver for Linux. See `Driver` for the contract."""

    name = "io_uring"

    __slots__ = (
        "_accepts",
        "_buffers",
        "_closing",
        "_is_enabled",
        "_open",
        "_operations",
        "_recvs",
        "_ring",
        "_sends",
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
        self._operations = Operations(self._ring)
        self._recvs = Recvs(
            self._ring, self._operations, self._buffers, self._ready, self._ends, threads == 1
        )
        self._sends = PendingSends(self._operations, self._ready, self._ends)
        self._accepts = Accepts(
            self._operations, self._ready, self._ends, partial(UringHandle, self)
        )
        self._watches = Watches(self._operations, self._ready)
        self._open: set[UringHandle] = set()
        """Handles from when they are made until they are closed."""
        self._closing: deque[tuple[UringHandle, socket.SocketType]] = deque()
        """Handles that other threads closed, with sockets that the kernel may hold yet."""
        self._is_enabled = False

    now = staticmethod(time.monotonic)

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        self._check_open()
        sock = open_listening_socket(address, backlog, shares_port)
        set_no_delay(sock)  # those that it accepts inherit it
        handle = UringHandle(self, sock)
        handle.accepts = deque()
        return handle

    def open_socket(self, remote: NetAddress) -> Handle:
        self._check_open()
        return UringHandle(self, open_stream_socket(remote))

    # -- operations --------------------------------------------------------------------------------

    def recv_again(self, event: IocpEvent) -> None:
        handle = event.owner.handle  # type: ignore[union-attr]  # the caller has just set it
        if handle.flows and handle.recv is None:  # type: ignore[union-attr]
            event.in_flight = True
            handle.recv = event  # type: ignore[union-attr]
        else:
            self.submit(event)

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
            self._recvs.start(handle, event)
        elif kind is _ACCEPT:
            assert isinstance(event, AcceptEvent)
            self._accepts.start(handle, event)
        elif kind is _SEND or kind is EventType.CONNECT:
            if handle.send is not None:
                raise EventInFlightError("a send or connect is in flight on this handle already")
            if isinstance(event, SendEvent):
                self._send(handle, handle.sock, event)
            else:
                assert isinstance(event, ConnectEvent)
                self._sends.connect(handle, event)
        elif kind is EventType.DISCONNECT:
            try:
                handle.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                fail_with(event, error)
            self._ready.append((event, 0))
        else:
            raise MisuseError(f"{event!r} cannot be submitted; use post or watch")

    def _send(self, handle: UringHandle, sock: socket.SocketType, event: SendEvent) -> None:
        buffers = event.gather()
        try:
            if len(buffers) == 1:
                sent = sock.send(buffers[0])
            else:
                sent = sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            self._sends.send(handle, event, buffers)
            return
        except OSError as error:
            handle.broken = error.errno or 0
            fail_with(event, error)
            sent = 0
        self._queue(event, sent)

    # -- foreign descriptors, and waking -----------------------------------------------------------

    def _is_watched(self, fd: int) -> bool:
        return fd in self._watches

    def _start_watch(self, fd: int, event: IocpEvent) -> None:
        self._watches.start(fd, event)

    def _wake(self) -> None:
        try:
            os.eventfd_write(self.wake_descriptor, 1)
        except BlockingIOError:
            ring_full(self.wake_descriptor)
        except OSError:
            if not self._closed:
                raise

    # -- cancelling and closing handles ------------------------------------------------------------

    def _cancel(self, event: IocpEvent) -> None:
        if not event.in_flight:
            return
        if event.event_type is EventType.WATCH or event.owner is None:
            self._watches.cancel(event)
            return
        handle = event.owner.handle
        if not isinstance(handle, UringHandle):
            return
        if handle.recv is event:
            self._recvs.cancel(handle)
        elif handle.send is event:
            self._sends.cancel(handle)
        elif isinstance(event, AcceptEvent):
            self._accepts.cancel(handle, event)

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
        self._recvs.disarm(handle)
        self._recvs.by_number.pop(handle.armed, None)
        self._operations.in_flight.pop(handle.armed, None)
        handle.kept = None
        self._ring.settle()
        sock.close()

    # -- reaping -----------------------------------------------------------------------------------

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        if not self._is_enabled:
            self._check_open()
            self._enable()
        wait_s = self._begin_poll(timeout)
        ring, recvs = self._ring, self._recvs
        accepting_count = 0
        if self._accepts.unfinished:
            accepting_count = len(self._accepts.unfinished)
            wait_s = 0
        try:
            if recvs.unclaimed:
                recvs.stop_unclaimed()
            ring.enter(wait_s)
        except FileExistsError:
            raise MisuseError(
                "a core of one thread belongs to the thread that was the first to dispatch it; for "
                "others as well make it by IocpCore(threads=...)"
            ) from None
        finally:
            self._sleeping = False
        received: list[Completion] = []
        used: list[int] = []
        by_number, memory = recvs.by_number, recvs.memory
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
                    handle = by_number[number]
                except KeyError:  # the last words of a recv whose handle was closed
                    continue
                event = handle.recv
                if event is None:
                    recvs.keep(handle, data)
                else:
                    handle.recv = None
                    event.in_flight = False
                    event.data = data
                    received.append((event, result))
            if len(used) >= left or not ring.has_more() or enters == _ENTERS_PER_POLL:
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
            self._accepts.go_on(accepting_count)
        self._came, self._accepts.taken = self._accepts.taken, 0
        if recvs.starved:
            recvs.arm_starved()
        if self._foreign or self._ready or self._ends:
            return self._hand_out(received, limit)
        return received

    def _complete(
        self, number: int, result: int, flags: int, buffer: int, received: list[Completion]
    ) -> None:
        """What is not the data of a recv that goes on."""
        if number == WAKE:
            # Not read: each write completes the poll, whatever the descriptor holds.
            if not flags & CQE_MORE:
                self._operations.push_wake_poll(self.wake_descriptor, select.POLLIN)
            return
        is_recv = number in self._recvs.by_number
        if is_recv and result > 0:
            completion = self._recvs.take_last(number, result, buffer)
            if completion is not None:
                received.append(completion)
        if flags & CQE_BUFFER:
            # Of data, or of an end that took one.
            self._buffers.give_back([buffer])
        if is_recv:
            if result <= 0:
                self._recvs.end(number, result)
        elif (operation := self._operations.in_flight.pop(number, None)) is not None:
            operation.finish(operation, result)

    def _enable(self) -> None:
        self._ring.enable()
        self._is_enabled = True
        self._operations.push_wake_poll(self.wake_descriptor, select.POLLIN)

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
        self._watches.let_go()
        self._ring.close()
        self._operations.release()
        self._recvs.by_number.clear()
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
        using = self._operations.numbers_with_memory()
        using.update(self._recvs.by_number)
        deadline = time.monotonic() + _CLOSE_WAIT_S
        try:
            self._operations.cancel_all()
            while using and (left := deadline - time.monotonic()) > 0:
                self._ring.enter(left)
                for number, _, flags, _ in self._ring.reap(_REAPED_AT_CLOSE):
                    if not flags & CQE_MORE:
                        using.discard(number)
        except OSError:
            return  # closing the ring is what is left
