"""The metrics of all nodes of a run directory, as they are at the moment of a scrape."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from threading import Lock
from typing import get_args

import psutil
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cluster.shared.messages import ProtocolError
from cluster.shared.node_status import (
    COMMIT_BOUNDS_S,
    COUNTERS,
    MOMENTARY_COUNTERS,
    CommitWaits,
    InHand,
    NodeStatus,
    WorkerState,
    WorkerStatus,
)
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.supervisor.node_folders import find_node_folders
from cluster.supervisor.status import read_status

__all__ = ["NodeCollector"]

logger = logging.getLogger("cluster.metrics")

PREFIX = "iocp_cluster_"

_ASKED_MAX = 16
"""Nodes that are asked at a time: as many as `cluster up --nodes` starts."""

LABELLED = {
    "closed_": ("sessions_closed_by_cause", "cause"),
    "rate_limited_": ("rate_limited", "limit"),
    "links_refused_": ("links_refused", "reason"),
}
"""Counters whose names end in what the rest of the world has labels for."""


class NodeCollector(Collector):
    """Asks the nodes of a run directory. One scrape at a time, from any thread."""

    def __init__(
        self,
        run_directory: RunDirectory,
        read: Callable[[RunDirectory], NodeStatus | None] = read_status,
    ) -> None:
        """Ask the node in `run_directory`; if none runs there, those in its folders (`--nodes`)."""
        self._run_directory = run_directory
        self._read = read
        self._lock = Lock()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is, a scrape finds out."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all nodes that run."""
        with self._lock:
            nodes = self._nodes()
        yield GaugeMetricFamily(f"{PREFIX}nodes", "Nodes that run here.", value=len(nodes))
        yield from _node_metrics(nodes)
        yield from _worker_metrics(nodes)
        yield from _link_metrics(nodes)
        yield from _counter_metrics(nodes)
        yield from _process_metrics(nodes)

    def _nodes(self) -> list[NodeStatus]:
        # Both may run, for example a node whose id is one of the folders': never two series alike.
        status = self._ask(self._run_directory)
        if status is not None:
            return [status]
        folders = self._folders()
        if not folders:
            return []
        # Together: each gateway that hangs takes its time.
        with ThreadPoolExecutor(min(len(folders), _ASKED_MAX)) as threads:
            return [status for status in threads.map(self._ask, folders) if status is not None]

    def _folders(self) -> list[RunDirectory]:
        try:
            return find_node_folders(self._run_directory)
        except OSError as error:
            logger.warning("no metrics of nodes in %s: %s", self._run_directory.path, error)
            return []

    def _ask(self, directory: RunDirectory) -> NodeStatus | None:
        try:
            return self._read(directory)
        except (ProtocolError, RunDirectoryError, OSError) as error:
            logger.warning("no metrics of %s: %s", directory.path, error)
            return None


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", text, labels=("node", *labels))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}{name}", text, labels=("node", *labels))


def _node_metrics(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    up = _gauge("gateway_up", "Whether the node has a gateway that answers.")
    epoch = _gauge("epoch", "The life of the node's gateway.")
    sessions = _gauge("sessions", "Sessions that are open.")
    spares = _gauge("spares", "Processes that wait for a shard.")
    for node in nodes:
        labels = (str(node.node),)
        up.add_metric(labels, node.is_of_gateway)
        epoch.add_metric(labels, node.epoch)
        if node.is_of_gateway:
            sessions.add_metric(labels, node.gateway.sessions)
        spares.add_metric(labels, len(node.spares))
    yield from (up, epoch, sessions, spares)


def _worker_metrics(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    state = _gauge("worker_state", "1 for the state that the shard is in.", "shard", "state")
    restarts = _counter("worker_restarts", "Successors that the shard has had.", "shard")
    in_hand = _gauge("worker_in_hand_seconds", "How long a handler call has lasted.", "shard")
    awaiting = _gauge(
        "worker_awaiting_seconds", "How long the oldest call has waited in a coroutine.", "shard"
    )
    waits = HistogramMetricFamily(
        f"{PREFIX}commit_wait_seconds",
        "How long samples of what the shard was given have waited for their commit.",
        labels=("node", "shard"),
    )
    for node, worker in _workers(nodes):
        labels = (str(node.node), str(worker.shard))
        for name in get_args(WorkerState):
            state.add_metric((*labels, name), worker.state == name)
        restarts.add_metric(labels, worker.restarts)
        in_hand.add_metric(labels, _seconds(worker.in_hand))
        awaiting.add_metric(labels, _seconds(worker.awaiting))
        if worker.waits is not None:
            waits.add_metric(labels, _buckets(worker.waits), worker.waits.sum_s)
    yield from (state, restarts, in_hand, awaiting, waits)


def _buckets(waits: CommitWaits) -> list[tuple[str, float]]:
    """Return how many took at most each of the bounds, as Prometheus names them."""
    bounds = [*map(str, COMMIT_BOUNDS_S), "+Inf"]
    return list(zip(bounds, accumulate(waits.counts), strict=True))


def _workers(nodes: Sequence[NodeStatus]) -> Iterator[tuple[NodeStatus, WorkerStatus]]:
    return ((node, worker) for node in nodes for worker in node.workers)


def _seconds(call: InHand | None) -> float:
    return 0.0 if call is None else call.for_s


def _link_metrics(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    up = _gauge("link_up", "Whether there is a link with the other node.", "peer")
    records = _gauge("link_waiting_records", "Records that it has not settled.", "peer")
    waiting = _gauge("link_waiting_bytes", "Bytes that it has not settled.", "peer")
    for node in nodes:
        for link in node.links:
            labels = (str(node.node), str(link.node))
            up.add_metric(labels, link.state == "linked")
            records.add_metric(labels, link.waiting_records)
            waiting.add_metric(labels, link.waiting_bytes)
    yield from (up, records, waiting)


def _counter_metrics(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for node in nodes:
        # Those that are 0 as well: of a series that begins with 1 nobody learns that it has grown.
        known = dict.fromkeys(COUNTERS, 0) if node.is_of_gateway else {}
        for counter, count in sorted((known | node.counters).items()):
            name, *labels = _name_and_label(counter)
            if name not in families:
                text = "As docs/configuration.md has it, under Counters."
                make = _gauge if counter in MOMENTARY_COUNTERS else _counter
                families[name] = make(name, text, *labels[:1])
            families[name].add_metric((str(node.node), *labels[1:]), count)
    return iter(families.values())


def _name_and_label(counter: str) -> tuple[str, ...]:
    """Return the name of the metric, and the label and its value, if it has one."""
    for prefix, (name, label) in LABELLED.items():
        if counter.startswith(prefix):
            return name, label, counter.removeprefix(prefix)
    return (counter,)


def _process_metrics(nodes: Sequence[NodeStatus]) -> Iterator[Metric]:
    cpu = _counter("process_cpu_seconds", "User and system time of the process.", "process")
    memory = _gauge("process_resident_memory_bytes", "Resident memory of the process.", "process")
    for node in nodes:
        for name, pid in _processes(node):
            labels = (str(node.node), name)
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times, resident = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue  # it has ended since, or is another user's
            cpu.add_metric(labels, times.user + times.system)
            memory.add_metric(labels, resident)
    yield from (cpu, memory)


def _processes(node: NodeStatus) -> Iterator[tuple[str, int]]:
    """Return name and pid of the processes of this machine."""
    if node.gateway.pid is not None:
        yield "gateway", node.gateway.pid
    for worker in node.workers:
        if worker.pid is not None and not worker.remote:
            yield f"worker-{worker.shard}", worker.pid
