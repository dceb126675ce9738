"""A connection of the WebSocket library that says when it comes and goes, and has an end."""

import asyncio
from typing import Any, Final, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from cluster.iocp import NetAddress

__all__ = ["CLOSE_TIMEOUT_S", "ConnectionKeeper", "connections_of"]

CLOSE_TIMEOUT_S = 3.0
"""A client that has closed, or has been told of the end, has so long to end the connection."""

_ANSWERS_BYTES_MAX: Final = 524_288
"""What may wait for a client. Messages never come to that; the library's answers to pings might."""


class ConnectionKeeper(Protocol):
    """Is asked and told. In the event loop's thread."""

    def client_of(self, peer: NetAddress, request: Request) -> NetAddress:
        """Return whose `request` it is that came from `peer`."""

    def accepted(self, connection: ServerConnection) -> None:
        """A connection has come, and completed its TLS handshake."""

    def flooded(self, connection: ServerConnection) -> None:
        """A client sends pings, and takes no answers."""

    def lost(self, connection: ServerConnection) -> None:
        """A connection has gone, at whatever point of its life."""


def connections_of(keeper: ConnectionKeeper) -> type[ServerConnection]:
    """Return a class of connections that tell `keeper` when they come and go."""

    class Connection(ServerConnection):
        _end: asyncio.TimerHandle | None = None

        @property
        def remote_address(self) -> Any:
            """The client's, also behind a trusted proxy as soon as its request is there."""
            address = super().remote_address
            if not address or self.request is None:
                return address
            peer = NetAddress.from_sockaddr(address)
            client = keeper.client_of(peer, self.request)
            return address if client is peer else client.sockaddr

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            keeper.accepted(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > _ANSWERS_BYTES_MAX:
                keeper.flooded(self)
            # The client has closed, or broken the protocol. The library waits for it to end the
            # connection, without a limit while nobody sends to it.
            if self.protocol.eof_sent and self._end is None:
                self._end = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._end is not None:
                self._end.cancel()
            # The library and `Bridge` may abort it before they hear of this. asyncio raises from
            # the `abort` of what was closed behind bytes that waited.
            self.transport.abort = _do_nothing  # type: ignore[method-assign]
            keeper.lost(self)

    return Connection


def _do_nothing() -> None:
    pass
