"""Accepts WebSocket clients until it is told to stop."""

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.protocol import State

from cluster.iocp import NetAddress
from cluster.iocp.wake_pair import WakePair
from cluster.shared.config import ConfigError
from cluster.shared.limited_log import LimitedLog
from cluster.shared.networks import read_ip
from cluster.shared.signal_handling import handle_signal
from cluster.websocket.bridge import WRITE_LIMITS, Bridge, BridgeLogs, peer_of
from cluster.websocket.certificate import load_certificate
from cluster.websocket.client_connection import CLOSE_TIMEOUT_S, connections_of
from cluster.websocket.door import Door
from cluster.websocket.forwarded import client_of
from cluster.websocket.front_counters import REFUSALS, FrontCounters
from cluster.websocket.front_settings import FrontSettings
from cluster.websocket.node_connection import connect_node
from cluster.websocket.node_turns import NodeTurns
from cluster.websocket.proxy_header import make_proxy_header
from cluster.websocket.reasons import reason_of

__all__ = ["BACKLOG", "HANDSHAKES_MAX", "Front"]

logger = logging.getLogger("cluster.websocket")

BACKLOG = 1_024

HANDSHAKES_MAX = 512
"""Connections that have not become clients yet, TLS or not, beside `connections_max`."""

_CONNECT_TIMEOUT_S = 3.0
"""For one node: so that a handshake, which has longer, gets to the next one."""

_STOP_TIMEOUT_S = 5.0
"""All clients together have so long, once the front is told to stop."""

_FRAMES_MAX: Final = 4
"""Messages, or parts of them, that may wait for a node besides the one that is being passed on."""


