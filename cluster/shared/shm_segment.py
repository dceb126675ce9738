"""Shared memory of one incarnation: a sealed memfd with the two rings of its lane.

It has no name, so nothing is left behind when everything dies. Its memory is reserved when it is
made: what is missing shows there, as an error, and not as a signal in the middle of a store. Its
size is sealed, so that nobody who has the descriptor can take memory away from under the other.
"""

import contextlib
import fcntl
import mmap
import os

from cluster.shared.ring import RING_OVERHEAD_BYTES

__all__ = ["Segment"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

RING_BYTES_MIN = 16_384
"""Rings are not made smaller, however small the lane: they only carry what the lane counts."""


class Segment:
    """A mapped segment: `inbound` and `outbound` are the buffers of two rings."""

    __slots__ = ("_mapped", "fd", "inbound", "outbound")

    def __init__(self, fd: int, capacity_bytes: int) -> None:
        """Map `fd`, of rings that hold `capacity_bytes` each, which becomes the segment's own.

        Raises OSError or ValueError.
        """
        self.fd = fd
        size = _buffer_bytes(capacity_bytes)
        try:
            self._mapped = mmap.mmap(fd, 2 * size)
        except BaseException:
            os.close(fd)
            raise
        view = memoryview(self._mapped)
        self.inbound, self.outbound = view[:size], view[size:]
        view.release()

    @classmethod
    def create(cls, capacity_bytes: int) -> "Segment":
        """Make a segment whose rings hold `capacity_bytes` each; OSError if there is no memory."""
        fd = os.memfd_create("iocp-cluster-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, 2 * _buffer_bytes(capacity_bytes))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, capacity_bytes)

    def close(self) -> None:
        """Unmap and close. The rings on it have to be closed before. Idempotent."""
        if self.fd >= 0:
            self.inbound.release()
            self.outbound.release()
            with contextlib.suppress(BufferError):
                self._mapped.close()  # else when nothing looks at it any more
            os.close(self.fd)
            self.fd = -1


def _buffer_bytes(capacity_bytes: int) -> int:
    return RING_OVERHEAD_BYTES + max(RING_BYTES_MIN, (capacity_bytes + 7) & ~7)
