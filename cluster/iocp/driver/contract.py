"""The contract that every completion driver keeps, and the one suite that holds them to it.

A driver takes operations (`submit`) and hands back what became of them (`poll`). Its rules:

1. Each accepted submit ends in exactly one completion, and never inside `submit`. Submit
   raises only for misuse; an operation that fails at once completes like any other.
2. Cancel is a request. Only the completion ends an operation; until then the driver holds the
   event and its buffers.
3. `poll` reaps a bounded batch and runs no code of the user.
4. Errors are normalised on the event, with the raw code beside them.
5. Closing a driver with operations in flight leaks nothing and returns in bounded time.

`tests/contract/test_driver_*.py` runs these rules on each driver.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster.iocp.iocp_event import Buffer, IocpEvent
from cluster.iocp.net_address import NetAddress

__all__ = ["RECV_BYTES_MAX", "Completion", "Driver", "Handle"]

Completion = tuple[IocpEvent, int]
"""An event that is done, and how many bytes it moved."""

RECV_BYTES_MAX = 65_536
"""Most bytes that one recv brings.

64 KiB is the buffer of the textbook session, holds any packet, and stays below the size at
which the allocator turns to the kernel for each buffer (128 KiB in glibc).
"""


class Handle(Protocol):
    """A socket of a driver. Made, and understood, by that driver only."""

    @property
    def local_address(self) -> NetAddress:
        """The address this end is bound to."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def reset_on_close(self) -> None:
        """Make `close` break the connection off at once and throw away what is unsent."""
        ...

    def close(self) -> None:
        """Give the socket back. Misuse while an operation on it is in flight; idempotent."""
        ...


class Driver(Protocol):
    """One completion queue. `submit`, `cancel`, `post` and `watch` may come from any thread.

    `poll`, `recv_again`, `send_now` and `send_now_to_each` belong to the threads that dispatch.
    """

    name: str
    """The name in configuration, ready line and status: iocp, io_uring, readiness, memory."""

    threads: int
    """How many threads may dispatch. They poll one at a time, in any order."""

    @property
    def wake_descriptor(self) -> int | None:
        """An eventfd that ends the wait of `poll` when it is written to, also by another process
        that was given it, and brings no completion; None where there is none. The driver's own."""
        ...

    def now(self) -> float:
        """Return the driver's clock in seconds; it never goes back."""
        ...

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        """Open a listening socket; raises OSError. Port 0 takes a free port.

        One that `shares_port` listens beside others of this user that do so, and each client comes
        to one of them; where the system has no such thing it is an OSError.
        """
        ...

    def open_socket(self, remote: NetAddress) -> Handle:
        """Open a socket that can connect to `remote`, bound to any address; raises OSError."""
        ...

    def submit(self, event: IocpEvent) -> None:
        """Start `event` on the handle of its owner, now or with the next poll.

        Raises DriverClosedError, EventInFlightError when the event, or another of its kind on
        that handle, is in flight (accepts may be many), and MisuseError for an owner without
        an open handle; BufferError or TypeError for what is no contiguous buffer. What is wrong
        with the handle is reported as a completion (os_error) to a thread that does not dispatch,
        and before the first poll no thread does: the operation starts when the dispatching thread
        takes it.
        """
        ...

    def recv_again(self, event: IocpEvent) -> None:
        """Submit a recv again from the dispatch of its own completion, which had no error.

        The same as `submit`, for the path that every packet takes.
        """
        ...

    def cancel(self, event: IocpEvent) -> None:
        """Ask for the end of `event`. Its completion says whether it was done or cancelled.

        Nothing happens for an event that is not in flight.
        """
        ...

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        """Wait up to `timeout` seconds (None: for ever) and return up to `limit` completions.

        May return early with none.
        """
        ...

    def post(self, event: IocpEvent, num_bytes: int = 0) -> None:
        """Queue a completion of `event` itself, which must not be in flight; wakes `poll`."""
        ...

    def watch(self, fd: int, event: IocpEvent) -> None:
        """Complete `event` once, when descriptor `fd` is readable. One watch for a descriptor."""
        ...

    def send_now(self, handle: Handle, data: Buffer) -> int:
        """Try to send once without waiting, and return how many bytes the system took.

        0 stands for nothing taken and for any failure: the next submitted send reports it.
        No send may be in flight on `handle`. `data` is the caller's again on return.
        """
        ...

    def send_now_to_each(self, handles: Sequence[Handle], buffers: Iterable[Buffer]) -> list[int]:
        """Do `send_now` for each of `handles`, of which none is there twice, with the buffer that
        stands at its place in `buffers`; return what it would, for each.

        One call, so that nothing but the system calls is done for each of many.
        """
        ...

    def close(self) -> None:
        """Cancel and forget all that is in flight, close the queue. Idempotent."""
        ...
