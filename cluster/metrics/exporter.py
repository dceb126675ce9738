"""Serves metrics over HTTP until it is told to stop."""

import signal
from collections.abc import Callable
from threading import Event

from cluster.iocp import NetAddress
from cluster.metrics.metrics_server import metrics_served
from cluster.metrics.node_collector import NodeCollector
from cluster.shared.run_directory import RunDirectory
from cluster.shared.signal_handling import handle_signal

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
    is_over = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        handle_signal(number, lambda *_: is_over.set())
    with metrics_served([NodeCollector(run_directory)], listen, "--listen") as line:
        announce(line)
        while not is_over.wait(_LOOK_INTERVAL_S):
            pass
    return 0
