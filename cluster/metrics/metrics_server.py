"""Serves metrics over HTTP, in a thread of its own that waits for who asks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from cluster.iocp import NetAddress
from cluster.shared.config import ConfigError

__all__ = ["metrics_served"]


@contextmanager
def metrics_served(collectors: Iterable[Collector], listen: NetAddress, flag: str) -> Iterator[str]:
    """Serve what `collectors` have at `listen` meanwhile; gives the line that says where.

    Raises ConfigError, which names `flag`, when it cannot listen there.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server, _ = start_http_server(listen.port, listen.host, registry)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{flag}: cannot listen at {listen}: {reason}") from None
    try:
        yield f"metrics http://{NetAddress.from_sockaddr(server.server_address)}/metrics"
    finally:
        server.shutdown()
        server.server_close()
