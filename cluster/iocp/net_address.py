"""Addresses of the network: a host and a port, IPv4 or IPv6."""

import socket
from typing import Any, Final

__all__ = ["PARTS_OF_IPV6", "NetAddress"]


_PORTS = range(65_536)


class NetAddress:
    """A host (numeric address or name) and a TCP port, 0 to 65535. A value, never changed.

    Kept as its text: each session has one for as long as it lives, and for nearly all of them
    nobody ever asks anything else.
    """

    __slots__ = ("_text",)

    def __init__(self, host: str, port: int) -> None:
        if port not in _PORTS:
            raise ValueError(f"port {port!r} is not between 0 and 65535")
        self._text = _text(host, port)

    @property
    def host(self) -> str:
        """The host, without brackets."""
        host = self._text.rpartition(":")[0]
        return host[1:-1] if ":" in host else host

    @property
    def port(self) -> int:
        """The port."""
        return int(self._text.rpartition(":")[2])

    @property
    def text(self) -> str:
        """`HOST:PORT` or `[IPV6]:PORT`; what `str` returns, for a third of its time."""
        return self._text

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
        # Past `__init__` and `_text`, for each client: no port of the system's could be wrong.
        address = _new(cls)
        host, port = sockaddr[0], sockaddr[1]
        is_ipv6 = ":" in host
        address._text = f"[{_numeric_host(sockaddr)}]:{port}" if is_ipv6 else f"{host}:{port}"
        return address

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """What the socket module takes for this address, with the number of the interface of a
        link-local one; raises OSError for an interface that there is not."""
        host, _, interface = self.host.partition("%")
        if not interface:
            return host, self.port
        # Of two parts alone it would take the interface for none, whatever the host says.
        scope = int(interface) if interface.isdecimal() else socket.if_nametoindex(interface)
        return host, self.port, 0, scope

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of a numeric host; names count as IPv4."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def resolve(self) -> "NetAddress":
        """Return the numeric form, looking a name up (which may block); raises OSError."""
        return self.resolve_all()[0]

    def resolve_all(self) -> "list[NetAddress]":
        """Return the numeric forms of a name, at least one, as `resolve` the first of them."""
        hosts = dict.fromkeys(map(_numeric_host, self.look_up()))
        return [NetAddress(host, self.port) for host in hosts]

    def look_up(self, family: int = 0) -> list[Any]:
        """Return what the system finds for this address, at least one, as the socket module takes
        it, of one address family or of any; may block, raises OSError."""
        host = self.host
        literal, _, interface = host.partition("%")
        if interface:  # of whose names Windows knows none here, but all numbers
            host = f"{literal}%{self.sockaddr[-1]}"
        try:
            found = socket.getaddrinfo(host, self.port, family=family, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # of a name with an empty or too long part
            raise OSError(f"{self.host} is no name: {error}") from None
        return [entry[4] for entry in found]

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"NetAddress(host={self.host!r}, port={self.port})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, NetAddress) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _numeric_host(sockaddr: Any) -> str:
    """Return the host of what `getaddrinfo` found, with the interface of a link-local one."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == PARTS_OF_IPV6 else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:  # it went meanwhile, or has a number only
        return f"{host}%{scope}"


PARTS_OF_IPV6: Final = 4
"""Host, port, flow and scope."""

_new = object.__new__
