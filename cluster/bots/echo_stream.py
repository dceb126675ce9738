"""The packets of one bot: makes them, and checks what comes back.

Plain objects, no sockets and no clock. Every packet is a function of its session's tag and its
sequence, so an echo can be told apart from any other packet of the run: content and order are
checked, not only the count. Payloads shorter than the mark carry as much of it as fits.
"""

from random import Random
from struct import Struct

from cluster.iocp.packet_framing import HEADER_BYTES

__all__ = ["MARK_BYTES", "PACKET_ID", "EchoStream"]

PACKET_ID = 1
"""The id of every packet of a bot: an application that echoes one id only can echo this one."""

_HEAD = Struct("<HHQI")
"""The packet header, then the mark: sequence (its low bytes first, they change most) and tag."""

MARK_BYTES = _HEAD.size - HEADER_BYTES
_SEQUENCE_BYTES = 8

_PERIOD = 65_536
_FILLER = Random(0).randbytes(_PERIOD) * 2
"""Filler is a slice of this, at a place that depends on tag and sequence."""


class EchoStream:
    """What one session sends, what it still expects, and what was wrong with what came."""

    __slots__ = (
        "_expected",
        "_next_sequence",
        "_sent_at",
        "_tag",
        "differed",
        "echoed",
        "lost",
        "packet_bytes",
    )

    def __init__(self, tag: int, payload_bytes: int) -> None:
        """Make the stream of the session `tag`, a number below 2**32, unique in the run."""
        self._tag = tag
        self._next_sequence = 0
        self._expected: list[bytes] = []
        self._sent_at: list[int] = []
        self.packet_bytes = HEADER_BYTES + payload_bytes
        self.echoed = 0
        """Packets that came back as they were sent, in order."""
        self.differed = 0
        """Packets that came and were none that was due."""
        self.lost = 0
        """Packets that were passed over: a later one came back first."""

    @property
    def outstanding(self) -> int:
        """Packets that were sent and have not come back."""
        return len(self._expected)

    def send(self, count: int, now: int) -> bytes:
        """Return the next `count` packets, which are sent at `now`, as one piece."""
        first = self._next_sequence
        self._next_sequence = first + count
        if count == 1:  # the whole run at depth 1
            packet = self.packet(first)
            self._expected.append(packet)
            self._sent_at.append(now)
            return packet
        packets = [self.packet(sequence) for sequence in range(first, first + count)]
        self._expected += packets
        self._sent_at += [now] * count
        return b"".join(packets)

    def packet(self, sequence: int) -> bytes:
        """Return packet `sequence`, header included."""
        packet_bytes = self.packet_bytes
        head = _HEAD.pack(packet_bytes, PACKET_ID, sequence, self._tag)
        if packet_bytes <= _HEAD.size:
            return head[:packet_bytes]
        at = (sequence * 61 + self._tag * 7_919) % _PERIOD
        return head + _FILLER[at : at + packet_bytes - _HEAD.size]

    def match(self, data: bytes | memoryview) -> list[int]:
        """Take the complete packets at the front of `data` if all of them are due, in order.

        Returns when each of them was sent. An empty list means: no complete packet, or not what
        was due; nothing was taken, and `check` tells what is wrong with which packet.
        """
        count = len(data) // self.packet_bytes
        expected = self._expected
        if count == 0 or count > len(expected):
            return []
        if count == 1:
            due = expected[0]
        else:
            due = b"".join(expected[:count])
        # Neither slice nor bytes() copies when nothing is cut off and `data` is bytes.
        if bytes(data[: len(due)]) != due:
            return []
        del expected[:count]
        sent_at = self._sent_at[:count]
        del self._sent_at[:count]
        self.echoed += count
        return sent_at

    def check(self, packet: bytes | memoryview) -> int | None:
        """Take one packet, whatever it is; return when it was sent if it is one that was due.

        One that skips others is good, and those are lost. One that was answered or passed over
        before (a repetition, or out of order) differs; any other stands in the place of the
        packet that was due, and differs.
        """
        received = bytes(packet)
        expected = self._expected
        try:
            skipped = expected.index(received)
        except ValueError:
            self.differed += 1
            if expected and not self._was_sent_before(received):
                self._drop(1)
            return None
        self.lost += skipped
        sent_at = self._sent_at[skipped]
        self._drop(skipped + 1)
        self.echoed += 1
        return sent_at

    def _drop(self, count: int) -> None:
        del self._expected[:count]
        del self._sent_at[:count]

    def _was_sent_before(self, received: bytes) -> bool:
        """Whether `received` is a packet of this stream from before those that are due."""
        if len(received) != self.packet_bytes:
            return False
        if self.packet_bytes < HEADER_BYTES + _SEQUENCE_BYTES:
            return False  # it does not carry its whole sequence
        mark = received[HEADER_BYTES : HEADER_BYTES + _SEQUENCE_BYTES]
        sequence = int.from_bytes(mark, "little")
        due = self._next_sequence - len(self._expected)
        return sequence < due and received == self.packet(sequence)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every packet sent is accounted for."""
        assert len(self._expected) == len(self._sent_at)
        answered = self.echoed + self.lost + self.differed
        # A repetition differs without standing for a packet, so there may be more answers.
        assert self._next_sequence - self.outstanding <= answered
