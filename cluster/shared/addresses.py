"""Addresses as people write them, in a configuration and behind flags.

Nothing is looked up: what is no address, and what is none here, is told by its shape.
"""

import ipaddress
import re

from cluster.shared.shard_ids import NODE_ID_MAX

__all__ = ["parse_connect", "parse_listen", "parse_node", "parse_store"]


def parse_listen(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`, with an IPv6 address in brackets, into host and port.

    The brackets are not part of the host. The host may be a name, which is not looked up. Raises
    `ValueError` with what is allowed.
    """
    host, _, port = text.rpartition(":")
    if not (_PORT.fullmatch(port) and int(port) <= 65_535):
        raise ValueError("HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:7777")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6_host(host[1:-1]), int(port)
    if ":" in host:
        raise ValueError("HOST:PORT with an IPv6 address in brackets, for example [::1]:7777")
    if _DIGITS_AND_DOTS.fullmatch(host):
        return _ipv4_host(host), int(port)
    if not _HOST_NAME.fullmatch(host):
        raise ValueError("HOST:PORT with an address or a name as host, for example localhost:7777")
    return host, int(port)


def parse_connect(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` as `parse_listen` does, but for port 0: nobody can be called there."""
    host, port = parse_listen(text)
    if port == 0:
        raise ValueError("HOST:PORT with a port from 1 to 65535, for example 127.0.0.1:7777")
    return host, port


def parse_node(text: str) -> tuple[int, str, int]:
    """Split `ID@HOST:PORT` into the id of a node, host and port.

    Raises `ValueError` with what is allowed.
    """
    number, separator, address = text.partition("@")
    if not (separator and _NODE.fullmatch(number) and 1 <= int(number) <= NODE_ID_MAX):
        raise ValueError("ID@HOST:PORT with an id from 1 to 65535, for example 2@10.0.0.2:7800")
    host, port = parse_listen(address)
    if port == 0:
        raise ValueError("ID@HOST:PORT with a port from 1 to 65535, where that node listens")
    return int(number), host, port


def parse_store(text: str) -> tuple[str, str, int]:
    """Split `http://HOST:PORT` into scheme, host and port; raises `ValueError`."""
    scheme, separator, rest = text.partition("://")
    expected = "http://HOST:PORT or https://HOST:PORT, for example http://10.0.0.9:2379"
    if not separator or scheme not in ("http", "https"):
        raise ValueError(expected)
    try:
        host, port = parse_listen(rest.removesuffix("/"))
    except ValueError:
        raise ValueError(expected) from None
    if port == 0:
        raise ValueError(expected)
    return scheme, host, port


_NODE = re.compile(r"[0-9]{1,5}")
_PORT = re.compile(r"[0-9]{1,5}")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_IPV6_SCOPE = re.compile(r"[A-Za-z0-9_.-]*")


def _ipv6_host(host: str) -> str:
    address, _, scope = host.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        scope = " "
    if not _IPV6_SCOPE.fullmatch(scope):
        raise ValueError("[ADDRESS]:PORT with an IPv6 address, for example [::1]:7777")
    return host


def _ipv4_host(host: str) -> str:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError("HOST:PORT with four numbers up to 255 as an IPv4 address") from None
    return host
