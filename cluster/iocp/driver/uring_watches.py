"""Watched descriptors of others: each is polled once in the ring."""

import errno
import select

from cluster.iocp.driver.outcomes import ReadyQueue, let_go
from cluster.iocp.driver.uring_operations import Operation, Operations
from cluster.iocp.iocp_event import IocpEvent

__all__ = ["Watches"]


class Watches:
    """Events that wait for descriptors, one for each. For the polling thread."""

    __slots__ = ("_by_descriptor", "_operations", "_ready")

    def __init__(self, operations: Operations, ready: ReadyQueue) -> None:
        self._operations = operations
        self._ready = ready
        self._by_descriptor: dict[int, tuple[IocpEvent, int]] = {}
        """The event, and the number of its poll, 0 once its end was asked for."""

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_descriptor

    def start(self, fd: int, event: IocpEvent) -> None:
        """Watch `fd`, which nobody watches."""
        operation = Operation(self._finish, None, event, None)
        number = self._operations.push_poll(fd, select.POLLIN, operation)
        self._by_descriptor[fd] = (event, number)

    def cancel(self, event: IocpEvent) -> None:
        """Ask for the end of the watch that `event` stands for, if there is one."""
        for fd, (watching, number) in self._by_descriptor.items():
            if watching is event and number:
                self._by_descriptor[fd] = (event, 0)
                self._operations.cancel(number)

    def _finish(self, operation: Operation, result: int) -> None:
        event = operation.event
        assert event is not None
        fd, number = next(
            (fd, number)
            for fd, (watching, number) in self._by_descriptor.items()
            if watching is event
        )
        del self._by_descriptor[fd]
        if result == -errno.ECANCELED and number:
            self.start(fd, event)  # the thread that submitted it has ended
        elif result >= 0:
            self._ready.append((event, 0))
        elif result == -errno.ECANCELED:
            self._ready.add_cancelled(event)
        else:
            self._ready.add_failed(event, -result)

    def let_go(self) -> None:
        """Give up all events, for a driver that closes."""
        for event, _ in self._by_descriptor.values():
            let_go(event)
        self._by_descriptor.clear()
