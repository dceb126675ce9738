"""Load balancers in front of a node, whose connections are those of clients elsewhere.

What comes from one of them begins with a header that tells the client's address. Until it is there
the connection is no session: it has no id, no shard and no place in any table, and no worker hears
of it. What counts by address counts by the client's.
"""

import ipaddress
import logging
from collections.abc import Callable, Sequence

from cluster.gateway.counters import Counters
from cluster.iocp import NetAddress
from cluster.shared.causes import Cause
from cluster.shared.log_limit import LogLimit

__all__ = ["HEADER_TIMEOUT_S", "Proxies"]

logger = logging.getLogger("cluster.gateway")

HEADER_TIMEOUT_S = 5.0
"""A connection whose header is not there after so long is ended. Balancers send it at once."""

_LINES_MAX, _LINES_INTERVAL_S = 5, 10.0

_MAPPED_BITS = 96
"""Of an IPv6 address that maps one of IPv4: those ahead of it."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """Those in `gateway.proxies`. For the dispatching thread."""

    __slots__ = ("_counters", "_lines", "_networks", "_now")

    def __init__(
        self, networks: Sequence[str], counters: Counters, now: Callable[[], float]
    ) -> None:
        """Expect headers from addresses in `networks`, as `10.0.0.5` and `10.0.0.0/8`."""
        self._networks: list[_Network] = [_read_network(text) for text in networks]
        self._counters = counters
        self._now = now
        self._lines = LogLimit(_LINES_MAX, _LINES_INTERVAL_S)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: NetAddress | None) -> bool:
        if not self._networks or address is None:
            return False
        host = ipaddress.ip_address(address.host.partition("%")[0])
        if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
            host = host.ipv4_mapped
        return any(host in network for network in self._networks)

    def refused(self, address: NetAddress | None, reason: str) -> None:
        """What came from the balancer at `address` is no header, for `reason`."""
        self._counters.add("proxy_headers_refused")
        now = self._now()
        more = self._lines.take_refused(now)
        if not self._lines.admit(now):
            return
        logger.warning(
            "%s is in gateway.proxies, and sent no header of the PROXY protocol: %s%s; have it "
            "send one, or take it out of the list",
            address,
            reason,
            f" ({more} more such)" if more else "",
        )

    def never_opened(self, cause: str) -> None:
        """A connection has ended for `cause` before it became a session."""
        if cause not in (Cause.BAD_SIZE, Cause.RATE_LIMITED):  # those are counted elsewhere
            self._counters.add("proxy_connections_unopened")


def _read_network(text: str) -> _Network:
    """Return the network `text`; one of mapped IPv4 addresses as what they are looked up as."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network
