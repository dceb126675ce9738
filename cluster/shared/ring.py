"""A ring of messages in shared memory: one writer, one reader, over any writable buffer.

Layout, in bytes from the start of the buffer:

    128   tail: where the writer's published messages end
    256   head: up to where the reader has freed
    384   1 while the reader sleeps
    512   1 while the writer waits for room
    1024  messages

Positions count bytes and are never reset; their place is the position modulo the capacity. A
message is a header of 8 bytes — its length, and what it is — and its bytes, padded to 8; one that
does not fit before the end of the memory is preceded by padding up to there. What is longer than a
message may be comes as fragments, which `ring_messages` joins. A word has one
writer, and the words lie on cache lines of their own (two, because lines are fetched in pairs).

Words are written by `memoryview.cast("Q")[i] = value` only, which is one store; packing them with
`struct` zeroes the target first. What a word publishes is written before it, which the reader
sees in that order on x86-64 and on no weaker processor: choose this ring there only.

To each side the other one is a stranger: positions and lengths are checked, and nothing outside
the ring is ever read.
"""

from struct import Struct
from threading import Lock

__all__ = ["RING_OVERHEAD_BYTES", "RingReader", "RingViolation", "RingWriter"]

RING_OVERHEAD_BYTES = 1024
"""What a buffer needs beside the capacity."""

_TAIL, _HEAD, _READER_SLEEPS, _WRITER_WAITS = 128 // 8, 256 // 8, 384 // 8, 512 // 8

_HEADER = Struct("<II")
"""length without header and padding, kind"""
_HEADER_BYTES = _HEADER.size
_MESSAGE, _PADDING, _FRAGMENT = 1, 2, 3

_CAPACITY_MIN = 128

_fence = Lock()
"""To take a lock is one full fence on x86-64: with it no later load passes an earlier store."""


class RingViolation(Exception):
    """The other side wrote what cannot be; the message says what."""


class _Ring:
    """What both ends see."""

    __slots__ = ("_data", "_view", "_words", "capacity_bytes", "message_bytes_max")

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._view = memoryview(buffer).cast("B")
        capacity = (len(self._view) - RING_OVERHEAD_BYTES) & ~7
        if self._view.readonly or capacity < _CAPACITY_MIN:
            raise ValueError(
                f"a buffer of {len(self._view)} bytes; a ring needs a writable one of at least "
                f"{RING_OVERHEAD_BYTES + _CAPACITY_MIN}"
            )
        self.capacity_bytes = capacity
        self.message_bytes_max = capacity // 8 - _HEADER_BYTES
        """Longest message. Two of them and their padding always fit."""
        self._words = self._view[:RING_OVERHEAD_BYTES].cast("Q")
        self._data = self._view[RING_OVERHEAD_BYTES : RING_OVERHEAD_BYTES + capacity]

    def close(self) -> None:
        """Let go of the buffer, so that its owner may close it. Idempotent."""
        self._words.release()
        self._data.release()
        self._view.release()


