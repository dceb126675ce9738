"""The doorbell of a lane in shared memory, which wakes an end that sleeps, in another process too.

Nobody rings while that end is awake; see `ring` for how the two agree on that.
"""

import os

from cluster.iocp.posix_eventfd import ring_full

__all__ = ["Doorbell"]


class Doorbell:
    """An eventfd that one end rings and the other waits on."""

    __slots__ = ("fd",)

    def __init__(self, fd: int | None = None) -> None:
        """Make one, or be one that another process has made: `fd` is the doorbell's own then."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd

    def ring(self) -> None:
        """Make the descriptor readable."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            ring_full(self.fd)

    def clear(self) -> None:
        """Make the descriptor unreadable until it rings again."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
