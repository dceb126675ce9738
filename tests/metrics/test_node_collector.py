"""Metrics are those of the status at that moment, with labels where the world expects them."""

import math
import os
import re
import threading
from itertools import accumulate
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import node_collector
from cluster.metrics.node_collector import NodeCollector
from cluster.shared.messages import ProtocolError
from cluster.shared.node_status import (
    COMMIT_BOUNDS_S,
    COUNTERS,
    MOMENTARY_COUNTERS,
    CommitWaits,
    GatewayStatus,
    InHand,
    LinkStatus,
    NodeStatus,
    RemoteWorker,
    SpareStatus,
    WorkerStatus,
)
from cluster.shared.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]

STATUS = NodeStatus(
    node=7,
    epoch=3,
    gateway=GatewayStatus(pid=os.getpid(), driver="io_uring", sessions=12),
    workers=[
        WorkerStatus(
            shard=0,
            pid=os.getpid(),
            state="ready",
            restarts=2,
            lane="shm",
            in_hand=InHand(session=1, packet_id=5, sequence=9, for_s=1.5),
            waits=CommitWaits(
                median_s=0.001,
                worst_s=0.3,
                counts=[*range(len(COMMIT_BOUNDS_S)), 100],
                sum_s=1_234.5,
            ),
        ),
        WorkerStatus(
            shard=1,
            pid=4_242,
            state="stuck",
            restarts=0,
            lane="zmq",
            awaiting=InHand(session=1, packet_id=5, sequence=9, for_s=0.25),
            remote=RemoteWorker(key="far", address="10.0.0.9"),
        ),
    ],
    spares=[SpareStatus(pid=1)],
    links=[
        LinkStatus(
            node=8,
            address="10.0.0.8:7800",
            state="backoff",
            waiting_records=3,
            waiting_bytes=300,
            failures=1,
            reason="refused",
        )
    ],
    counters={
        "closed_eof": 4,
        "closed_idle_timeout": 1,
        "sessions_closed": 5,
        "rate_limited_packets_per_s": 2,
        "links_refused_proof": 6,
        "uncommitted_bytes": 900,
    },
)


