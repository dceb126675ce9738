"""Buffers that recvs share: the kernel takes one when bytes have come, and not before.

So a session that is idle owns none. Each is copied out as soon as its completion is read and
goes back at once; none is ever held by a session, paused or not.
"""

import ctypes
import mmap
from struct import Struct

from cluster.iocp.driver.uring_ring import register

__all__ = ["BUFFER_BYTES", "BUFFER_GROUP", "ProvidedBuffers"]

BUFFER_BYTES = 4_096
"""One page. A recv of more takes several, one completion each."""

BUFFER_COUNT = 1_024
"""Recvs that can be waiting to be reaped: four batches. 4 MiB in all, touched as used."""

BUFFER_GROUP = 0

_REGISTER_PBUF_RING = 22

_REG = Struct("<QIHH3Q")
"""address of the ring, its entries, group, flags, reserved"""
_ENTRY = Struct("<QIH")
"""address, length and number of a buffer. The two bytes behind the first one are the ring's tail,
which is why an entry is written without them."""
_ENTRY_STRIDE = 16
_TAIL = 7
"""Where the tail is, in words of 16 bits."""


class ProvidedBuffers:
    """The buffers of one ring, registered as its group `BUFFER_GROUP`. For the polling thread."""

    __slots__ = ("_entries", "_ring", "_ring_view", "_slots", "_tail", "_words", "memory")

    def __init__(self, ring_fd: int) -> None:
        """Register buffers with the ring `ring_fd`; raises OSError."""
        self.memory = mmap.mmap(-1, BUFFER_COUNT * BUFFER_BYTES)
        """Buffer N begins at N * BUFFER_BYTES. A slice of it is a copy."""
        self._ring = mmap.mmap(-1, BUFFER_COUNT * _ENTRY_STRIDE)
        self._ring_view = memoryview(self._ring)
        self._words = self._ring_view.cast("H")
        self._tail = 0
        try:
            memory = _address(self.memory)
            self._entries = [
                _ENTRY.pack(memory + number * BUFFER_BYTES, BUFFER_BYTES, number)
                for number in range(BUFFER_COUNT)
            ]
            argument = ctypes.create_string_buffer(
                _REG.pack(_address(self._ring), BUFFER_COUNT, BUFFER_GROUP, 0, 0, 0, 0), _REG.size
            )
            register(ring_fd, _REGISTER_PBUF_RING, ctypes.addressof(argument), 1)
        except BaseException:
            self.close()
            raise
        self._slots = [-1] * BUFFER_COUNT
        """Which buffer each entry of the ring stands for."""
        self.give_back(list(range(BUFFER_COUNT)))

    def give_back(self, numbers: list[int]) -> None:
        """Let the kernel have these buffers again."""
        slots = self._slots
        slot = self._tail % BUFFER_COUNT
        # They mostly come back in the order in which they were taken, and then the entries are
        # right as they are.
        if slots[slot : slot + len(numbers)] != numbers:
            for number in numbers:
                if slots[slot] != number:
                    slots[slot] = number
                    offset = slot * _ENTRY_STRIDE
                    self._ring_view[offset : offset + _ENTRY.size] = self._entries[number]
                slot = (slot + 1) % BUFFER_COUNT
        self._tail = (self._tail + len(numbers)) & 0xFFFF
        self._words[_TAIL] = self._tail

    def close(self) -> None:
        """Free the memory; the ring is closed first."""
        self._words.release()
        self._ring_view.release()
        self._ring.close()
        self.memory.close()


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
