"""Serves metrics over HTTP, in a thread of its own that waits for who asks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from cluster.iocp import NetAddress
from cluster.shared.config import ConfigError

__all__ = ["MetricsHandler", "metrics_served"]

IDLE_TIMEOUT_S = 10.0
"""For a client to send its request, and to take anything of the answer. Each holds a thread."""


class MetricsHandler(WSGIRequestHandler):
    """Logs nothing, and waits for nobody for ever, as the library's does."""

    timeout = IDLE_TIMEOUT_S

    def handle(self) -> None:
        with suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


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
    server.RequestHandlerClass = MetricsHandler
    try:
        yield f"metrics http://{NetAddress.from_sockaddr(server.server_address)}/metrics"
    finally:
        server.shutdown()
        server.server_close()
