"""Who a client is behind HTTP proxies: what of `X-Forwarded-For` is believed. No I/O.

Each proxy appends the address that it was called from. So the list is read from its end: what a
trusted proxy appended is true, and what stands before the first address that is none of theirs was
written by that client.
"""

from collections.abc import Iterator, Sequence

from cluster.iocp import NetAddress
from cluster.shared.networks import IpAddress, Networks, read_ip

__all__ = ["client_of"]


def client_of(peer: NetAddress, forwarded: Sequence[str], proxies: Networks) -> NetAddress:
    """Return the address of the client that `peer` connects for, itself if it is no proxy.

    `forwarded` is what the request has as `X-Forwarded-For`, a line each. The port is 0 where no
    proxy tells it. If somebody trusted passes on what is no address, that proxy is the client.
    """
    client, host = peer, read_ip(peer.host)
    for hop in _from_the_end(forwarded):
        if host not in proxies:
            break
        try:
            host, port = _read_hop(hop.strip())
        except ValueError:
            break
        client = NetAddress(str(host), port)
    return client


def _from_the_end(lines: Sequence[str]) -> Iterator[str]:
    """Return the hops of all lines, and take no line apart that nobody gets to: all of them may be
    long, and from anybody."""
    for line in reversed(lines):
        yield from reversed(line.split(","))


def _read_hop(hop: str) -> tuple[IpAddress, int]:
    """Return address and port of `hop`: `1.2.3.4`, `fd00::1`, or `[fd00::1]`, or with a port."""
    if "%" in hop:
        raise ValueError("an interface of somebody else's machine")
    if hop.count(":") == 1 or (hop.startswith("[") and not hop.endswith("]")):
        address = NetAddress.parse(hop)
        return read_ip(address.host), address.port
    return read_ip(hop[1:-1] if hop.startswith("[") else hop), 0
