"""Sends that the kernel did not take at once, and connects: they pend in the ring.

One at a time on each handle. The kernel reads the memory of an operation until it completes, and
the table of operations holds that for so long.
"""

import errno
import select
import socket
from collections.abc import Sequence

from cluster.iocp.driver.outcomes import ReadyQueue, fail_with
from cluster.iocp.driver.uring_handle import UringHandle
from cluster.iocp.driver.uring_memory import Gather, SocketAddress
from cluster.iocp.driver.uring_operations import Operation, Operations
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import Buffer, ConnectEvent, IocpEvent

__all__ = ["PendingSends"]

# include/uapi/linux/io_uring.h
_SENDMSG, _CONNECT = 9, 16


class PendingSends:
    """The pending sends and connects of one ring. For the polling thread."""

    __slots__ = ("_ends", "_operations", "_ready")

    def __init__(self, operations: Operations, ready: ReadyQueue, ends: ReadyQueue) -> None:
        """Complete to `ready`, and to `ends` what failed or was cancelled."""
        self._operations = operations
        self._ready = ready
        self._ends = ends

    def send(self, handle: UringHandle, event: IocpEvent, buffers: Sequence[Buffer]) -> None:
        """Send `buffers` as one gather as soon as the kernel takes any of it."""
        memory = Gather(buffers)
        handle.send = event
        handle.send_is_cancelled = False
        operation = Operation(self._finish_send, handle, event, memory)
        handle.send_id = self._operations.push(_SENDMSG, handle.fd, operation, memory.address, 1)

    def connect(self, handle: UringHandle, event: ConnectEvent) -> None:
        """Connect to the address of `event`; raises MisuseError without one."""
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
        handle.send_id = self._operations.push(
            _CONNECT,
            handle.fd,
            Operation(self._finish_connect, handle, event, address),
            address.address,
            off=address.size,
        )

    def cancel(self, handle: UringHandle) -> None:
        """Ask for the end of what pends on `handle`."""
        handle.send_is_cancelled = True
        self._operations.cancel(handle.send_id)

    # -- completions -------------------------------------------------------------------------------

    def _finish_send(self, operation: Operation, result: int) -> None:
        handle, memory = operation.handle, operation.memory
        assert handle is not None
        assert memory is not None
        if result == -errno.ECANCELED and not handle.send_is_cancelled:
            # The thread that submitted it has ended.
            handle.send_id = self._operations.push(
                _SENDMSG, handle.fd, operation, memory.address, 1
            )
            return
        memory.release()
        self._complete(handle, operation.event, result)

    def _finish_connect(self, operation: Operation, result: int) -> None:
        handle = operation.handle
        assert handle is not None
        if result == -errno.ECANCELED and not handle.send_is_cancelled:
            # The thread that submitted it has ended, and the connect goes on without it.
            waiting = operation._replace(finish=self._finish_connect_wait)
            handle.send_id = self._operations.push_poll(handle.fd, select.POLLOUT, waiting)
            return
        self._complete(handle, operation.event, result)

    def _finish_connect_wait(self, operation: Operation, result: int) -> None:
        handle = operation.handle
        assert handle is not None
        assert handle.sock is not None
        if result >= 0:
            result = -handle.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._finish_connect(operation, result)

    def _complete(self, handle: UringHandle, event: IocpEvent | None, result: int) -> None:
        assert event is not None
        handle.send = None
        if result >= 0:
            self._ready.append((event, result))
        elif result == -errno.ECANCELED:
            self._ends.add_cancelled(event)
        else:
            handle.broken = -result
            self._ends.add_failed(event, -result)
