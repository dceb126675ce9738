"""Received bytes that were not consumed yet, between a read and a write cursor.

A session has one only while something is left over: what a recv brings goes to the session
first and is copied here only if it stays. The buffer grows by doubling up to its maximum and
never shrinks; a session drops it when it is empty.
"""

__all__ = ["RecvBuffer"]

_FIRST_BYTES = 512


class RecvBuffer:
    """A bounded buffer. Views that it hands out stay valid until the next `on_write`."""

    __slots__ = ("_data", "_read", "_write", "capacity_max")

    def __init__(self, capacity_max: int) -> None:
        """Make an empty buffer that never holds more than `capacity_max` bytes."""
        self.capacity_max = capacity_max
        self._data = bytearray()
        self._read = 0
        self._write = 0

    @property
    def data_size(self) -> int:
        """Bytes that wait to be read."""
        return self._write - self._read

    @property
    def free_size(self) -> int:
        """Bytes that can still be written."""
        return self.capacity_max - self.data_size

    def on_write(self, data: bytes | memoryview) -> bool:
        """Append `data`; False, and nothing is taken, when it does not fit."""
        length = len(data)
        if length > self.free_size:
            return False
        if self._write + length > len(self._data):
            self._make_room(length)
        self._data[self._write : self._write + length] = data
        self._write += length
        return True

    def readable(self) -> memoryview:
        """Return what waits to be read, without a copy."""
        return memoryview(self._data)[self._read : self._write]

    def on_read(self, num_bytes: int) -> bool:
        """Consume `num_bytes`; False, and nothing changes, if that many are not there."""
        if not 0 <= num_bytes <= self.data_size:
            return False
        self._read += num_bytes
        if self._read == self._write:
            self.clean()
        return True

    def clean(self) -> None:
        """Forget everything; both cursors go back to the start."""
        self._read = self._write = 0

    def check_invariants(self) -> None:
        """Raise AssertionError unless the cursors are in order and within bounds."""
        assert 0 <= self._read <= self._write <= len(self._data)
        assert self.data_size <= self.capacity_max
        assert self._read < self._write or self._read == 0

    def _make_room(self, length: int) -> None:
        # A new array instead of a larger one: a bytearray with a view on it cannot be resized,
        # and a callback may have kept a view.
        needed = self.data_size + length
        size = max(_FIRST_BYTES, len(self._data))
        while size < needed:
            size *= 2
        size = min(size, self.capacity_max)
        grown = bytearray(size)
        grown[: self.data_size] = self._data[self._read : self._write]
        self._write = self.data_size
        self._read = 0
        self._data = grown