def scrape(collector: NodeCollector) -> dict[tuple[str, ...], float]:
    """Return what Prometheus would make of a scrape: values by name, node and other labels."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (
            sample.name.removeprefix("iocp_cluster_"),
            *(sample.labels[label] for label in sorted(sample.labels, key=_node_first)),
        ): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def _node_first(label: str) -> tuple[bool, str]:
    return label != "node", label


def test_metrics_are_what_the_status_says(tmp_path: Path) -> None:
    found = scrape(NodeCollector(RunDirectory(tmp_path), lambda directory: STATUS))
    assert found.pop(("process_cpu_seconds_total", "7", "gateway")) > 0
    assert found.pop(("process_cpu_seconds_total", "7", "worker-0")) > 0
    assert found.pop(("process_resident_memory_bytes", "7", "gateway")) > 1_000_000
    assert found.pop(("process_resident_memory_bytes", "7", "worker-0")) > 1_000_000
    states = {key: found.pop(key) for key in list(found) if key[0] == "worker_state"}
    assert {key[2:] for key, value in states.items() if value} == {("0", "ready"), ("1", "stuck")}
    assert len(states) == 12  # each of 6, for 2 workers
    buckets = {
        key[2]: found.pop(key) for key in list(found) if key[0] == "commit_wait_seconds_bucket"
    }
    assert list(buckets.values()) == [*accumulate(range(len(COMMIT_BOUNDS_S))), 205]
    assert [float(bound) for bound in buckets] == [*COMMIT_BOUNDS_S, math.inf]
    assert found.pop(("commit_wait_seconds_count", "7", "0")) == 205
    assert found.pop(("commit_wait_seconds_sum", "7", "0")) == 1_234.5
    still = {key for key in found if key[0].removesuffix("_total") in COUNTERS - {*STATUS.counters}}
    assert {key[0] for key in still} == {
        name if name in MOMENTARY_COUNTERS else f"{name}_total"
        for name in COUNTERS - {*STATUS.counters}
    }
    assert {found.pop(key) for key in still} == {0}
    assert found == {
        ("nodes",): 1,
        ("gateway_up", "7"): 1,
        ("epoch", "7"): 3,
        ("sessions", "7"): 12,
        ("spares", "7"): 1,
        ("worker_restarts_total", "7", "0"): 2,
        ("worker_restarts_total", "7", "1"): 0,
        ("worker_in_hand_seconds", "7", "0"): 1.5,
        ("worker_in_hand_seconds", "7", "1"): 0,
        ("worker_awaiting_seconds", "7", "0"): 0,
        ("worker_awaiting_seconds", "7", "1"): 0.25,
        ("link_up", "7", "8"): 0,
        ("link_waiting_records", "7", "8"): 3,
        ("link_waiting_bytes", "7", "8"): 300,
        ("sessions_closed_by_cause_total", "7", "eof"): 4,
        ("sessions_closed_by_cause_total", "7", "idle_timeout"): 1,
        ("sessions_closed_total", "7"): 5,
        ("rate_limited_total", "7", "packets_per_s"): 2,
        ("links_refused_total", "7", "proof"): 6,
        ("uncommitted_bytes", "7"): 900,
    }


def test_the_nodes_in_folders_count_and_one_that_cannot_be_asked_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("node-1", "node-2", "node-3", "other"):
        (tmp_path / name).mkdir()

    def read(directory: RunDirectory) -> NodeStatus | None:
        if directory.path == tmp_path:
            return None
        number = int(directory.path.name.removeprefix("node-"))
        if number == 2:
            raise ProtocolError("version 9, not 1")
        # That of node 3 hangs: its process is there, and what is shown is its supervisor's.
        gateway = GatewayStatus(pid=os.getpid(), driver="auto", sessions=number)
        return NodeStatus(
            node=number,
            epoch=1,
            gateway=gateway,
            workers=[],
            spares=[],
            links=[],
            counters={"sends": 1} if number == 1 else {},
        )

    found = scrape(NodeCollector(RunDirectory(tmp_path), read))
    assert found[("nodes",)] == 2
    assert {key: found[key] for key in found if key[0] in ("sessions", "gateway_up")} == {
        ("sessions", "1"): 1,
        ("gateway_up", "1"): 1,
        ("gateway_up", "3"): 0,
    }
    assert any("node-2: version 9" in record.getMessage() for record in caplog.records)


def test_a_node_beside_those_in_folders_is_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "node-7").mkdir()
    registry = CollectorRegistry()
    registry.register(NodeCollector(RunDirectory(tmp_path), lambda directory: STATUS))
    lines = [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    series = [line.rpartition(" ")[0] for line in lines]
    assert len(series) == len({*series})
    assert "iocp_cluster_nodes 1.0" in lines


def test_without_any_node_there_are_none(tmp_path: Path) -> None:
    assert scrape(NodeCollector(RunDirectory(tmp_path / "absent"))) == {("nodes",): 0}


def test_what_the_documents_call_momentary_is_no_counter() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \| now: ", text, re.MULTILINE)) == MOMENTARY_COUNTERS


def test_gateways_that_hang_are_waited_for_together(tmp_path: Path) -> None:
    for number in range(1, 5):
        (tmp_path / f"node-{number}").mkdir()
    all_asked = threading.Barrier(4, timeout=20)

    def read(directory: RunDirectory) -> NodeStatus | None:
        if directory.path != tmp_path:
            all_asked.wait()
        return None

    assert scrape(NodeCollector(RunDirectory(tmp_path), read)) == {("nodes",): 0}


def test_folders_that_cannot_be_listed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(directory: RunDirectory) -> list[RunDirectory]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(node_collector, "find_node_folders", refuse)
    collector = NodeCollector(RunDirectory(tmp_path), lambda directory: None)
    assert scrape(collector) == {("nodes",): 0}
    assert any("Permission denied" in record.getMessage() for record in caplog.records)
