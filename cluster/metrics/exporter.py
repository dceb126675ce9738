"""Serves metrics over HTTP until it is told to stop."""

import signal
from collections.abc import Callable
from threading import Event

from prometheus_client import CollectorRegistry, start_http_server

from cluster.iocp import NetAddress
from cluster.metrics.node_collector import NodeCollector
from cluster.shared.config import ConfigError
from cluster.shared.run_directory import RunDirectory

__all__ = ["serve_metrics"]

_LOOK_INTERVAL_S = 0.5
"""Elsewhere than on POSIX systems a signal does not end a wait."""


def serve_metrics(
    run_directory: RunDirectory, listen: NetAddress, announce: Callable[[str], None]
) -> int:
    """Serve the metrics of the nodes in `run_directory` at `listen`; return the exit code, 0.

    `announce` is given the line that says where, once it listens. SIGTERM and SIGINT end it. Raises
    ConfigError when it cannot listen there. Main thread only.
    """
    registry = CollectorRegistry()
    registry.register(NodeCollector(run_directory))
    is_over = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    try:
        server, _ = start_http_server(listen.port, listen.host, registry)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--listen: cannot listen at {listen}: {reason}") from None
    bound = NetAddress.from_sockaddr(server.server_address)
    announce(f"metrics http://{bound}/metrics")
    while not is_over.wait(_LOOK_INTERVAL_S):
        pass
    server.shutdown()
    server.server_close()
    return 0
