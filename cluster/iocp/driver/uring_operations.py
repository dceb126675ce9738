"""What is in flight in the kernel, by number: whom to tell of the end, and the memory in use.

A number is `user_data` of the entry that started the operation and of its completion. None is
ever used twice, so a late completion finds nobody.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from cluster.iocp.driver.uring_handle import UringHandle
from cluster.iocp.driver.uring_memory import Gather, SocketAddress
from cluster.iocp.driver.uring_ring import Ring
from cluster.iocp.iocp_event import IocpEvent

__all__ = ["WAKE", "Operation", "Operations"]

_UNOWNED = 0
"""The number of cancel requests, for whose own completions nobody waits."""
WAKE = 1
"""The number of the poll on the wake-up descriptor."""

# include/uapi/linux/io_uring.h
_POLL_ADD, _ASYNC_CANCEL = 6, 14
_CANCEL_ALL = 1 << 0 | 1 << 2  # every match, and anything matches
_POLL_ADD_MULTI = 1 << 0


class Operation(NamedTuple):
    """What completes once: everything but recvs. `finish` is called with it and the result."""

    finish: Callable[["Operation", int], None]
    handle: UringHandle | None
    event: IocpEvent | None
    memory: Gather | SocketAddress | None


class Operations:
    """The operations of one ring that complete once, and the numbers of all. Polling thread."""

    __slots__ = ("_ring", "in_flight", "new_number")

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.new_number = itertools.count(WAKE + 1).__next__
        """Returns a number that nothing has had."""
        self.in_flight: dict[int, Operation] = {}

    def push(
        self,
        opcode: int,
        fd: int,
        operation: Operation,
        addr: int = 0,
        length: int = 0,
        *,
        off: int = 0,
        op_flags: int = 0,
    ) -> int:
        """Queue an operation for the next `enter` of the ring, and return its number.

        It is in the table, with its memory, until whoever reaps its completion takes it out.
        """
        number = self.new_number()
        self.in_flight[number] = operation
        self._ring.push(opcode, fd, number, addr, length, off=off, op_flags=op_flags)
        return number

    def push_poll(self, fd: int, events: int, operation: Operation) -> int:
        """Queue a wait until `fd` is ready for `events` of poll(2), once."""
        return self.push(_POLL_ADD, fd, operation, op_flags=events)

    def push_wake_poll(self, fd: int, events: int) -> None:
        """Queue a wait that completes with number `WAKE`, again and again."""
        self._ring.push(_POLL_ADD, fd, WAKE, length=_POLL_ADD_MULTI, op_flags=events)

    def cancel(self, number: int) -> None:
        """Ask for the end of an operation or a recv; its own completion says what became of it."""
        self._ring.push(_ASYNC_CANCEL, -1, _UNOWNED, number)

    def cancel_all(self) -> None:
        """Ask for the end of everything on this ring."""
        self._ring.push(_ASYNC_CANCEL, -1, _UNOWNED, op_flags=_CANCEL_ALL)

    def numbers_with_memory(self) -> set[int]:
        """Return the numbers of those for which the kernel uses memory of ours."""
        return {number for number, operation in self.in_flight.items() if operation.memory}

    def release(self) -> None:
        """Forget everything and give the memory back. The ring is closed."""
        for operation in self.in_flight.values():
            if operation.memory is not None:
                operation.memory.release()
        self.in_flight.clear()
