"""One client of a front, and its connection to a node: bytes of packets, both ways.

What comes from the node is cut, so that each message has whole packets only. Each way waits for who
is to take: a client that does not read has its session's sends wait in the gateway, and a node that
does not read has its client wait, as on TCP. The event loop's thread only.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from cluster.iocp import NetAddress, PacketFraming
from cluster.shared.limited_log import LimitedLog
from cluster.websocket.front_counters import FrontCounters
from cluster.websocket.front_settings import FrontSettings

__all__ = ["WRITE_LIMITS", "Bridge", "BridgeLogs", "peer_of"]

_READ_BYTES = 65_536
"""What one read from a node takes."""

WRITE_LIMITS: Final = 131_072, 65_536
"""With more than the first waiting for a client, sends wait until it is the second at most."""

_FRAME_HEADER_BYTES_MAX = 14

_LINGER_S = 30.0
"""What a client sent ahead of its end has so long to be taken by the node."""

_NORMAL, _UNSUPPORTED, _INTERNAL_ERROR = 1000, 1003, 1011


class _End(NamedTuple):
    """How a client is to be closed."""

    code: int
    reason: str


class _ClientGoneError(Exception):
    """The client has closed, or was lost."""


class _NodeGoneError(Exception):
    """The node takes nothing more; what it still sends says how the client ends."""


class BridgeLogs:
    """What bridges have to say, each kind within a bound."""

    def __init__(self, logger: logging.Logger) -> None:
        self.bad_streams = LimitedLog(logger)
        self.stalled = LimitedLog(logger)
        self.unanswered = LimitedLog(logger)


class Bridge:
    """A connection to a node that was opened for one client."""

    __slots__ = (
        "_cause",
        "_client",
        "_connection",
        "_counters",
        "_framing",
        "_is_client_gone",
        "_is_held",
        "_is_reset",
        "_logs",
        "_loop",
        "_node",
        "_settings",
        "_transport",
        "_was_held",
    )

    def __init__(
        self,
        node: NetAddress,
        connection: socket.socket,
        settings: FrontSettings,
        counters: FrontCounters,
        logs: BridgeLogs,
    ) -> None:
        """Carry bytes over a `connection` to `node`, once there is a client."""
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._connection = connection
        self._settings = settings
        self._counters = counters
        self._logs = logs
        self._framing = PacketFraming()
        self._is_held = self._was_held = False
        self._is_client_gone = self._is_reset = False
        self._cause = "client"
        """One of `ENDS`."""

    def abandon(self) -> None:
        """End the connection to the node; there has been no client."""
        self._connection.close()

    async def run(self, client: ServerConnection) -> str:
        """Carry packets until both sides have ended; nothing is open afterwards.

        Returns why: one of `ENDS`.
        """
        self._client, self._transport = client, client.transport
        to_node = asyncio.create_task(self._carry_to_node())
        to_client = asyncio.create_task(self._carry_to_client())
        try:
            await self._wait_for_end({to_node, to_client})
            if not to_client.done():
                await self._end_of_client(to_node, to_client)
            if to_client.done():
                to_node.cancel()
                await asyncio.wait({to_node})
                await self._close(to_client.result())
        finally:
            to_node.cancel()
            to_client.cancel()
            self._transport.abort()
            # The loop is to forget the connection's number before another one may have it.
            await asyncio.gather(to_node, to_client, return_exceptions=True)
            self._connection.close()
        return self._cause

    # -- what goes on ------------------------------------------------------------------------------

    async def _carry_to_node(self) -> _End:
        """Carry messages until the client breaks the rules; return how it is to be closed."""
        client, send, counters = self._client, self._loop.sock_sendall, self._counters
        while True:
            try:
                message = await client.recv()
            except ConnectionClosed:
                raise _ClientGoneError from None
            if isinstance(message, str):
                self._cause = "text_message"
                return _End(_UNSUPPORTED, "packets come in binary messages")
            self._is_held = self._was_held = True
            try:
                await send(self._connection, message)
            except OSError as error:
                # Behind the node's own end, which is there to be read, it is a broken pipe. All
                # else is told once: the other way would read an end as if it were the node's.
                self._is_reset = not isinstance(error, BrokenPipeError)
                raise _NodeGoneError from None
            self._is_held = False
            counters.messages_to_nodes += 1
            counters.bytes_to_nodes += len(message)

    async def _carry_to_client(self) -> _End:
        """Carry packets until the node has ended; return how the client is to be closed.

        A client that has gone changes nothing: the node is read to its end, which comes when it has
        taken everything.
        """
        rest = b""
        while True:
            try:
                data = await self._loop.sock_recv(self._connection, _READ_BYTES)
            except OSError:
                self._is_reset = True
                break
            if not data:
                break
            if self._is_client_gone:
                continue
            data = rest + data
            num_bytes, _, bad_size = self._framing.scan(data)
            if num_bytes:
                await self._send(data[:num_bytes])
            if bad_size is not None:
                self._logs.bad_streams.warn(
                    "the node %s sent a size of %d, which no packet has: is that the client port "
                    "of a node?",
                    self._node,
                    bad_size,
                )
                self._ended_by("node_stream")
                return _End(_INTERNAL_ERROR, "the node sent what is no packet")
            rest = data[num_bytes:]
        if self._is_reset:
            self._ended_by("node_reset")
            return _End(_INTERNAL_ERROR, "the node has reset the connection")
        if rest and not self._is_client_gone:
            self._ended_by("node_stream")
            return _End(_INTERNAL_ERROR, "the node ended within a packet")
        self._ended_by("node")
        return _End(_NORMAL, "")

    def _ended_by(self, cause: str) -> None:
        """The node is what ends the client, unless that one has gone already."""
        if not self._is_client_gone:
            self._cause = cause

    async def _send(self, message: bytes) -> None:
        try:
            if self._takes_now(len(message)):
                await self._client.send(message)
            else:
                await self._while_taken(self._client.send(message))
        except ConnectionClosed:
            self._is_client_gone = True
        if not self._is_client_gone:
            self._counters.messages_to_clients += 1
            self._counters.bytes_to_clients += len(message)

    def _takes_now(self, num_bytes: int) -> bool:
        """Return whether so many bytes can be sent without waiting for the client."""
        waiting = self._transport.get_write_buffer_size()
        return waiting + num_bytes + _FRAME_HEADER_BYTES_MAX <= WRITE_LIMITS[1]

    async def _while_taken(self, sending: Coroutine[Any, Any, None]) -> None:
        """Await `sending` for as long as the client takes what waits for it, however slowly.

        One that takes nothing is ended.
        """
        task = asyncio.create_task(sending)
        waiting = self._transport.get_write_buffer_size()
        try:
            while not (await asyncio.wait({task}, timeout=self._settings.stall_timeout_s))[0]:
                left = self._transport.get_write_buffer_size()
                if left >= waiting:
                    self._logs.stalled.warn(
                        "%s is ended: it has taken nothing for %g s",
                        peer_of(self._client),
                        self._settings.stall_timeout_s,
                    )
                    self._is_client_gone = True
                    self._cause = "stalled"
                    self._transport.abort()
                    return
                waiting = left
            task.result()
        finally:
            task.cancel()

    async def _wait_for_end(self, carrying: set[asyncio.Task[_End]]) -> None:
        """Return when one of `carrying` has ended. Until then, ask whether the client is there."""
        interval_s = self._settings.ping_interval_s or None
        while not await _wait_for_one(carrying, interval_s):
            if not self._takes_now(_FRAME_HEADER_BYTES_MAX):
                continue  # whether it takes that is watched already
            try:
                pong = asyncio.ensure_future(await self._client.ping())
            except ConnectionClosed:
                continue
            await self._wait_for_pong(pong, carrying)

    async def _wait_for_pong(
        self, pong: "asyncio.Future[float]", carrying: set[asyncio.Task[_End]]
    ) -> None:
        """Return when it is there, or one of `carrying` has ended; end a client that sends none.

        Behind messages that the node does not take, a pong is not read: that time does not count.
        """
        while not pong.done():
            self._was_held = self._is_held
            if await _wait_for_one({pong, *carrying}, self._settings.ping_timeout_s):
                return
            if not self._was_held:
                self._logs.unanswered.warn(
                    "%s is ended: it has not answered a ping for %g s",
                    peer_of(self._client),
                    self._settings.ping_timeout_s,
                )
                self._cause = "unanswered"
                self._transport.abort()
                return

    # -- ends --------------------------------------------------------------------------------------

    async def _end_of_client(
        self, to_node: "asyncio.Task[_End]", to_client: "asyncio.Task[_End]"
    ) -> None:
        """Pass the client's end on, behind all that it sent, and wait for the node's."""
        try:
            end = to_node.result()
        except _ClientGoneError:
            end = None
            self._is_client_gone = True
        except _NodeGoneError:
            await asyncio.wait({to_client})
            return
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the node has gone
        if end is not None:
            self._is_client_gone = True
            await self._close(end)
        await asyncio.wait({to_client}, timeout=_LINGER_S)

    async def _close(self, end: _End) -> None:
        """Close the client behind all that it was sent. What it still sends is thrown away."""
        discarding = asyncio.create_task(self._discard())
        try:
            await self._while_taken(self._client.close(end.code, end.reason))
        finally:
            discarding.cancel()

    async def _discard(self) -> None:
        try:
            while True:
                await self._client.recv()
        except ConnectionClosed:
            pass


async def _wait_for_one(futures: "set[Any]", timeout_s: float | None) -> bool:
    done, _ = await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def peer_of(client: ServerConnection) -> NetAddress | str:
    """Return the client's address, or for one that went too soon what stands for it in the log."""
    address = client.remote_address
    return NetAddress.from_sockaddr(address) if address else "a client"
