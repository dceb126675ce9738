"""Writes the header by which a front tells nodes whose connection it passes on.

Version 2 of the PROXY protocol; `cluster/gateway/proxy_header.py` is what reads it.
"""

from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from cluster.iocp import NetAddress
from cluster.shared.networks import IpAddress, read_ip

__all__ = ["make_proxy_header"]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY = 0x21
_TCP_4, _TCP_6 = 0x11, 0x21
_FRONT = Struct("!12sBBH")
_PORTS = Struct("!HH")


def make_proxy_header(client: NetAddress, server: NetAddress) -> bytes:
    """Return the header for a connection from `client` to `server`, two numeric addresses."""
    hosts = [read_ip(client.host), read_ip(server.host)]
    if not all(isinstance(host, IPv4Address) for host in hosts):
        hosts = [_as_ipv6(host) for host in hosts]
    addresses = b"".join(host.packed for host in hosts) + _PORTS.pack(client.port, server.port)
    family = _TCP_4 if isinstance(hosts[0], IPv4Address) else _TCP_6
    return _FRONT.pack(_SIGNATURE, _PROXY, family, len(addresses)) + addresses


def _as_ipv6(host: IpAddress) -> IPv6Address:
    return host if isinstance(host, IPv6Address) else IPv6Address(f"::ffff:{host}")
