"""What `[limits]` comes to in a gateway: deadlines, rates, admission, and the session that obeys.

A gateway whose clients are limited by nothing that happens on each recv has plain sessions: their
path pays nothing for the limits. Parts of packets have a deadline there as well, because a part
that is left over is off that path.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.gateway.admission import Admission
from cluster.gateway.counters import Counters
from cluster.gateway.deadlines import Deadlines
from cluster.gateway.other_protocols import OtherProtocols
from cluster.gateway.proxies import Proxies
from cluster.gateway.rate_limit import UNLIMITED, RateLimit
from cluster.iocp import IocpCore, NetAddress
from cluster.shared.causes import Cause
from cluster.shared.config import LimitsConfig

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Limits"]


class Limits:
    """The limits of one gateway. For the dispatching thread."""

    __slots__ = (
        "_admission",
        "_core",
        "byte_rate",
        "counters",
        "deadlines",
        "has_rates",
        "needs_acceptance",
        "other_protocols",
        "packet_rate",
        "proxies",
        "watches_recvs",
    )

    def __init__(
        self,
        core: IocpCore,
        config: LimitsConfig,
        max_packet_bytes: int,
        counters: Counters,
        proxies: Sequence[str] = (),
    ) -> None:
        """Keep the limits of `config` with the clock and the timers of `core`.

        `proxies` are the networks of load balancers.
        """
        self._core = core
        self.counters = counters
        self.deadlines = Deadlines(core, config)
        self.packet_rate = _rate(config.packets_per_s, config.packets_burst) or UNLIMITED
        self.byte_rate = (
            _rate(config.bytes_per_s, config.bytes_burst, max_packet_bytes) or UNLIMITED
        )
        self.has_rates = self.packet_rate is not UNLIMITED or self.byte_rate is not UNLIMITED
        """Whether a session has to pay for what it sends."""
        self._admission = _admission(config)
        self.needs_acceptance = config.auth_timeout_s > 0
        """Whether a session's packets wait until it is accepted, but for public ones."""
        self.proxies = Proxies(proxies, counters, core.now)
        self.other_protocols = OtherProtocols(counters)
        self.watches_recvs = bool(
            config.idle_timeout_s or self.needs_acceptance or self.has_rates or self.proxies
        )
        """Whether a session has to look at each recv."""

    def admits(self, address: NetAddress | None) -> bool:
        """Count a new connection from `address`; or, past a limit, only its refusal: False."""
        if self._admission is None or address is None:
            return True
        passed = self._admission.refusal(address.host, self._core.batch_now)
        if passed is None:
            return True
        self.counters.add(f"rate_limited_{passed}")
        self.counters.add("connections_refused")
        return False

    def awaits_header(self, session: "GatewaySession") -> bool:
        """Return whether a connection comes from a load balancer; its time for a header begins."""
        if session.address not in self.proxies:
            return False
        session.opened_at = self._core.batch_now
        session.is_accepted = False
        self.deadlines.awaits_header(session)
        return True

    def never_opened(self, session: "GatewaySession", cause: str) -> None:
        """A connection that awaited a header has ended for `cause`."""
        self.deadlines.forget(session)
        if self.proxies:
            self.proxies.never_opened(cause)

    def begin(self, session: "GatewaySession") -> None:
        """The times of a session begin: it is connected."""
        session.opened_at = session.reading_since = session.received_at = self._core.batch_now
        session.is_accepted = not self.needs_acceptance
        if self.watches_recvs:
            self.deadlines.opened(session)

    def exceeded(self, session: "GatewaySession", what: str) -> None:
        """End a session that is past the rate of `what`."""
        self.counters.add(f"rate_limited_{what}")
        session.abort(Cause.RATE_LIMITED)

    def release(self, session: "GatewaySession") -> None:
        """A session whose connection was admitted has ended."""
        self.deadlines.forget(session)
        if self._admission is not None and session.address is not None:
            self._admission.release(session.address.host)


def _rate(per_s: int, burst: int, burst_min: int = 1) -> RateLimit | None:
    return RateLimit(per_s, burst or max(per_s, burst_min)) if per_s else None


def _admission(config: LimitsConfig) -> Admission | None:
    by_address = _rate(config.accepts_per_address_per_s, config.accepts_per_address_burst)
    in_all = _rate(config.accepts_per_s, config.accepts_burst)
    if not config.connections_per_address and by_address is None and in_all is None:
        return None
    return Admission(config.connections_per_address, by_address, in_all)
