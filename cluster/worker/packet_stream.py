"""Packets of one session that come, or go, together: the bytes of its stream, and what is in them.

They are taken apart when somebody looks at them, and not before: who passes on what he was given,
to the same client or another, pays nothing for each packet. What a packet may be is said here
once, for those that are sent one by one as well.
"""

from collections.abc import Callable, Iterator, Sequence
from struct import error as StructError
from typing import overload

from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, bad_packet_id, split_packets
from cluster.shared.codec import Message

__all__ = ["Packets", "join_packets", "too_long"]

_pack_header = HEADER.pack


class Packets(Sequence[tuple[int, bytes]]):
    """Ids and payloads of packets that came together, in order. Immutable; made by the worker."""

    __slots__ = ("_count", "_taken_apart", "stream")

    def __init__(self, stream: bytes, count: int) -> None:
        """Of `stream`, which is `count` complete packets, one or more."""
        self.stream = stream
        """The packets as they came, headers included."""
        self._count = count
        self._taken_apart: list[tuple[int, bytes]] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(self._packets())

    @overload
    def __getitem__(self, index: int) -> tuple[int, bytes]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, bytes]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, bytes] | list[tuple[int, bytes]]:
        return self._packets()[index]

    def __repr__(self) -> str:
        return f"<Packets {self._packets()!r}>"

    def _packets(self) -> list[tuple[int, bytes]]:
        packets = self._taken_apart
        if packets is None:
            packets = self._taken_apart = list(split_packets(self.stream, 0, len(self.stream)))
        return packets


def join_packets(
    packets: Sequence[tuple[int, Message]],
    encode: Callable[[Message], bytes],
    max_payload_bytes: int,
) -> bytes:
    """Return the stream of `packets`, ids and messages, in order.

    `encode` is called for messages that are not bytes. Raises ValueError for an id or a payload
    that does not fit, TypeError for what is no id and message, and what `encode` raises.
    """
    parts = []
    for packet in packets:
        try:
            packet_id, message = packet
        except (TypeError, ValueError):
            raise TypeError(
                f"a packet among several is (packet_id, message), not {_shape(packet)}; write "
                "session.send_packets([(1, message), ...])"
            ) from None
        payload = message if type(message) is bytes else encode(message)
        size = len(payload)
        if size > max_payload_bytes:
            raise too_long(size, max_payload_bytes)
        try:
            parts.append(_pack_header(size + HEADER_BYTES, packet_id))
        except StructError:
            raise bad_packet_id(packet_id) from None
        parts.append(payload)
    return b"".join(parts)


def too_long(size: int, max_payload_bytes: int) -> ValueError:
    """Return what to raise for a payload of `size` bytes."""
    return ValueError(
        f"a payload of {size} bytes; gateway.max_packet_bytes allows {max_payload_bytes}"
    )


def _shape(packet: object) -> str:
    """Return what to call what is no packet; payloads are not for the log."""
    name = type(packet).__name__
    return f"a {name} of {len(packet)}" if isinstance(packet, list | tuple) else name
