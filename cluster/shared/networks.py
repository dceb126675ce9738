"""Networks that a setting lists, and which addresses are in them. No I/O."""

import ipaddress
from collections.abc import Iterable

__all__ = ["IpAddress", "Networks", "check_network", "read_ip"]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAPPED_BITS = 96
"""Of an IPv6 address that maps one of IPv4: those ahead of it."""


class Networks:
    """Some networks. Immutable; false without any."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Of addresses and networks, as `10.0.0.5` and `10.0.0.0/8`; raises ValueError."""
        self._networks = [_read_network(text) for text in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, host: IpAddress) -> bool:
        return any(host in network for network in self._networks)


def check_network(text: str) -> str:
    """Return `text`, an address or a network; raises ValueError with what is allowed."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            "an address or a network, for example 10.0.0.5, 10.0.0.0/8 or fd00::/8"
        ) from None
    return text


def read_ip(host: str) -> IpAddress:
    """Return a numeric `host`, without its interface; one of IPv4 that IPv6 maps is that of IPv4.

    Raises ValueError.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _read_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network `text`; one of mapped IPv4 addresses as what they are looked up as."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network
