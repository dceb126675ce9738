"""Completions as Windows makes them: one completion port for all sockets of the driver.

What needs no waiting, such as posts and operations that fail at once, goes through one queue with
what the port brings. Operations are started in the thread that submits them; how, and what is
made of their completions, is in `windows_operations`.
"""

import errno
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock, get_ident

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Completion, Handle
from cluster.iocp.driver.outcomes import let_go
from cluster.iocp.driver.windows_handle import WindowsHandle
from cluster.iocp.driver.windows_listen import open_listener
from cluster.iocp.driver.windows_operations import Operations, begin
from cluster.iocp.driver.windows_port import BATCH_MAX, CompletionPort
from cluster.iocp.driver.windows_watches import Watches
from cluster.iocp.errors import DriverClosedError, EventInFlightError, MisuseError
from cluster.iocp.iocp_event import Buffer, EventType, IocpEvent
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import open_stream_socket

__all__ = ["WindowsDriver"]

_WAIT_MAX_S = 0.5
"""Longest single wait; `poll` may return early. Ctrl-C does not end the wait of a completion
port, and the interpreter runs signal handlers only between two calls."""

_CLOSE_WAIT_S = 1.0
"""How long cancelled operations are waited for, and once more after their sockets are closed.
They complete within milliseconds, unless a driver of the system holds them."""


