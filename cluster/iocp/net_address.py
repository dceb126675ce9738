"""Addresses of the network: a host and a port, IPv4 or IPv6."""

import socket
from dataclasses import dataclass
from typing import Any

__all__ = ["NetAddress"]


@dataclass(frozen=True, slots=True)
class NetAddress:
    """A host (numeric address or name) and a TCP port, 0 to 65535."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not between 0 and 65535")

    @classmethod
    def parse(cls, text: str) -> "NetAddress":
        """Read `HOST:PORT` or `[IPV6]:PORT`; raises ValueError that shows `text`."""
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if not separator or not host or not port.isdecimal() or (":" in host and not bracketed):
            raise ValueError(f"{text!r} is not an address; give HOST:PORT or [IPV6]:PORT")
        return cls(host, int(port))

    @classmethod
    def from_sockaddr(cls, sockaddr: Any) -> "NetAddress":
        """Make an address of what the socket module gives for a peer or a local name."""
        # Past `__init__`: a frozen dataclass sets its fields by calls, 0.6 µs more for each
        # client, and the system gives no port that could be wrong.
        address = _new(cls)
        _set_host(address, sockaddr[0])
        _set_port(address, sockaddr[1])
        return address

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of a numeric host; names count as IPv4."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def resolve(self) -> "NetAddress":
        """Return the numeric form, looking a name up (which may block); raises OSError."""
        return self.resolve_all()[0]

    def resolve_all(self) -> "list[NetAddress]":
        """Return the numeric forms of a name, at least one, as `resolve` the first of them."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # of a name with an empty or too long part
            raise OSError(f"{self.host} is no name: {error}") from None
        hosts = dict.fromkeys(_numeric_host(entry[4]) for entry in found)
        return [NetAddress(host, self.port) for host in hosts]

    def __str__(self) -> str:
        host = self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _numeric_host(sockaddr: Any) -> str:
    """Return the host of what `getaddrinfo` found, with the interface of a link-local one."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == _PARTS_OF_IPV6 else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:  # it went meanwhile, or has a number only
        return f"{host}%{scope}"


_PARTS_OF_IPV6 = 4
"""Host, port, flow and scope."""

_new = object.__new__
_set_host = vars(NetAddress)["host"].__set__
_set_port = vars(NetAddress)["port"].__set__
