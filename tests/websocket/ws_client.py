"""A WebSocket client on one blocking socket, which reads and answers only when it is told to."""

import socket
import ssl
import struct
from collections import deque
from contextlib import suppress
from typing import Self

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Origin
from websockets.uri import parse_uri

from cluster.iocp import PacketFraming, make_packet
from cluster.iocp.packet_framing import split_packets

__all__ = ["ClosedError", "RefusedError", "WsClient"]

_FRAMING = PacketFraming()


class RefusedError(Exception):
    """The handshake was answered with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ClosedError(Exception):
    """The server has closed the connection, with `code`; 1006 if it said nothing."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class WsClient:
    """Sends and receives messages and packets; every wait has a deadline."""

    def __init__(
        self,
        address: str,
        *,
        origin: str | None = None,
        context: ssl.SSLContext | None = None,
        buffer_bytes: int | None = None,
        forwarded_for: str | None = None,
    ) -> None:
        """Connect to a front that said `address`; raises RefusedError."""
        uri = parse_uri(address)
        self.protocol = ClientProtocol(
            uri, origin=None if origin is None else Origin(origin), max_size=None
        )
        self.socket = socket.socket(socket.AF_INET6 if ":" in uri.host else socket.AF_INET)
        self.messages: deque[bytes] = deque()
        """What was received and not taken."""
        self.pings = 0
        """How many it was sent, and has answered."""
        self._packets: deque[tuple[int, bytes]] = deque()
        try:
            if buffer_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            self.socket.settimeout(20)
            self.socket.connect((uri.host, uri.port))
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname=uri.host)
            request = self.protocol.connect()
            if forwarded_for is not None:
                request.headers["X-Forwarded-For"] = forwarded_for
            self.protocol.send_request(request)
            self._flush()
            while self.protocol.state is State.CONNECTING:
                self._receive()
        except BaseException:
            self.socket.close()
            raise

    @property
    def address(self) -> str:
        """The client's own address, as a node shows it."""
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def send(self, message: bytes | str) -> None:
        """Send one message."""
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        self._flush()

    def send_packet(self, packet_id: int, payload: bytes) -> None:
        """Send one packet in a message of its own."""
        self.send(make_packet(packet_id, payload))

    def receive_message(self) -> bytes:
        """Return the next message; raises ClosedError."""
        while not self.messages:
            self._receive()
        return self.messages.popleft()

    def receive(self) -> tuple[int, bytes]:
        """Return id and payload of the next packet, of messages that have whole ones only."""
        while not self._packets:
            message = self.receive_message()
            assert _FRAMING.scan(message).num_bytes == len(message) > 0
            self._packets.extend(split_packets(message, 0, len(message)))
        return self._packets.popleft()

    def ask(self, packet_id: int, payload: bytes) -> tuple[int, bytes]:
        """Send one packet and return the next one that comes."""
        self.send_packet(packet_id, payload)
        return self.receive()

    def receive_close(self) -> ClosedError:
        """Return how the server closes; messages that come before are thrown away."""
        try:
            while True:
                self.receive_message()
        except ClosedError as closed:
            return closed

    def close(self, code: int = 1000) -> ClosedError:
        """Close in good order, and return the answer."""
        self.protocol.send_close(code)
        self._flush()
        return self.receive_close()

    def reset(self) -> None:
        """End the connection as the loss of a process does that had something to read."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.socket.sendall(data)

    def _receive(self) -> None:
        if self.protocol.state is State.CLOSED:
            raise ClosedError(self.protocol.close_code or 1006, self.protocol.close_reason or "")
        try:
            data = self.socket.recv(65_536)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
        for event in self.protocol.events_received():
            if isinstance(event, Response) and event.status_code != 101:
                raise RefusedError(event.status_code)
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                assert event.fin
                self.messages.append(bytes(event.data))
            self.pings += isinstance(event, Frame) and event.opcode is Opcode.PING
        if self.protocol.handshake_exc is not None:
            raise self.protocol.handshake_exc
        with suppress(OSError):  # an answer to a close may be one too many
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