class WindowsDriver:
    """I/O completion ports. See `Driver` for the contract.

    The lock orders what other threads do: start, cancel and watch against closing. The thread
    that dispatches takes no lock when it is the only one to do so, because what it starts it also
    completes and closes. Single steps on tables and queues are atomic in CPython.
    """

    name = "iocp"
    wake_descriptor: int | None = None

    __slots__ = (
        "_closed",
        "_lock",
        "_one_thread",
        "_open",
        "_operations",
        "_port",
        "_ready",
        "_reuse_sockets",
        "_sleeping",
        "_thread",
        "_watches",
        "threads",
    )

    def __init__(self, threads: int = 1, reuse_sockets: bool = False) -> None:
        """Make a driver for `threads` dispatching threads; raises OSError.

        With `reuse_sockets` the sockets of clients that ended in good order serve later ones. Off
        by default, because the system gives each back only after its TIME_WAIT.
        """
        self.threads = threads
        self._reuse_sockets = reuse_sockets
        self._one_thread = threads == 1
        self._port = CompletionPort(threads)
        self._ready: deque[Completion] = deque()
        self._open: set[WindowsHandle] = set()
        self._lock = Lock()
        self._operations = Operations(self._ready, self._new_handle)
        self._watches = Watches(self._lock, self._complete_watch)
        self._thread = 0
        self._sleeping = False
        self._closed = False

    now = staticmethod(time.monotonic)

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        self._check_open()
        handle = self._new_handle(open_listener(address, backlog, shares_port))
        handle.accepts = {}
        return handle

    def open_socket(self, remote: NetAddress) -> Handle:
        self._check_open()
        return self._new_handle(open_stream_socket(remote))

    def _new_handle(self, sock: socket.socket, is_reused: bool = False) -> WindowsHandle:
        try:
            if not is_reused:  # a socket belongs to its completion port for life
                self._port.associate(sock.fileno())
        except BaseException:
            sock.close()
            raise
        handle = WindowsHandle(self, sock, self._lock, self._dispose)
        self._open.add(handle)
        return handle

    def _dispose(self, handle: WindowsHandle, sock: socket.socket) -> None:
        """Close the socket of a handle, or keep it for another client (lock held)."""
        self._open.discard(handle)
        keep = self._reuse_sockets and handle.may_be_reused and not self._closed
        if not keep or not self._operations.spares.recycle(handle, sock):
            sock.close()

    # -- operations --------------------------------------------------------------------------------

    def submit(self, event: IocpEvent) -> None:
        if event.in_flight:
            raise EventInFlightError(f"{event!r} was submitted before its completion")
        dispatches = self._thread == get_ident()
        if dispatches and self._one_thread:
            self._start(event)
            return
        with self._lock:
            self._check_open()
            try:
                self._start(event)
            except MisuseError:
                if dispatches:
                    raise
                self._refuse(event, errno.EBADF)
        self._wake()

    def recv_again(self, event: IocpEvent) -> None:
        self.submit(event)

    def _start(self, event: IocpEvent) -> None:
        owner = event.owner
        handle = None if owner is None else owner.handle
        if type(handle) is not WindowsHandle or handle.owner is not self or handle.sock is None:
            self._check_open()
            raise MisuseError(f"{event!r} has no owner with an open handle of this driver")
        self._operations.start(handle, event)

    def _refuse(self, event: IocpEvent, code: int) -> None:
        """Complete what another thread asked for and must not be told by an exception."""
        begin(event)
        event.fail(Cause.OS_ERROR, code)
        self._ready.append((event, 0))

    def cancel(self, event: IocpEvent) -> None:
        if self._one_thread and self._thread == get_ident():
            self._cancel(event)
        else:
            with self._lock:  # against closing: what is cancelled must be there
                self._cancel(event)
            self._wake()

    def _cancel(self, event: IocpEvent) -> None:
        if not event.in_flight or self._closed:
            return
        if event.event_type is EventType.WATCH:
            self._watches.cancel(event)
            return
        handle = None if event.owner is None else event.owner.handle
        operation = handle.find(event) if isinstance(handle, WindowsHandle) else None
        if operation is not None:
            operation.cancel()

    def post(self, event: IocpEvent, num_bytes: int = 0) -> None:
        if self._one_thread and self._thread == get_ident():
            self._check_open()
            self._post(event, num_bytes)
        else:
            with self._lock:
                self._check_open()
                self._post(event, num_bytes)
            self._wake()

    def _post(self, event: IocpEvent, num_bytes: int) -> None:
        if event.in_flight:
            raise EventInFlightError(f"{event!r} was posted before its completion")
        begin(event)
        self._ready.append((event, num_bytes))

    def watch(self, fd: int, event: IocpEvent) -> None:
        with self._lock:
            self._check_open()
            if event.in_flight:
                raise EventInFlightError(f"{event!r} was submitted before its completion")
            if fd not in self._watches:
                self._watches.start(fd, event)
            elif self._thread == get_ident():
                raise EventInFlightError(f"descriptor {fd} is being watched already")
            else:
                self._refuse(event, errno.EEXIST)
                self._wake()

    def _complete_watch(self, event: IocpEvent) -> None:
        self._ready.append((event, 0))
        self._wake()

    def send_now(self, handle: Handle, data: Buffer) -> int:
        try:
            return handle.sock.send(data)  # type: ignore[attr-defined, no-any-return]
        except (OSError, AttributeError):  # nothing taken, or a handle that is closed
            return 0

    def send_now_to_each(self, handles: Sequence[Handle], buffers: Iterable[Buffer]) -> list[int]:
        return list(map(self.send_now, handles, buffers))

    def _wake(self) -> None:
        """End the wait of `poll`, if it waits and there is something for it."""
        if self._sleeping and self._ready:
            self._sleeping = False  # one wake-up is enough
            self._port.wake()

    # -- reaping -----------------------------------------------------------------------------------

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        if self._closed:
            raise DriverClosedError("poll of a closed driver")
        self._thread = get_ident()
        ready = self._ready
        if ready:
            taken = self._port.wait(0, limit)
        else:
            self._sleeping = True
            # Whoever queues from now on wakes us; look once more for what came before.
            wait_s = 0 if ready else _WAIT_MAX_S if timeout is None else min(timeout, _WAIT_MAX_S)
            try:
                # Rounded up, or a timer that is almost due would be asked for again and again.
                taken = self._port.wait(-int(-wait_s * 1_000 // 1), limit)
            finally:
                self._sleeping = False
        complete = self._operations.complete
        for address, num_bytes in taken:
            complete(address, num_bytes)
        take = ready.popleft
        completions = [take() for _ in range(min(limit, len(ready)))]
        for event, _ in completions:
            event.in_flight = False
        return completions

    # -- closing -----------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._watches.close()
        while self._ready:
            let_go(self._ready.popleft()[0])
        self._operations.cancel_all()
        self._drain()
        for handle in self._open:
            handle.abandon()
        self._open.clear()
        self._operations.close_sockets()
        self._drain()
        self._operations.abandon()
        self._port.close()

    def _drain(self) -> None:
        """Take completions until nothing is in flight, or it takes too long."""
        deadline = time.monotonic() + _CLOSE_WAIT_S
        while self._operations and (left_s := deadline - time.monotonic()) > 0:
            for address, _ in self._port.wait(int(left_s * 1_000) + 1, BATCH_MAX):
                self._operations.forget(address)

    def _check_open(self) -> None:
        if self._closed:
            raise DriverClosedError("the driver is closed")
