"""The alarms: they ask for metrics that there are, and ring for what they are meant for."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cluster.iocp import NetAddress
from cluster.metrics.node_collector import NodeCollector
from cluster.shared.run_directory import RunDirectory
from cluster.websocket.front_counters import FrontCounters
from cluster.websocket.front_metrics import front_collectors
from tests.metrics.test_node_collector import STATUS

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="deploy/ is for Linux")

DIRECTORY = Path(__file__).parents[2] / "deploy" / "prometheus"
NODE = 'instance="a:9464",node="1"'
FRONT = 'instance="b:9465"'
FIRING = 'ALERTS{alertstate="firing",'

RINGS = {
    "IocpClusterNotScraped": ('up{job="iocp-cluster",instance="a:9464"}', "1 0x99"),
    "IocpClusterNodeMissing": ('iocp_cluster_nodes{instance="a:9464"}', "1 0x99"),
    "IocpClusterGatewayDown": (f"iocp_cluster_gateway_up{{{NODE}}}", "1 0x99"),
    "IocpClusterShardNotReady": (
        f'iocp_cluster_worker_state{{{NODE},shard="0",state="ready"}}',
        "1 0x99",
    ),
    "IocpClusterWorkersDie": (
        f'iocp_cluster_worker_restarts_total{{{NODE},shard="0"}}',
        "0x50 1 2 3 3x46",
    ),
    "IocpClusterNoSpare": (f"iocp_cluster_spares{{{NODE}}}", "1 0x99"),
    "IocpClusterDeadLetters": (f"iocp_cluster_dead_letters_total{{{NODE}}}", "0x50 1x49"),
    "IocpClusterCommitsWait": ("", ""),  # its series are BUCKETS
    "IocpClusterShardFull": (f"iocp_cluster_sessions_held{{{NODE}}}", "0 7x99"),
    "IocpClusterGatewayBusy": (
        f'iocp_cluster_process_cpu_seconds_total{{{NODE},process="gateway"}}',
        "0+14.5x100",
    ),
    "IocpClusterLinkDown": (f'iocp_cluster_link_up{{{NODE},peer="2"}}', "1 0x99"),
    "IocpClusterLinkFull": (f"iocp_cluster_links_full_total{{{NODE}}}", "0x50 9x49"),
    "IocpClusterReloadFailed": (f"iocp_cluster_reloads_failed_total{{{NODE}}}", "0x50 1x49"),
    "IocpClusterFrontRefuses": (
        f'iocp_cluster_websocket_refused_total{{{FRONT},cause="node"}}',
        "0x50 1x49",
    ),
    "IocpClusterFrontFails": (
        f'iocp_cluster_websocket_clients_ended_total{{{FRONT},cause="failed"}}',
        "0x50 1x49",
    ),
    "IocpClusterFrontBusy": (
        f"iocp_cluster_websocket_process_cpu_seconds_total{{{FRONT}}}",
        "0+14.5x100",
    ),
}
"""For each alarm a series for which it rings, 25 minutes of it, a value every 15 s."""

BUCKETS = [
    (f'iocp_cluster_commit_wait_seconds_bucket{{{NODE},shard="0",le="{bound}"}}', values)
    for bound, values in (("0.5", "0+10x100"), ("1.0", "0+12x100"), ("+Inf", "0+12x100"))
]

QUIET = {
    'up{job="iocp-cluster",instance="a:9464"}': "1x100",
    'iocp_cluster_nodes{instance="a:9464"}': "2x100",
    f"iocp_cluster_gateway_up{{{NODE}}}": "1x100",
    f'iocp_cluster_worker_state{{{NODE},shard="0",state="ready"}}': "1x40 0 1x59",
    f'iocp_cluster_worker_state{{{NODE},shard="0",state="backoff"}}': "0x100",
    f'iocp_cluster_worker_restarts_total{{{NODE},shard="0"}}': "0x50 1x49",
    f"iocp_cluster_spares{{{NODE}}}": "1x30 0 0 1x68",
    f"iocp_cluster_dead_letters_total{{{NODE}}}": "3x100",
    f"iocp_cluster_sessions_held{{{NODE}}}": "0 5 0x98",
    f'iocp_cluster_process_cpu_seconds_total{{{NODE},process="gateway"}}': "0+9x100",
    f'iocp_cluster_link_up{{{NODE},peer="2"}}': "1x100",
    f'iocp_cluster_commit_wait_seconds_bucket{{{NODE},shard="0",le="0.5"}}': "0+1000x100",
    f'iocp_cluster_commit_wait_seconds_bucket{{{NODE},shard="0",le="+Inf"}}': "0+1001x100",
    f'iocp_cluster_websocket_refused_total{{{FRONT},cause="origin"}}': "0+10x100",
    f'iocp_cluster_websocket_clients_ended_total{{{FRONT},cause="client"}}': "0+10x100",
}
"""A cluster at work, in which a worker has died, and a lane was full for a moment."""


def read_rules() -> dict[str, dict[str, Any]]:
    """Return the rules by the names of their alarms."""
    groups = yaml.safe_load((DIRECTORY / "alerts.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_rules_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(RunDirectory(tmp_path), lambda directory: STATUS))
    for collector in front_collectors(FrontCounters((NetAddress("10.0.0.1", 7777),))):
        registry.register(collector)
    samples = {
        sample.name: sample.labels for family in registry.collect() for sample in family.samples
    }
    for rule in read_rules().values():
        asked = re.findall(r"(iocp_cluster_[a-z_]+)(?:\{([a-z_]+)=)?", rule["expr"])
        assert asked or rule["expr"].startswith("up{")
        for name, label in asked:
            assert name in samples
            assert not label or label in samples[name]
        for label in re.findall(r"\$labels\.([a-z]+)", str(rule["annotations"])):
            assert label in ("instance", "job") or label in samples[asked[0][0]]


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_each_alarm_rings_for_what_it_is_meant_for_and_not_without(tmp_path: Path) -> None:
    subprocess.run(
        ["promtool", "check", "config", DIRECTORY / "prometheus.yml"], check=True, timeout=60
    )
    rules = read_rules()
    assert rules.keys() == RINGS.keys()
    up = (f"iocp_cluster_gateway_up{{{NODE}}}", "1x100")
    cases = [
        {
            "interval": "15s",
            "input_series": [
                {"series": name, "values": values}
                for name, values in (BUCKETS if not series else [(series, shown), up])
                if series != up[0] or values == shown
            ],
            "promql_expr_test": [
                {
                    "expr": f'count({FIRING}alertname="{alarm}"}}) or vector(0)',
                    "eval_time": "20m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        for alarm, (series, shown) in RINGS.items()
    ]
    quiet = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in QUIET.items()],
        "alert_rule_test": [
            {"eval_time": f"{minutes}m", "alertname": alarm, "exp_alerts": []}
            for alarm in rules
            for minutes in range(1, 25)
        ],
    }
    tests = {
        "rule_files": [str(DIRECTORY / "alerts.yml")],
        "evaluation_interval": "15s",
        "tests": [*cases, quiet],
    }
    (tmp_path / "tests.yml").write_text(json.dumps(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
