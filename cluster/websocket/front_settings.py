"""What a front is told: where it listens, for whom, and which bounds it keeps."""

from dataclasses import dataclass
from pathlib import Path

from cluster.iocp import NetAddress
from cluster.shared.networks import Networks
from cluster.websocket.origins import Origins

__all__ = ["FrontSettings"]


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """A front between browsers and `nodes`."""

    listen: NetAddress
    nodes: tuple[NetAddress, ...]
    path: str
    origins: Origins
    proxy_protocol: bool
    """Whether nodes are told the client's address; they have to expect it."""
    trusted_proxies: Networks
    """HTTP proxies whose `X-Forwarded-For` is believed."""
    source: str | None
    """The local address from which nodes are called."""
    certificate: Path | None
    """TLS with this file, or none; `key` is in it too if it is None."""
    key: Path | None
    connections_max: int
    message_bytes_max: int
    """Of one message of a client."""
    ping_interval_s: float
    """0: no pings."""
    ping_timeout_s: float
    handshake_timeout_s: float
    """For the whole handshake, with the connection to a node, and for that of TLS."""
    stall_timeout_s: float
    """A client that takes nothing of what waits for it for so long is ended."""
    metrics: NetAddress | None = None
    """Where metrics are served, if anywhere."""
