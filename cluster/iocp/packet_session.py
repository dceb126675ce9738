"""A session whose byte stream is a sequence of packets."""

from cluster.iocp.causes import Cause
from cluster.iocp.iocp_event import Buffer
from cluster.iocp.packet_framing import PacketFraming, iter_packets, make_packet
from cluster.iocp.session import Session

__all__ = ["PacketSession"]

_FRAMING = PacketFraming()


class PacketSession(Session):
    """Calls `on_recv_packet` once for each complete packet, in order.

    A header with a size that no packet may have aborts the session with `bad_size`, after the
    packets before it were delivered.
    """

    __slots__ = ()

    framing: PacketFraming = _FRAMING

    def on_recv(self, data: bytes | memoryview) -> int:
        scan = self.framing.scan(data)
        for packet in iter_packets(data[: scan.num_bytes]):
            if not self.is_connected:
                return len(data)
            self.on_recv_packet(packet)
        if scan.bad_size is not None:
            self.abort(Cause.BAD_SIZE)
        return scan.num_bytes

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        """Take one packet, header included; valid until this returns."""

    def send_packet(self, packet_id: int, payload: Buffer) -> bool:
        """Queue one packet; ValueError for an id or a payload that does not fit a packet."""
        return self.send(make_packet(packet_id, payload))
