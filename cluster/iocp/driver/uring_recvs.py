"""Multishot recvs: armed once for a handle, they complete again and again.

So a session that is read costs neither a system call nor a submission for each packet. What comes
while no recv is registered is kept on the handle, and the multishot is cancelled if that does not
change by the next poll: a paused session holds a few recvs at most, and TCP pushes back.
"""

import errno
from collections import deque

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Completion
from cluster.iocp.driver.outcomes import ReadyQueue
from cluster.iocp.driver.uring_buffers import BUFFER_BYTES, BUFFER_GROUP, ProvidedBuffers
from cluster.iocp.driver.uring_handle import UringHandle, take_kept
from cluster.iocp.driver.uring_operations import Operations
from cluster.iocp.driver.uring_ring import Ring
from cluster.iocp.errors import classify_os_error
from cluster.iocp.iocp_event import IocpEvent

__all__ = ["Recvs"]

# include/uapi/linux/io_uring.h
_RECV = 27
_SQE_BUFFER_SELECT = 1 << 5
_RECV_MULTISHOT = 1 << 1

_EOF = Cause.EOF


class Recvs:
    """The recvs of one ring, at most one on each handle. For the polling thread.

    Data of those that go on, which is nearly all, is taken by `poll` itself; for that the tables
    are public. What ends comes here.
    """

    __slots__ = (
        "_ends",
        "_flows",
        "_operations",
        "_ready",
        "_ring",
        "by_number",
        "memory",
        "starved",
        "unclaimed",
    )

    def __init__(
        self,
        ring: Ring,
        operations: Operations,
        buffers: ProvidedBuffers,
        ready: ReadyQueue,
        ends: ReadyQueue,
        flows: bool,
    ) -> None:
        """Use what the driver has; `flows` says that one thread does all, and that a handle may be
        marked as one on which a recv has nothing to do but to wait."""
        self._flows = flows
        self._ring = ring
        self._operations = operations
        self._ready = ready
        self._ends = ends
        self.memory = buffers.memory
        """Of the buffers: number N begins at N * BUFFER_BYTES."""
        self.by_number: dict[int, UringHandle] = {}
        """The handles on which the kernel receives, by the number of the multishot."""
        self.unclaimed: list[UringHandle] = []
        """Handles that kept something in the last poll."""
        self.starved: list[UringHandle] = []
        """Handles whose recv found no buffer."""

    def start(self, handle: UringHandle, event: IocpEvent) -> None:
        """Complete `event` with what is kept or has ended, or register it for what comes."""
        if handle.kept:
            event.data = take_kept(handle)
            self._ready.append((event, len(event.data)))
        elif handle.end is not None:
            _note_end(event, handle.end)
            self._ends.append((event, 0))
        else:
            handle.recv = event
            handle.recv_is_cancelled = False
            if not handle.armed:
                self._arm(handle)
            elif not handle.is_cancelled:
                handle.flows = self._flows

    def cancel(self, handle: UringHandle) -> None:
        """Ask for the end of the recv that is registered on `handle`."""
        handle.recv_is_cancelled = True
        self.disarm(handle)

    def _arm(self, handle: UringHandle) -> None:
        number = handle.armed = self._operations.new_number()
        handle.is_cancelled = False
        handle.flows = self._flows
        self.by_number[number] = handle
        self._ring.push(
            _RECV,
            handle.fd,
            number,
            flags=_SQE_BUFFER_SELECT,
            ioprio=_RECV_MULTISHOT,
            buf_group=BUFFER_GROUP,
        )

    def disarm(self, handle: UringHandle) -> None:
        """Ask for the end of what is armed; a registered recv stays registered."""
        if handle.armed and not handle.is_cancelled:
            handle.is_cancelled = True
            handle.flows = False
            self._operations.cancel(handle.armed)

    # -- what has come -----------------------------------------------------------------------------

    def keep(self, handle: UringHandle, data: bytes) -> None:
        """Keep what has come while no recv is registered."""
        kept = handle.kept
        if kept is None:
            kept = handle.kept = deque()
        kept.append(data)  # another thread may close the handle meanwhile
        handle.flows = False
        self.unclaimed.append(handle)

    def take_last(self, number: int, result: int, buffer: int) -> Completion | None:
        """Take data with which a multishot ends; None when it is kept.

        The queue was full, or the kernel wants others to have their turn.
        """
        handle = self._forget_armed(number)
        first = buffer * BUFFER_BYTES
        data = self.memory[first : first + result]
        event = handle.recv
        if event is None:
            self.keep(handle, data)
            return None
        handle.recv = None
        event.in_flight = False
        event.data = data
        return event, result

    def end(self, number: int, result: int) -> None:
        """A multishot has ended without data, with `result` as the system call has it."""
        handle = self._forget_armed(number)
        if result == -errno.ENOBUFS:
            if not handle.recv_is_cancelled:
                self.starved.append(handle)
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
            self._ends.add_cancelled(event)
        else:
            # `_note_end`, written out: each connection has one.
            if handle.end:
                event.fail(classify_os_error(handle.end), handle.end)
            else:
                event.error = _EOF
            self._ends.append((event, 0))

    def _forget_armed(self, number: int) -> UringHandle:
        handle = self.by_number.pop(number)
        handle.armed = 0
        handle.flows = False
        handle.is_cancelled = False
        return handle

    # -- with each poll ----------------------------------------------------------------------------

    def stop_unclaimed(self) -> None:
        """Receive no more where nobody has taken what the last poll has brought."""
        unclaimed, self.unclaimed = self.unclaimed, []
        for handle in unclaimed:
            if handle.kept and handle.recv is None:
                self.disarm(handle)

    def arm_starved(self) -> None:
        """Receive again where there was no buffer: some have come back."""
        starved, self.starved = self.starved, []
        for handle in starved:
            if handle.recv is not None and not handle.armed:
                self._arm(handle)


def _note_end(event: IocpEvent, end: int) -> None:
    """Note how the stream has ended: 0 for the peer's EOF, else the errno."""
    if end:
        event.fail(classify_os_error(end), end)
    else:
        event.error = _EOF
