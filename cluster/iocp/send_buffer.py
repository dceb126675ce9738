"""What is to be sent: bytes that nobody changes any more, shared by as many queues as need."""

from cluster.iocp.iocp_event import Buffer
from cluster.iocp.packet_framing import make_packet

__all__ = ["JOIN_BYTES_MAX", "SendBuffer", "copy_bytes", "join_small"]

JOIN_BYTES_MAX = 16_384
"""Buffers that together are not longer are joined into one before they are sent.

Copying 16 KiB costs less than the kernel's walk over dozens of short vectors; past that the
copy shows, and large buffers go out as they are.
"""

SMALL_BYTES_MAX = 1_024
"""In a larger gather, neighbours up to this size are joined, however many they are."""


class SendBuffer:
    """Bytes on their way. One buffer may sit in the queues of many sessions without a copy.

    `bytes` are taken as they are; any other buffer is copied once, because its owner may change
    it while a send is pending. TypeError for what is no buffer.
    """

    __slots__ = ("data",)

    def __init__(self, data: Buffer) -> None:
        self.data = data if isinstance(data, bytes) else copy_bytes(data)

    @classmethod
    def packet(cls, packet_id: int, payload: Buffer) -> "SendBuffer":
        """Make the buffer that holds one packet; raises ValueError for a size or id too large."""
        return cls(make_packet(packet_id, payload))

    def __len__(self) -> int:
        return len(self.data)


def copy_bytes(data: Buffer) -> bytes:
    """Return the bytes of `data`; TypeError for what has none, of which `bytes` would make some."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(
            f"what is sent is bytes, bytearray, memoryview or a SendBuffer, not "
            f"{type(data).__name__}; encode it first"
        ) from None
    return bytes(view)


def join_small(buffers: list[Buffer], num_bytes: int) -> list[Buffer]:
    """Return `buffers`, `num_bytes` long in all, as a shorter list of the same bytes."""
    if len(buffers) == 1:
        return buffers
    if num_bytes <= JOIN_BYTES_MAX:
        return [b"".join(buffers)]
    joined: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) <= SMALL_BYTES_MAX:
            run.append(buffer)
            continue
        if run:
            joined.append(b"".join(run))
            run = []
        joined.append(buffer)
    if run:
        joined.append(b"".join(run))
    return joined
