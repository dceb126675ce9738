"""What sockets need that cross a network: addresses, keys, and bounds for who is not trusted yet.

CURVE encrypts, and both sides know each other's long-term key: the worker the gateway's before it
says a word, the gateway those of its workers (`zmq.auth` certificates, `key_files`). It holds on
loopback as well, where any user of the machine could connect otherwise.
"""

from typing import Any

import zmq

from cluster.iocp import NetAddress
from cluster.shared.addresses import parse_listen
from cluster.shared.key_files import KeyPair

__all__ = [
    "ZAP_DOMAIN",
    "RemoteClient",
    "RemoteServer",
    "address_of",
    "lane_address",
    "parse_gateway",
]

ZAP_DOMAIN = b"workers"
"""Under which ZeroMQ asks whose key it is."""

HANDSHAKE_MS = 5_000
"""For who connects to prove who it is; then the connection is closed."""

RECONNECT_MAX_MS = 1_000
"""Pause between two attempts to connect, after it has doubled with each."""

_SCHEME = "tcp://"


class RemoteServer:
    """A `Curve` of the side that binds: takes who has one of the keys that are known."""

    __slots__ = ("_is_ipv6", "_keys", "_message_bytes_max", "_silence_ms")

    def __init__(
        self, keys: KeyPair, message_bytes_max: int, silence_s: float, *, is_ipv6: bool
    ) -> None:
        """Be known by `keys`. Longer messages than `message_bytes_max` end the connection.

        So does `silence_s` seconds without an answer to ZeroMQ's own heartbeats: a machine that
        has vanished leaves nothing behind.
        """
        self._keys = keys
        self._is_ipv6 = is_ipv6
        self._message_bytes_max = message_bytes_max
        self._silence_ms = _milliseconds(silence_s)

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Set the options of `socket`, before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, self._message_bytes_max)
        _set_network_options(socket, self._silence_ms, self._is_ipv6)


class RemoteClient:
    """A `Curve` of the side that connects: speaks to who has the secret of the gateway's key."""

    __slots__ = ("_gateway_key", "_is_ipv6", "_keys", "_silence_ms")

    def __init__(
        self, gateway_key: bytes, keys: KeyPair, silence_s: float, *, is_ipv6: bool
    ) -> None:
        """Be known by `keys`; `silence_s` as for `RemoteServer`."""
        self._gateway_key = gateway_key
        self._is_ipv6 = is_ipv6
        self._keys = keys
        self._silence_ms = _milliseconds(silence_s)

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Set the options of `socket`, before it is connected."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self._gateway_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        _set_network_options(socket, self._silence_ms, self._is_ipv6)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1_000))


def _set_network_options(socket: "zmq.Socket[Any]", silence_ms: int, is_ipv6: bool) -> None:
    socket.setsockopt(zmq.IPV6, int(is_ipv6))  # with it, IPv4 addresses are shown as mapped ones
    socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, silence_ms // 4))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)


def address_of(address: NetAddress, port_step: int = 0) -> str:
    """Return the ZeroMQ address for `address`, which is numeric, `port_step` ports further on.

    Port 0 is any free one.
    """
    if address.port:
        return f"{_SCHEME}{NetAddress(address.host, address.port + port_step)}"
    return f"{_SCHEME}{str(address).rpartition(':')[0]}:*"


def parse_gateway(text: str) -> NetAddress:
    """Return the address in `tcp://HOST:PORT`; raises ValueError with what is allowed."""
    expected = f"{_SCHEME}HOST:PORT, where the gateway's remote.listen is, for example "
    example = f"{expected}{_SCHEME}10.0.0.1:7900"
    if not text.startswith(_SCHEME):
        raise ValueError(example)
    try:
        host, port = parse_listen(text.removeprefix(_SCHEME))
    except ValueError:
        raise ValueError(example) from None
    if port == 0:
        raise ValueError(example)
    return NetAddress(host, port)


def lane_address(gateway: NetAddress, offered: str) -> str:
    """Return where the lanes are of a gateway that is at `gateway` and has bound them to `offered`.

    Only the port counts: a gateway may be known by another address than that which it binds.
    """
    return f"{_SCHEME}{NetAddress(gateway.host, int(offered.rpartition(':')[2]))}"
