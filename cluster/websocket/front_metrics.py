"""What a front counts, for Prometheus.

Imports the library for it, which only fronts with `--metrics` need.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.websocket.front_counters import FrontCounters

__all__ = ["FrontCollector", "front_collectors"]

PREFIX = "iocp_cluster_websocket_"


class FrontCollector(Collector):
    """Reads the counters when it is asked. From any thread."""

    def __init__(self, counters: FrontCounters) -> None:
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is, a scrape finds out."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the front."""
        counters = self._counters
        yield _gauge("clients", "Clients that there are.", counters.clients_now)
        yield _gauge(
            "connections",
            "Connections that are open, of clients and of those in their handshake.",
            counters.connections,
        )
        yield _counter("clients_served", "Clients that there were or are.", {(): counters.clients})
        yield _counter(
            "refused",
            "Connections that became no clients.",
            {(cause,): count for cause, count in counters.refused.items()},
            "cause",
        )
        yield _counter(
            "clients_ended",
            "Clients that have ended.",
            {(cause,): count for cause, count in counters.ended.items()},
            "cause",
        )
        yield _counter(
            "node_unreachable",
            "Times that the node took no client.",
            {(str(node),): count for node, count in counters.unreachable.items()},
            "node",
        )
        to_nodes, to_clients = ("to_node",), ("to_client",)
        yield _counter(
            "messages",
            "Messages of clients that the node has taken, and messages for clients.",
            {to_nodes: counters.messages_to_nodes, to_clients: counters.messages_to_clients},
            "direction",
        )
        yield _counter(
            "bytes",
            "Bytes of packets in these.",
            {to_nodes: counters.bytes_to_nodes, to_clients: counters.bytes_to_clients},
            "direction",
        )


def _gauge(name: str, text: str, value: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", text, value=value)


def _counter(
    name: str, text: str, counts: Mapping[tuple[str, ...], int], *labels: str
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}{name}", text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def front_collectors(counters: FrontCounters) -> list[Collector]:
    """Return what tells what a front counts, and how its process is."""
    process = ProcessCollector(namespace=PREFIX.rstrip("_"), registry=None)
    return [FrontCollector(counters), process]
