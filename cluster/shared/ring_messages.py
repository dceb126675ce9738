"""Messages of any length over a ring: long ones go as fragments, as the other side frees room."""

from collections import deque
from collections.abc import Callable

from cluster.shared.ring import RingReader, RingViolation, RingWriter

__all__ = ["MessageReceiver", "MessageSender"]


class MessageSender:
    """The sending end. For one thread."""

    __slots__ = ("_ring_bell", "_writer", "rest")

    def __init__(self, writer: RingWriter, ring_bell: Callable[[], None]) -> None:
        """Send by `writer`; `ring_bell` wakes a reader that sleeps."""
        self._writer = writer
        self._ring_bell = ring_bell
        self.rest: deque[memoryview] = deque()
        """The end of a long message, in pieces that wait for room; for this end to look at, and to
        `push`."""

    def send(self, message: bytes) -> bool:
        """Send one message; False, and nothing was taken, when there is no room now.

        Of one that is longer than a ring's message at most what fits goes at once, and the rest
        with `push`. It is this end's until then.
        """
        if self.rest and not self.push():
            return False
        writer = self._writer
        if len(message) <= writer.message_bytes_max:
            if not writer.append(message):
                return False
            if writer.publish():
                self._ring_bell()
            return True
        view, size = memoryview(message), writer.message_bytes_max
        if not writer.append(view[:size], is_fragment=True):
            return False
        self.rest.extend(view[start : start + size] for start in range(size, len(message), size))
        self.push()
        return True

    def push(self) -> bool:
        """Send as much of the rest as there is room for; whether nothing is left."""
        rest, writer = self.rest, self._writer
        while rest and writer.append(rest[0], is_fragment=len(rest) > 1):
            rest.popleft()
        if writer.publish():
            self._ring_bell()
        return not rest


class MessageReceiver:
    """The receiving end. For one thread."""

    __slots__ = ("_fragments", "_message_bytes_max", "_num_bytes", "_reader", "_ring_bell")

    def __init__(
        self, reader: RingReader, message_bytes_max: int, ring_bell: Callable[[], None]
    ) -> None:
        """Receive by `reader`; `ring_bell` wakes a writer that waits for room."""
        self._reader = reader
        self._message_bytes_max = message_bytes_max
        self._ring_bell = ring_bell
        self._fragments: list[bytes] = []
        self._num_bytes = 0

    def receive(self) -> bytes | None:
        """Return the next message, copied, or None; its room is not free before `free`.

        What the other side writes later does not change it. RingViolation also for one that is
        longer than `message_bytes_max`.
        """
        reader = self._reader
        while (message := reader.read()) is not None:
            if not reader.is_fragment and not self._fragments:
                return message
            if reader.is_fragment and len(message) != reader.message_bytes_max:
                # Smaller ones would make any number of pieces of what is bounded in bytes.
                raise RingViolation(f"a fragment of {len(message)} bytes")
            self._fragments.append(message)
            self._num_bytes += len(message)
            if self._num_bytes > self._message_bytes_max:
                raise RingViolation(
                    f"a message of more than {self._message_bytes_max} bytes, in fragments"
                )
            if not reader.is_fragment:
                joined = b"".join(self._fragments)
                self._fragments.clear()
                self._num_bytes = 0
                return joined
            self.free()  # or the rest could never come
        return None

    def free(self) -> None:
        """Free the room of everything that was received."""
        if self._reader.free():
            self._ring_bell()
