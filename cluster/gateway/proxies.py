"""Load balancers in front of a node, whose connections are those of clients elsewhere.

What comes from one of them begins with a header that tells the client's address. Until it is there
the connection is no session: it has no id, no shard and no place in any table, and no worker hears
of it. What counts by address counts by the client's.
"""

import logging
from collections.abc import Callable, Sequence

from cluster.gateway.counters import Counters
from cluster.iocp import NetAddress
from cluster.shared.causes import Cause
from cluster.shared.limited_log import LimitedLog
from cluster.shared.networks import Networks, read_ip

__all__ = ["HEADER_TIMEOUT_S", "Proxies"]

logger = logging.getLogger("cluster.gateway")

HEADER_TIMEOUT_S = 5.0
"""A connection whose header is not there after so long is ended. Balancers send it at once."""


class Proxies:
    """Those in `gateway.proxies`. For the dispatching thread."""

    __slots__ = ("_counters", "_log", "_networks")

    def __init__(
        self, networks: Sequence[str], counters: Counters, now: Callable[[], float]
    ) -> None:
        """Expect headers from addresses in `networks`, as `10.0.0.5` and `10.0.0.0/8`."""
        self._networks = Networks(networks)
        self._counters = counters
        self._log = LimitedLog(logger, now)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: NetAddress | None) -> bool:
        if not self._networks or address is None:
            return False
        return read_ip(address.host) in self._networks

    def refused(self, address: NetAddress | None, reason: str) -> None:
        """What came from the balancer at `address` is no header, for `reason`."""
        self._counters.add("proxy_headers_refused")
        self._log.warn(
            "%s is in gateway.proxies, and sent no header of the PROXY protocol: %s; have it send "
            "one, or take it out of the list",
            address,
            reason,
        )

    def never_opened(self, cause: str) -> None:
        """A connection has ended for `cause` before it became a session."""
        if cause not in (Cause.BAD_SIZE, Cause.RATE_LIMITED):  # those are counted elsewhere
            self._counters.add("proxy_connections_unopened")
