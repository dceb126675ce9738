"""One connection to a node, for one asyncio loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Self

from cluster.client.packet import Packet
from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, make_packet
from cluster.shared.codec import Codec, CodecName, Message

__all__ = ["BadPacketError", "Client", "connect"]

CLOSE_S = 5.0
"""Longest wait, at the end, for the other side to take what was sent."""


class BadPacketError(ConnectionError):
    """What has come is no packet: the other side speaks something else, or has died within one."""


class Client:
    """A connection that `connect` has made. Any number of tasks may send, one may receive."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: CodecName
    ) -> None:
        """Speak packets by a connection that is there; `codec` is the application's."""
        self._reader = reader
        self._writer = writer
        self._codec = Codec(codec)
        self._header: tuple[int, int] | None = None
        """Size and id of a packet of which more is awaited: a receive may be cancelled there."""
        self._is_receiving = False
        self._has_ended_sending = False

    async def send(self, packet_id: int, message: Message = b"") -> None:
        """Send one packet, and wait while much waits to be taken by the system.

        The packet is on its way also when the wait is cancelled. Raises ValueError for an id or a
        payload that does not fit a packet, TypeError for what is no message, ConnectionError when
        the connection has ended or broken, RuntimeError behind `end_sending`.
        """
        packet = make_packet(packet_id, self._codec.encode(message))
        if self._writer.is_closing() or self._reader.at_eof():
            raise ConnectionResetError("the connection has ended")
        if self._has_ended_sending:
            raise RuntimeError("nothing can be sent behind end_sending")
        self._writer.write(packet)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise
        except OSError as error:
            raise _broken(error) from error

    async def receive(self) -> Packet:
        """Wait for the next packet. Nothing is lost when the wait is cancelled.

        Raises EOFError when the node has ended the connection behind the last one, BadPacketError
        for what is no packet, ConnectionError when the connection broke, RuntimeError while
        another task receives.
        """
        if self._is_receiving:
            raise RuntimeError("another task receives already; one at a time may")
        self._is_receiving = True
        try:
            if self._header is None:
                self._header = HEADER.unpack(await self._reader.readexactly(HEADER_BYTES))
            size, packet_id = self._header
            if size < HEADER_BYTES:
                raise BadPacketError(f"a packet of {size} bytes; the header alone has 4")
            payload = await self._reader.readexactly(size - HEADER_BYTES)
        except asyncio.IncompleteReadError as error:
            if self._header is None and not error.partial:
                raise EOFError("the node has ended the connection") from None
            raise BadPacketError("the connection has ended within a packet") from None
        except ConnectionError:
            raise
        except OSError as error:
            raise _broken(error) from error
        finally:
            self._is_receiving = False
        self._header = None
        return Packet(packet_id, payload, self._codec)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        try:
            return await self.receive()
        except EOFError:
            raise StopAsyncIteration from None

    def end_sending(self) -> None:
        """Tell the node that nothing more comes: it answers what it has, and ends its side too.

        Not over TLS, which has no such end: RuntimeError.
        """
        if not self._writer.can_write_eof():
            raise RuntimeError("a TLS connection has no end of one side; close it")
        self._has_ended_sending = True
        if not self._writer.is_closing():
            self._writer.write_eof()

    async def close(self) -> None:
        """End the connection, behind what was sent. Idempotent.

        What the other side does not take within 5 s, or before the wait is cancelled, is lost.
        """
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
        except OSError:
            pass  # it has ended already in its own way, or does not within the time
        finally:
            # asyncio raises from the `abort` of what was closed behind bytes that waited.
            if self._writer.get_extra_info("socket").fileno() >= 0:
                self._writer.transport.abort()


def _broken(error: OSError) -> ConnectionError:
    """Return what to raise when TCP gives up, the network is gone, or TLS fails."""
    return ConnectionAbortedError(f"the connection has broken: {error}")


@asynccontextmanager
async def connect(
    host: str, port: int, *, codec: CodecName = "msgpack", ssl: SSLContext | None = None
) -> AsyncIterator[Client]:
    """Connect to a node, or what stands in front of it, for as long as the block lasts.

        async with connect("127.0.0.1", 7777) as client:
            await client.send(2, Line("ann", "hello"))
            async for packet in client:
                print(packet.id, packet.decode(Line))

    `codec` is the application's (`App(codec=...)`). With `ssl` the connection is encrypted.
    Raises OSError when there is no connection to be had, ValueError for an unknown codec.
    """
    Codec(codec)
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl)
    client = Client(reader, writer, codec)
    try:
        yield client
    finally:
        await client.close()
