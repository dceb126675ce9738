"""Who may connect: connections of an address at one time, and new ones in a second.

An IPv6 address counts by its first 64 bits, because a single customer of a provider has all of the
rest; one that maps an IPv4 address counts as that. No I/O, no clock.
"""

import ipaddress
from collections import OrderedDict

from cluster.gateway.rate_limit import RateLimit

__all__ = ["ADDRESSES_MAX", "Admission", "address_key"]

ADDRESSES_MAX = 65_536
"""Addresses whose rate is remembered. Beyond that the one that connected longest ago is forgotten,
and may have a burst too many."""


class Admission:
    """Admits connections by their address. For one thread."""

    __slots__ = (
        "_all",
        "_all_full_at",
        "_by_address",
        "_connected",
        "_connections_max",
        "_full_at",
    )

    def __init__(
        self,
        connections_max: int = 0,
        by_address: RateLimit | None = None,
        in_all: RateLimit | None = None,
    ) -> None:
        """Admit `connections_max` of an address at one time (0: any number), and new ones by the
        two rates."""
        self._connections_max = connections_max
        self._by_address = by_address
        self._all = in_all
        self._all_full_at = 0.0
        self._connected: dict[str, int] = {}
        self._full_at: OrderedDict[str, float] = OrderedDict()  # a dict looks long for its first
        """By address, when its bucket is full again, in the order of the last connection."""

    def refusal(self, host: str, now: float) -> str | None:
        """Count a new connection from `host`; or return, and count nothing, the limit it is past.

        One that was admitted is to be given to `release` at its end. `now` is in seconds.
        """
        key = address_key(host)
        if self._connections_max and self._connected.get(key, 0) >= self._connections_max:
            return "connections_per_address"
        mine = everybody = 0.0
        if self._by_address is not None:
            mine = self._by_address.spend(self._full_at.get(key, 0.0), 1, now)
            if self._by_address.is_overdrawn(mine, now):
                return "accepts_per_address_per_s"
        if self._all is not None:
            everybody = self._all.spend(self._all_full_at, 1, now)
            if self._all.is_overdrawn(everybody, now):
                return "accepts_per_s"
        if self._connections_max:
            self._connected[key] = self._connected.get(key, 0) + 1
        if self._by_address is not None:
            self._remember(key, mine, now)
        self._all_full_at = everybody
        return None

    def release(self, host: str) -> None:
        """A connection from `host` that was admitted has ended."""
        if not self._connections_max:
            return
        key = address_key(host)
        left = self._connected[key] - 1
        if left:
            self._connected[key] = left
        else:
            del self._connected[key]

    def _remember(self, key: str, full_at: float, now: float) -> None:
        full = self._full_at
        full[key] = full_at
        full.move_to_end(key)
        # Two for each one that comes: those whose bucket is full again go before the table grows.
        for _ in range(2):
            oldest = next(iter(full))
            if full[oldest] > now and len(full) <= ADDRESSES_MAX:
                break
            del full[oldest]

    @property
    def address_count(self) -> int:
        """Addresses that are remembered."""
        return len(self._connected.keys() | self._full_at.keys())


def address_key(host: str) -> str:
    """Return what `host`, a numeric address, is counted by."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()
