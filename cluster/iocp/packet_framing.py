"""Packets in a byte stream: a header of two little-endian uint16, size and id, then a payload.

The size counts the header. A size that no packet may have is a violation, told as soon as its
two bytes are there: nothing is ever allocated on the peer's word, and a size of zero is not a
loop. Plain objects, no I/O.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from cluster.iocp.iocp_event import Buffer

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "PACKET_BYTES_MAX",
    "PacketFraming",
    "Scan",
    "bad_packet_id",
    "iter_packets",
    "make_packet",
    "split_packets",
]

HEADER = Struct("<HH")
HEADER_BYTES = HEADER.size
_unpack_header = HEADER.unpack_from
PACKET_BYTES_MAX = 65_535
ALIKE_MIN = 4
"""So many packets of one size are found faster by `count_alike` than one by one."""

_BYTES = [bytes((value,)) for value in range(256)]


class Scan(NamedTuple):
    """What stands at the front of a buffer.

    `num_bytes` is the length of all complete packets, `packet_count` their number. `bad_size` is
    the size in the header that follows them if no packet may have it, else None.
    """

    num_bytes: int
    packet_count: int
    bad_size: int | None


class PacketFraming:
    """Finds the complete packets at the front of received bytes."""

    __slots__ = ("max_packet_bytes",)

    def __init__(self, max_packet_bytes: int = PACKET_BYTES_MAX) -> None:
        """Allow packets of `HEADER_BYTES` to `max_packet_bytes` bytes, header included."""
        if not HEADER_BYTES <= max_packet_bytes <= PACKET_BYTES_MAX:
            raise ValueError(
                f"max_packet_bytes={max_packet_bytes}: "
                f"allowed is {HEADER_BYTES} to {PACKET_BYTES_MAX}"
            )
        self.max_packet_bytes = max_packet_bytes

    def scan(self, data: bytes | memoryview) -> Scan:
        """Find the complete packets at the front of `data`, in one pass."""
        end = len(data)
        size_max = self.max_packet_bytes
        offset = count = 0
        if end > HEADER_BYTES and end >= ALIKE_MIN * (size := data[0] | data[1] << 8):
            count = count_alike(data, size, size_max)
            offset = count * size
        while end - offset >= 2:
            size = data[offset] | data[offset + 1] << 8
            if size < HEADER_BYTES or size > size_max:
                return Scan(offset, count, size)
            if size > end - offset:
                break
            offset += size
            count += 1
        return Scan(offset, count, None)


def count_alike(data: bytes | memoryview, size: int, size_max: int) -> int:
    """Return how many complete packets stand at the front of `data` if `size` is that of the first
    and all others have it too; else, or if no packet may have it, 0. There are bytes for two of it.

    It is then found wherever the next packet would begin, so two comparisons do for what is
    otherwise a step for each packet. That pays from `ALIKE_MIN` packets on.
    """
    if not HEADER_BYTES <= size <= size_max or data[size] | data[size + 1] << 8 != size:
        return 0
    count = len(data) // size
    end = count * size
    low, high = _BYTES[size & 0xFF], _BYTES[size >> 8]
    if data[:end:size] == low * count and data[1:end:size] == high * count:
        return count
    return 0


def iter_packets(data: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """Yield each packet, header included, of `data`, which holds complete packets only."""
    offset, end = 0, len(data)
    while offset < end:
        size = data[offset] | data[offset + 1] << 8
        yield data[offset : offset + size]
        offset += size


def split_packets(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Return id and payload of each packet from `start` to `end`, which are complete packets."""
    size = data[start] | data[start + 1] << 8
    if end - start >= ALIKE_MIN * size:
        stream = data[start:end]
        if count_alike(stream, size, PACKET_BYTES_MAX) * size == len(stream):
            return _of_size(size)(stream)
    packets = []
    while start < end:
        size, packet_id = _unpack_header(data, start)
        packets.append((packet_id, data[start + HEADER_BYTES : start + size]))
        start += size
    return iter(packets)


@lru_cache(maxsize=256)
def _of_size(size: int) -> Callable[[bytes], Iterator[tuple[int, bytes]]]:
    """Return what takes packets of `size` apart."""
    return Struct(f"<2xH{size - HEADER_BYTES}s").iter_unpack


def make_packet(packet_id: int, payload: Buffer) -> bytes:
    """Return one packet; raises ValueError that names an id or a size out of range, TypeError for a
    payload that is no buffer."""
    if type(payload) is not bytes:
        payload = memoryview(payload).cast("B")  # whatever it is a view of, its length is in bytes
    size = HEADER_BYTES + len(payload)
    if size > PACKET_BYTES_MAX:
        raise ValueError(
            f"a payload of {len(payload)} bytes does not fit a packet; "
            f"at most {PACKET_BYTES_MAX - HEADER_BYTES}"
        )
    try:
        header = HEADER.pack(size, packet_id)
    except StructError:
        raise bad_packet_id(packet_id) from None
    return b"".join((header, payload))


def bad_packet_id(packet_id: object) -> ValueError:
    """Return what to raise for a packet id that is none."""
    return ValueError(f"packet id {packet_id!r} is not between 0 and 65535")
