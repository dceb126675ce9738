"""The process of a front: what it needs of the machine, and what it serves."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from ipaddress import ip_address

from cluster.iocp import NetAddress
from cluster.shared.config import ConfigError
from cluster.shared.process import make_room_for_descriptors, raise_descriptor_limit
from cluster.websocket.certificate import make_tls_context
from cluster.websocket.front import BACKLOG, HANDSHAKES_MAX, Front
from cluster.websocket.front_counters import FrontCounters
from cluster.websocket.front_settings import FrontSettings
from cluster.websocket.limited_records import LimitedRecords
from cluster.websocket.reasons import reason_of

__all__ = ["serve_websocket"]

logger = logging.getLogger("cluster.websocket")

_OWN_DESCRIPTORS = 64


def serve_websocket(settings: FrontSettings, announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code, 0.

    `announce` is given the line that says where, once it listens. SIGHUP has the certificate read
    again, for connections that come from then on. Raises ConfigError for a certificate that cannot
    be used, for addresses that cannot be bound, and for too few open files; ModuleNotFoundError for
    `metrics` without the library. Main thread only.
    """
    context = None
    if settings.certificate is not None:
        context = make_tls_context(settings.certificate, settings.key)
    _check_source(settings)
    connections_max = _cap_connections(settings.connections_max)
    listener = _listen(settings.listen)
    for name in ("websockets.server", "asyncio"):
        library = logging.getLogger(name)
        library.setLevel(logging.WARNING)
        library.addFilter(LimitedRecords())
    counters = FrontCounters(settings.nodes)
    with listener, _metrics(settings, counters) as metrics_line:
        front = Front(settings, connections_max, counters)

        def announce_both(line: str) -> None:
            announce(line)
            if metrics_line is not None:
                announce(metrics_line)

        asyncio.run(front.serve(listener, context, announce_both))
    return 0


def _metrics(
    settings: FrontSettings, counters: FrontCounters
) -> AbstractContextManager[str | None]:
    if settings.metrics is None:
        return nullcontext()
    from cluster.metrics.metrics_server import metrics_served
    from cluster.websocket.front_metrics import front_collectors

    return metrics_served(front_collectors(counters), settings.metrics, "--metrics")


def _check_source(settings: FrontSettings) -> None:
    if settings.source is None:
        return
    is_ipv6 = ip_address(settings.source).version == 6
    try:
        with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET) as probe:
            probe.bind((settings.source, 0))
    except OSError as error:
        raise ConfigError(
            f"--source: {settings.source!r} is no address of this machine: {reason_of(error)}"
        ) from None


def _cap_connections(wanted: int) -> int:
    """Raise the limit of open files for so many clients; return how many it allows."""
    reserved = HANDSHAKES_MAX + _OWN_DESCRIPTORS
    limit = raise_descriptor_limit(2 * wanted + reserved)
    make_room_for_descriptors(min(limit, 2 * wanted + reserved))
    allowed = (limit - reserved) // 2
    if allowed >= wanted:
        return wanted
    remedy = "raise the limit (ulimit -Hn, LimitNOFILE)"
    needs = f"each takes two open files, {reserved} are for others, and {limit} are allowed here"
    if allowed < 1:
        raise ConfigError(f"--connections-max: {wanted}: {needs}: {remedy}")
    logger.warning("--connections-max %d is capped at %d: %s; %s", wanted, allowed, needs, remedy)
    return allowed


def _listen(listen: NetAddress) -> socket.socket:
    try:
        address = listen.resolve()
        return socket.create_server(address.sockaddr, family=address.family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"--listen: cannot listen at {listen}: {reason_of(error)}") from None
