"""Accepts: a listener is polled in the ring, and then accepts in a loop, a share at a time."""

import select
import socket
from collections.abc import Callable

from cluster.iocp.driver.outcomes import ReadyQueue, fail_with
from cluster.iocp.driver.queued import accepts_beside
from cluster.iocp.driver.uring_handle import UringHandle
from cluster.iocp.driver.uring_operations import Operation, Operations
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import AcceptEvent
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import accept_stream

__all__ = ["Accepts"]


class Accepts:
    """The accepts of all listeners of one ring. For the polling thread."""

    __slots__ = ("_ends", "_new_handle", "_operations", "_ready", "taken", "unfinished")

    def __init__(
        self,
        operations: Operations,
        ready: ReadyQueue,
        ends: ReadyQueue,
        new_handle: Callable[[socket.SocketType], UringHandle],
    ) -> None:
        """Accept fewer while there are `ends`; `new_handle` makes the handle of a socket that was
        accepted."""
        self._ends = ends
        self._operations = operations
        self._ready = ready
        self._new_handle = new_handle
        self.taken = 0
        """Clients that were accepted since the driver set this to 0."""
        self.unfinished: list[UringHandle] = []
        """Listeners where more clients may wait, so that none has to be waited for."""

    def start(self, handle: UringHandle, event: AcceptEvent) -> None:
        """Accept one more client; raises MisuseError unless `handle` is that of a listener."""
        if handle.accepts is None:
            raise MisuseError("accept needs the handle of a listener")
        event.accepted = event.address = None
        handle.accepts.append(event)
        if not handle.armed and handle not in self.unfinished:
            self._await_clients(handle)

    def cancel(self, handle: UringHandle, event: AcceptEvent) -> None:
        """End an accept, if it waits there."""
        if handle.accepts and event in handle.accepts:
            handle.accepts.remove(event)
            self._ready.add_cancelled(event)

    def _await_clients(self, handle: UringHandle) -> None:
        if not handle.armed and handle.accepts:
            operation = Operation(self._finish_wait, handle, None, None)
            handle.armed = self._operations.push_poll(handle.fd, select.POLLIN, operation)

    def _finish_wait(self, operation: Operation, result: int) -> None:
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
        take, complete, new_handle = accepts.popleft, self._ready.append, self._new_handle
        for _ in range(min(accepts_beside(self._ends), len(accepts))):
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
            self.taken += 1
            sock.setblocking(False)
            event.accepted = new_handle(sock)
            event.address = NetAddress.from_sockaddr(peer)
            complete((event, 0))
        else:
            self.unfinished.append(handle)
            return
        self._await_clients(handle)

    def go_on(self, count: int) -> None:
        """Accept at the first `count` listeners that had more clients than their share."""
        handles = self.unfinished[:count]
        del self.unfinished[:count]
        for handle in handles:
            self._accept_some(handle)