class Front:
    """Every client there is, from its first byte. The event loop's thread only."""

    def __init__(
        self, settings: FrontSettings, connections_max: int, counters: FrontCounters
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._connections_max = connections_max
        self._nodes = NodeTurns(settings.nodes)
        self._entered = 0
        """How many connections are open, from before their TLS handshake."""
        self._unmade: dict[int, NetAddress] = {}
        """By descriptor, those that the event loop has not told of: in their TLS handshake."""
        self._accepted: set[ServerConnection] = set()
        self._opened: dict[ServerConnection, Bridge] = {}
        """Connections to nodes whose clients are at the end of their handshake."""
        self._taken = 0
        """How many of `connections_max` there are, with those that are being opened."""
        self._fates: dict[ServerConnection, str] = {}
        """Why connections are refused; of clients nothing, or why they are cut off."""
        self._refused = LimitedLog(logger)
        self._strangers = LimitedLog(logger)
        self._no_node = LimitedLog(logger)
        self._no_tls = LimitedLog(logger)
        self._flooding = LimitedLog(logger)
        self._failed = LimitedLog(logger)
        self._bridge_logs = BridgeLogs(logger)

    async def serve(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        announce: Callable[[str], None],
    ) -> None:
        """Accept clients from `listener` until a signal says that it is over."""
        loop = asyncio.get_running_loop()
        bound = NetAddress.from_sockaddr(listener.getsockname())
        is_over = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            handle_signal(number, lambda *_: loop.call_soon_threadsafe(is_over.set))
        if context is not None and hasattr(signal, "SIGHUP"):
            handle_signal(
                signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._read_again, context)
            )
        door = Door(listener, self)
        server = await serve(
            self._carry,
            sock=door,
            backlog=BACKLOG,
            ssl=context,
            compression=None,
            process_request=self._check,
            process_response=self._open,
            server_header=None,
            open_timeout=self._settings.handshake_timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
            max_size=self._settings.message_bytes_max,
            max_queue=_FRAMES_MAX,
            write_limit=WRITE_LIMITS,
            create_connection=connections_of(self),
        )
        self._warn_of_origins(bound)
        with _woken_by_signals(loop):
            announce(
                f"websocket {'ws' if context is None else 'wss'}://{bound}{self._settings.path}"
            )
            await is_over.wait()
        door.shut()
        await self._stop(server)

    def _warn_of_origins(self, bound: NetAddress) -> None:
        if not read_ip(bound.host).is_loopback and not self._settings.origins.are_listed:
            logger.warning(
                "without --origin each page is admitted whose host is the one that it connects to; "
                "DNS can make that so for pages of others (rebinding): name yours by --origin"
            )

    async def _stop(self, server: Server) -> None:
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):  # the end is bounded, and behind it there is no loop
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        # Those who came at the last moment become connections: Python 3.13 complains of each that
        # is none yet when its server has closed.
        await asyncio.sleep(0)
        server.close()  # each client with 1001
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await server.wait_closed()
        except TimeoutError:
            if self._accepted:
                logger.warning("%d connections are cut off", len(self._accepted))
            for connection in self._accepted:
                connection.transport.abort()
        counters = self._counters
        refused = sum(counters.refused.values())
        logger.info("stopped: %d clients were served, %d refused", counters.clients, refused)

    def _read_again(self, context: ssl.SSLContext) -> None:
        certificate = self._settings.certificate
        assert certificate is not None
        try:
            load_certificate(context, certificate, self._settings.key)
        except ConfigError as error:
            logger.warning("the certificate stays what it was: %s", error)
        else:
            logger.info("the certificate was read again")

    # -- connections that come (`DoorKeeper`) ------------------------------------------------------

    def admits(self, peer: NetAddress) -> bool:
        """Whether there is room for one more, be it in its TLS handshake."""
        if self._entered < self._connections_max + HANDSHAKES_MAX:
            return True
        self._refuse_full(peer, self._entered)
        self._counters.refused["full"] += 1
        return False

    def entered(self, fd: int, peer: NetAddress) -> None:
        """A connection is open; `accepted` or `left` is next."""
        self._entered += 1
        self._unmade[fd] = peer
        self._count_connections()

    def left(self, fd: int) -> None:
        """A connection is about to be closed, at whatever point of its life."""
        self._entered -= 1
        self._count_connections()
        peer = self._unmade.pop(fd, None)
        if peer is not None:
            self._counters.refused["tls"] += 1
            self._no_tls.warn(
                "%s is ended: it has completed no TLS handshake (--handshake-timeout is %g s)",
                peer,
                self._settings.handshake_timeout_s,
            )

    # -- the life of a connection ------------------------------------------------------------------

    def client_of(self, peer: NetAddress, request: Request) -> NetAddress:
        """Return whose `request` it is that came from `peer`."""
        forwarded = request.headers.get_all("X-Forwarded-For")
        return client_of(peer, forwarded, self._settings.trusted_proxies)

    def accepted(self, connection: ServerConnection) -> None:
        """A connection has come, and completed its TLS handshake; it may be one too many still,
        where no `Door` has counted it."""
        self._unmade.pop(connection.transport.get_extra_info("socket").fileno(), None)
        self._accepted.add(connection)
        self._count_connections()
        if len(self._accepted) > self._connections_max + HANDSHAKES_MAX:
            self._refuse_full(peer_of(connection), len(self._accepted))
            self._fates[connection] = "full"
            connection.transport.abort()

    def lost(self, connection: ServerConnection) -> None:
        """A connection has gone, at whatever point of its life."""
        self._accepted.discard(connection)
        self._count_connections()
        fate = self._fates.get(connection)
        if fate in (None, *REFUSALS):
            self._fates.pop(connection, None)
            self._counters.refused[fate or "handshake"] += 1
        bridge = self._opened.pop(connection, None)
        if bridge is not None:
            bridge.abandon()
            self._taken -= 1

    def flooded(self, connection: ServerConnection) -> None:
        """A client sends pings, and takes no answers; it is ended."""
        self._flooding.warn("%s is ended: it takes no answers to its pings", peer_of(connection))
        if connection in self._fates:
            self._fates[connection] = "flooded"
        connection.transport.abort()

    def _count_connections(self) -> None:
        self._counters.connections = max(self._entered, len(self._accepted))

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a request before anything is done for it; None: it may go on."""
        if connection not in self._accepted:
            return None  # lost right behind its request, and counted; so `_open` does nothing
        if request.path.partition("?")[0] != self._settings.path:
            self._fates[connection] = "request"
            return connection.respond(HTTPStatus.NOT_FOUND, "Nothing is here.\n")
        origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
        if len(origins) > 1 or len(hosts) > 1:
            self._fates[connection] = "request"
            return connection.respond(HTTPStatus.BAD_REQUEST, "One Origin and one Host.\n")
        origin = origins[0] if origins else None
        if not self._settings.origins.admit(origin, hosts[0] if hosts else None):
            self._strangers.warn(
                "%s is refused: it is a page of %.200r; to admit its kind pass --origin",
                peer_of(connection),
                origin,
            )
            self._fates[connection] = "origin"
            return connection.respond(HTTPStatus.FORBIDDEN, "Not for pages of this origin.\n")
        return None

    async def _open(
        self, connection: ServerConnection, request: Request, response: Response
    ) -> Response | None:
        """Connect a client, whose handshake is in order, to a node; it is refused if none takes it.

        None: the handshake is completed, or its client was lost before it began.
        """
        if connection not in self._accepted:
            return None
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._fates.setdefault(connection, "request")
            return None
        if self._taken >= self._connections_max:
            self._refuse_full(peer_of(connection), self._counters.connections)
            self._fates[connection] = "full"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "Full.\n")
        self._taken += 1
        bridge = None
        try:
            bridge = await self._connect(connection)
            if connection.state is not State.CONNECTING:  # it was lost meanwhile, and counted
                if bridge is not None:
                    bridge.abandon()
                    bridge = None
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "Too late.\n")
            if bridge is None:
                self._fates[connection] = "node"
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "No node is there.\n")
            self._opened[connection] = bridge
            return None
        finally:
            if bridge is None:
                self._taken -= 1

    async def _connect(self, connection: ServerConnection) -> Bridge | None:
        loop = asyncio.get_running_loop()
        header = b""
        if self._settings.proxy_protocol:
            header = make_proxy_header(
                NetAddress.from_sockaddr(connection.remote_address),
                NetAddress.from_sockaddr(connection.local_address),
            )
        reason = ""
        for node in self._nodes.take(loop.time()):
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    to_node = await connect_node(node, self._settings.source, header)
            except OSError as error:  # TimeoutError as well, which has no text
                self._nodes.refused(node, loop.time())
                self._counters.unreachable[node] += 1
                reason = f"{node}: {reason_of(error)}"
                continue
            self._nodes.took(node)
            return Bridge(node, to_node, self._settings, self._counters, self._bridge_logs)
        self._no_node.warn("%s is refused: no node takes it (%s)", peer_of(connection), reason)
        return None

    async def _carry(self, connection: ServerConnection) -> None:
        bridge = self._opened.pop(connection)
        self._fates[connection] = ""
        self._counters.clients += 1
        cause = "failed"
        try:
            cause = await bridge.run(connection)
        except Exception:
            self._failed.warn("%s is ended by an error", peer_of(connection), has_traceback=True)
        finally:
            self._taken -= 1
            self._counters.ended[self._fates.pop(connection, "") or cause] += 1

    def _refuse_full(self, peer: NetAddress | str, count: int) -> None:
        """Tell that `peer` is one too many, with `count` connections in all."""
        self._refused.warn(
            "%s is refused: there are %d clients and %d connections that are none yet, as many as "
            "--connections-max allows",
            peer,
            self._taken,
            count - self._taken,
        )


@contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have each signal end the wait of `loop`, whenever and in whichever thread it comes.

    One that comes just ahead of the wait does not end it, nor does one in another thread; and the
    handler runs behind the wait. The loop of Windows sees to that itself.
    """
    if sys.platform != "win32":
        wake_pair = WakePair()
        loop.add_reader(wake_pair.fileno(), wake_pair.drain)
        before = signal.set_wakeup_fd(wake_pair.wake_fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(wake_pair.fileno())
            wake_pair.close()
    else:
        yield
