"""The header by which a load balancer says whose connection it passes on: the PROXY protocol.

Versions 1 (a line of text) and 2 (binary), as HAProxy's document of it has them
(https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). Extensions (TLV) are passed over. No
I/O, and no end to it that the sender could choose.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from cluster.iocp import NetAddress

__all__ = ["HEADER_BYTES_MAX", "ProxyHeader", "ProxyHeaderError", "read_proxy_header"]

HEADER_BYTES_MAX = 4_096
"""The longest header that is read. Addresses take 52 bytes at most, extensions a few hundred."""

_LINE_BYTES_MAX = 107
"""The longest line of version 1, as its document counts."""

_SIGNATURE_1 = b"PROXY "
_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
_FRONT = Struct("!12sBBH")
_TCP_4, _TCP_6 = 0x11, 0x21
_ADDRESSES = {_TCP_4: Struct("!4s4sHH"), _TCP_6: Struct("!16s16sHH")}
_LOCAL, _PROXY = 0x20, 0x21
_FAMILY_MAX, _PROTOCOL_MAX = 3, 2
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_SHOWN_BYTES = 24


class ProxyHeaderError(Exception):
    """What came first is no header; the message says what it was."""


class ProxyHeader(NamedTuple):
    """A header of `num_bytes`, and the client's address; None: the connection's own counts."""

    num_bytes: int
    address: NetAddress | None
    is_local: bool = False
    """Whether the balancer has no client, and looks for itself whether somebody is there."""


def read_proxy_header(data: bytes | memoryview) -> ProxyHeader | None:
    """Read the header at the front of `data`; None while that is only a part of one.

    Raises `ProxyHeaderError` as soon as it cannot become one.
    """
    front = bytes(data[:HEADER_BYTES_MAX])
    if front.startswith(_SIGNATURE_2):
        return _read_binary(front)
    if front.startswith(_SIGNATURE_1):
        return _read_line(front)
    if _SIGNATURE_1.startswith(front) or _SIGNATURE_2.startswith(front):
        return None
    raise ProxyHeaderError(f"the connection begins with {_shown(front)}")


def _read_binary(front: bytes) -> ProxyHeader | None:
    if len(front) < _FRONT.size:
        return None
    _, command, family, length = _FRONT.unpack_from(front)
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"version and command are 0x{command:02x}, not 0x20 or 0x21")
    if command == _PROXY and (family >> 4 > _FAMILY_MAX or family & 0xF > _PROTOCOL_MAX):
        raise ProxyHeaderError(f"family and protocol are 0x{family:02x}, which is undefined")
    end = _FRONT.size + length
    if end > HEADER_BYTES_MAX:
        raise ProxyHeaderError(f"it has {end} bytes, more than {HEADER_BYTES_MAX}")
    addresses = _ADDRESSES.get(family) if command == _PROXY else None
    if addresses is not None and length < addresses.size:
        raise ProxyHeaderError(f"family 0x{family:02x} in {length} bytes, not {addresses.size}")
    if len(front) < end:
        return None
    if addresses is None:
        return ProxyHeader(end, None, command == _LOCAL)
    source, _, port, _ = addresses.unpack_from(front, _FRONT.size)
    host = IPv4Address(source) if family == _TCP_4 else IPv6Address(source)
    return ProxyHeader(end, NetAddress(_host_text(host), port))


def _read_line(front: bytes) -> ProxyHeader | None:
    end = front.find(b"\r\n", 0, _LINE_BYTES_MAX)
    if end < 0:
        if len(front) >= _LINE_BYTES_MAX:
            raise ProxyHeaderError(f"no end of the line in {_LINE_BYTES_MAX} bytes")
        return None
    line = front[:end]
    match line.split(b" "):
        case [_, b"UNKNOWN", *_]:
            return ProxyHeader(end + 2, None)
        case [_, b"TCP4" | b"TCP6" as family, source, destination, port, other_port]:
            kind = IPv4Address if family == b"TCP4" else IPv6Address
            host = _read_host(kind, source)
            has_all = host and _read_host(kind, destination) and _is_port(other_port)
            if has_all and _is_port(port):
                return ProxyHeader(end + 2, NetAddress(host, int(port)))
    raise ProxyHeaderError(f"the line is {_shown(line)}")


def _read_host(kind: type[IPv4Address] | type[IPv6Address], text: bytes) -> str:
    try:
        address = kind(text.decode("ascii"))
    except ValueError:
        return ""
    return "" if b"%" in text else _host_text(address)


def _host_text(address: IPv4Address | IPv6Address) -> str:
    """Return `address`; one of IPv4 that a socket for both kinds has mapped, as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _is_port(text: bytes) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65_535


def _shown(data: bytes) -> str:
    return repr(data[:_SHOWN_BYTES]) + ("..." if len(data) > _SHOWN_BYTES else "")
