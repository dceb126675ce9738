"""A client of a node: one blocking socket that speaks packets."""

import socket
import struct
from typing import Self

_HEADER = struct.Struct("<HH")


class PacketClient:
    """Sends and receives packets; every wait has a deadline."""

    def __init__(
        self, port: int, host: str = "127.0.0.1", timeout_s: float = 20.0, source: str = ""
    ) -> None:
        """Connect, from the address `source` if one is given."""
        self.socket = socket.create_connection(
            (host, port), timeout=timeout_s, source_address=(source, 0) if source else None
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, packet_id: int, payload: bytes) -> None:
        """Send one packet."""
        self.socket.sendall(_HEADER.pack(4 + len(payload), packet_id) + payload)

    def receive(self) -> tuple[int, bytes]:
        """Return id and payload of the next packet; raises EOFError at the end."""
        size, packet_id = _HEADER.unpack(self._exactly(4))
        return packet_id, self._exactly(size - 4)

    def ask(self, packet_id: int, payload: bytes) -> tuple[int, bytes]:
        """Send one packet and return the next one that comes."""
        self.send(packet_id, payload)
        return self.receive()

    def receive_end(self) -> None:
        """Wait for the server to end the connection; whatever comes before is thrown away."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionResetError:
            pass

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError(f"the connection ended after {len(data)} of {count} bytes")
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
