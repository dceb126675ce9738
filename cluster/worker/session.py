"""A client as handlers see it. It lives in the worker; the connection is the gateway's."""

from struct import error as StructError
from typing import Any

from cluster.iocp.packet_framing import HEADER, HEADER_BYTES
from cluster.shared.causes import Cause
from cluster.shared.records import DISCONNECT, RECORD_BYTES, SEND
from cluster.worker.outbox import Outbox

__all__ = ["Session"]

_pack_header = HEADER.pack
_SEND_OVERHEAD = HEADER_BYTES + RECORD_BYTES


class Session:
    """One client's session. For handlers and the loop's thread; others use `app.post`.

    `id` is never used again in the cluster. `sequence` is the number of the packet that is
    being handled, from 1. `state` is any object of the application's; it is lost with the
    worker.
    """

    __slots__ = ("_max_payload_bytes", "_outbox", "address", "id", "is_open", "sequence", "state")

    def __init__(
        self, session_id: int, address: str, outbox: Outbox, max_payload_bytes: int
    ) -> None:
        self.id = session_id
        self.address = address
        self.is_open = True
        """Whether the client can still be sent to."""
        self.sequence = 0
        self.state: Any = None
        self._outbox = outbox
        self._max_payload_bytes = max_payload_bytes

    def send(self, packet_id: int, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send one packet to the client, with what this handler call commits.

        `packet_id` is 0 to 65535; the payload may be as long as the node allows packets to be
        (`gateway.max_packet_bytes`, 4 bytes of header included). Raises ValueError for either,
        TypeError for a payload that is not bytes, OutputTooLarge when more was sent than one
        batch holds. Sending to a session that has ended does nothing.
        """
        size = len(payload)
        if size > self._max_payload_bytes:
            raise ValueError(
                f"a payload of {size} bytes; gateway.max_packet_bytes allows "
                f"{self._max_payload_bytes}"
            )
        try:
            header = _pack_header(size + HEADER_BYTES, packet_id)
        except StructError:
            raise ValueError(f"packet id {packet_id!r} is not between 0 and 65535") from None
        if self.is_open:
            packet = header + payload
            if len(packet) != size + HEADER_BYTES:
                raise ValueError(f"a payload of {size} items that are not bytes; cast it to 'B'")
            # `Outbox.add`, written out: nearly every packet is answered by one send.
            outbox = self._outbox
            num_bytes = outbox.num_bytes + size + _SEND_OVERHEAD
            if num_bytes > outbox.max_batch_bytes:
                outbox.refuse(num_bytes)
            outbox.num_bytes = num_bytes
            outbox.entries.append((SEND, self.id, packet))

    def disconnect(self, cause: str = Cause.LOCAL) -> None:
        """End the session in good order, after all that was sent to it. Works once.

        `cause` is one of `cluster.shared.causes.Cause` or a string of the application's own, at
        most 255 bytes of UTF-8. `on_disconnected` follows when the connection has closed.
        """
        text = str(cause).encode()
        if not 0 < len(text) <= 255:
            raise ValueError(f"cause {cause!r}: give 1 to 255 bytes of UTF-8")
        if self.is_open:
            self._outbox.add(DISCONNECT, self.id, text)
            self.is_open = False

    def __repr__(self) -> str:
        return f"<Session {self.id:#x} {self.address}>"
