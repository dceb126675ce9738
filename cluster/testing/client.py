"""A client as an object: a real connection to the node, over the network inside the process."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.client.packet import Packet
from cluster.gateway.session import GatewaySession
from cluster.iocp import ClientService, NetAddress, PacketSession
from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, make_packet
from cluster.shared.codec import Codec, Message
from cluster.worker.session import Session

if TYPE_CHECKING:
    from cluster.testing.staged_node import StagedNode

__all__ = ["Clients", "NothingReceived", "TestClient"]


class NothingReceived(AssertionError):
    """There is no packet to take; the message says what has become of the client."""


class _Connection(PacketSession):
    """The client's end of the connection."""

    __slots__ = ("_codec", "_take")

    def __init__(self, take: Callable[[Packet], None], codec: Codec) -> None:
        super().__init__()
        self._take = take
        self._codec = codec

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        _, packet_id = HEADER.unpack_from(packet)
        self._take(Packet(packet_id, bytes(packet[HEADER_BYTES:]), self._codec))


class TestClient:
    """A client of a node; made by its `connect`.

    Each call returns when all that follows from it is done, at the other nodes of a cluster too.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(self, node: "StagedNode", service: ClientService, codec: Codec) -> None:
        self._node = node
        self._codec = codec
        self.received: list[Packet] = []
        """The packets that have come and were not taken by `receive`; `clear` takes them all."""
        self._service = service
        service.set_session_factory(lambda: _Connection(self.received.append, codec))
        self._connection = service.create_session()
        assert self._connection.connect()
        assert self._connection.handle is not None
        self.port = self._connection.handle.local_address.port
        """By which the gateway knows it."""
        self.session_id: int | None = None
        """Of the session that the node has opened for it; None while it waits to be accepted."""
        self.cause: str | None = None
        """Why the session has ended, as `on_disconnected` is told; None before that, and where
        its gateway died."""

    # -- what it does ------------------------------------------------------------------------------

    def send(self, packet_id: int, message: Message = b"") -> None:
        """Send one packet. A struct is encoded as the application encodes its own.

        Raises ValueError for an id or a payload that does not fit a packet, ConnectionError when
        the connection has ended.
        """
        self.send_bytes(make_packet(packet_id, self._codec.encode(message)))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are: several packets at once, a part of one, or no packets at all.

        Raises ConnectionError when the connection has ended.
        """
        if not self._connection.send(data):
            raise ConnectionError(f"{self!r} cannot send any more")
        self._node.settle()

    def receive(self) -> Packet:
        """Take the first packet that has come and was not taken.

        Raises NothingReceived, which is an AssertionError, when there is none. What comes later,
        by a timer, comes by `advance`; what a handler awaits outside of the node, by `wait_until`.
        """
        self._node.settle()
        if not self.received:
            raise NothingReceived(f"{self!r} has received nothing more; {self._node.describe()}")
        return self.received.pop(0)

    def stop_reading(self) -> None:
        """Take nothing from the connection, as a slow client does, until `read_on`."""
        self._connection.pause_recv()

    def read_on(self) -> None:
        """Undo `stop_reading`."""
        self._connection.resume_recv()
        self._node.settle()

    def close(self) -> None:
        """End the connection in good order. Nothing happens if it has ended."""
        self._connection.disconnect()
        self._node.settle()

    def reset(self) -> None:
        """Break the connection off."""
        self._connection.abort()
        self._node.settle()

    # -- what has become of it ---------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether it is connected, as it knows."""
        return self._connection.is_connected

    @property
    def session(self) -> Session:
        """Its session as the application has it, in the worker that has it now.

        Raises LookupError when the application knows none: not yet, or not any more.
        """
        return self._node.session_of(self)

    def __repr__(self) -> str:
        if self.cause is not None:
            state = f"closed: {self.cause}"
        elif self._node.is_closed:
            state = "cut off"
        elif self.session_id is None:
            state = "not accepted"
        else:
            state = f"session {self.session_id:#x}"
        return f"<TestClient {state}>"


class Clients:
    """Which client each connection to a node is of (`SessionWatcher`)."""

    def __init__(self) -> None:
        self._clients: dict[int, TestClient] = {}
        """Those whose connection the gateway has not closed, by their port."""

    def add(self, client: TestClient) -> None:
        """A client connects."""
        self._clients[client.port] = client

    def opened(self, session: GatewaySession) -> None:
        """Learn which client a session is of."""
        client = self._client_at(session.address)
        if client is not None:
            client.session_id = session.id

    def closed(self, address: NetAddress | None, cause: str) -> None:
        """Learn how the connection of a client has ended."""
        client = self._client_at(address)
        if client is not None:
            client.cause = str(cause)
            del self._clients[client.port]

    def _client_at(self, address: NetAddress | None) -> TestClient | None:
        return None if address is None else self._clients.get(address.port)