class RingWriter(_Ring):
    """The writing end. For one thread."""

    __slots__ = ("_freed", "_published", "_tail")

    def __init__(self, buffer: bytearray | memoryview, start: int = 0) -> None:
        """Begin with an empty ring at `start`, a multiple of 8, before there is a reader."""
        super().__init__(buffer)
        self._tail = self._published = self._freed = start
        self._words[_HEAD] = self._words[_TAIL] = start

    def append(self, message: bytes | memoryview, is_fragment: bool = False) -> bool:
        """Add one message, to be seen after `publish`; False when there is no room now.

        A fragment is completed by the messages that follow, up to the first that is none.
        ValueError for one that is longer than `message_bytes_max`.
        """
        length = len(message)
        if length > self.message_bytes_max:
            raise ValueError(
                f"a message of {length} bytes; this ring takes {self.message_bytes_max}"
            )
        stride = (length + _HEADER_BYTES + 7) & ~7
        capacity, data = self.capacity_bytes, self._data
        tail = self._tail
        offset = tail % capacity
        padding = 0 if offset + stride <= capacity else capacity - offset
        end = tail + padding + stride
        if end - self._freed > capacity:
            self._see_freed()
            if end - self._freed > capacity:
                return False
        if padding:
            _HEADER.pack_into(data, offset, padding - _HEADER_BYTES, _PADDING)
            offset = 0
        _HEADER.pack_into(data, offset, length, _FRAGMENT if is_fragment else _MESSAGE)
        first = offset + _HEADER_BYTES
        data[first : first + length] = message
        self._tail = end
        return True

    def publish(self) -> bool:
        """Show the reader all that was appended, in one store; True if it has to be woken."""
        words = self._words
        words[_TAIL] = self._published = self._tail
        with _fence:
            pass
        return words[_READER_SLEEPS] != 0

    def wait_for_room(self, since: int) -> bool:
        """Say that this end waits for room; False, and it does not, if there may be some already.

        That is if more is `freed` than it was at `since`, when there was none. A wait is bounded
        by the caller, so that nothing rests on one doorbell.
        """
        self._words[_WRITER_WAITS] = 1
        with _fence:
            pass
        self._see_freed()
        if self._freed != since:
            self._words[_WRITER_WAITS] = 0
            return False
        return True

    def stop_waiting(self) -> None:
        """Say that this end waits no more."""
        self._words[_WRITER_WAITS] = 0

    def look(self) -> int:
        """Look how far the reader has freed, and return it."""
        self._see_freed()
        return self._freed

    def _see_freed(self) -> None:
        """Take note of what the reader has freed."""
        head = self._words[_HEAD]
        before = self._freed
        if head != before:
            if not before < head <= self._published or head % 8:
                raise RingViolation(f"the reader freed up to {head}, after {before}")
            self._freed = head

    @property
    def freed(self) -> int:
        """The position up to which the reader has freed, as far as is known."""
        return self._freed

    def check_invariants(self) -> None:
        """Raise AssertionError unless the positions are in order and within the capacity."""
        assert self._freed <= self._published <= self._tail
        assert self._tail - self._freed <= self.capacity_bytes
        assert self._tail % 8 == 0


class RingReader(_Ring):
    """The reading end. For one thread."""

    __slots__ = ("_freed", "_position", "_tail", "is_fragment")

    def __init__(self, buffer: bytearray | memoryview) -> None:
        """Begin where the writer began, or where the last reader has freed to."""
        super().__init__(buffer)
        self.is_fragment = False
        """Whether what `read` returned last is completed by what follows."""
        self._position = self._tail = self._freed = self._words[_HEAD]
        if self._position % 8:
            raise RingViolation(f"the ring begins at {self._position}")

    def read(self) -> bytes | None:
        """Return the next message, copied, or None; RingViolation. Its room is kept till `free`."""
        while True:
            position = self._position
            if position == self._tail and not self._see_tail():
                return None
            capacity, data = self.capacity_bytes, self._data
            offset = position % capacity
            length, kind = _HEADER.unpack_from(data, offset)
            stride = (length + _HEADER_BYTES + 7) & ~7
            if stride > self._tail - position or offset + stride > capacity:
                raise RingViolation(
                    f"a message of {length} bytes where {self._tail - position} are"
                )
            self._position = position + stride
            if kind in (_MESSAGE, _FRAGMENT):
                self.is_fragment = kind == _FRAGMENT
                first = offset + _HEADER_BYTES
                return data[first : first + length].tobytes()
            if kind != _PADDING or offset + stride != capacity:
                raise RingViolation(f"an entry of kind {kind} at {position}")

    @property
    def has_unread(self) -> bool:
        """Whether `read` would find something, or RingViolation."""
        return self._position != self._words[_TAIL]

    def free(self) -> bool:
        """Free all that was read; True if the writer waits and has to be woken."""
        words = self._words
        words[_HEAD] = self._freed = self._position
        with _fence:
            pass
        return words[_WRITER_WAITS] != 0

    def sleep(self) -> bool:
        """Say that this end sleeps; False, and it does not, if something has come meanwhile.

        A sleep is bounded by the caller, so that nothing rests on one doorbell.
        """
        words = self._words
        words[_READER_SLEEPS] = 1
        with _fence:
            pass
        if self._position != words[_TAIL]:
            words[_READER_SLEEPS] = 0
            return False
        return True

    def wake(self) -> None:
        """Say that this end does not sleep any more."""
        self._words[_READER_SLEEPS] = 0

    def _see_tail(self) -> bool:
        """Take note of what was published; whether that is more than was read."""
        tail = self._words[_TAIL]
        if tail == self._tail:
            return False
        if not self._tail < tail <= self._freed + self.capacity_bytes or tail % 8:
            raise RingViolation(f"the writer published up to {tail}, after {self._tail}")
        self._tail = tail
        return True

    def check_invariants(self) -> None:
        """Raise AssertionError unless the positions are in order and within the capacity."""
        assert self._freed <= self._position <= self._tail
        assert self._tail - self._freed <= self.capacity_bytes
        assert self._position % 8 == 0
