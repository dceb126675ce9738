"""`cluster metrics` as a process: it serves whatever becomes of the node, and ends when told."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.system.cluster_node import (
    cluster_command,
    cluster_environment,
    run_cluster,
    run_without_library,
)
from tests.system.conftest import StartNode, cluster_up, cluster_up_unready
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

__all__ = ["cluster_up", "cluster_up_unready"]


@contextmanager
def exporter(run_dir: Path) -> Iterator[str]:
    """Run `cluster metrics` on a free port, and give its address; it ends with 0."""
    arguments = ("metrics", "--run-dir", str(run_dir), "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        cluster_command(*arguments), stdout=subprocess.PIPE, text=True, env=cluster_environment()
    ) as process:
        try:
            assert process.stdout is not None
            word, address = process.stdout.readline().split()
            assert word == "metrics"
            yield address
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def scrape(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def test_a_node_is_scraped_while_it_comes_works_and_goes(
    cluster_up_unready: StartNode, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with exporter(run_dir) as address:
        assert "iocp_cluster_nodes 0.0" in scrape(address)
        node = cluster_up_unready("--workers", "1", run_dir=run_dir)
        node.wait_ready()
        with PacketClient(node.port) as client:
            client.ask(1, b"hello")
            text = scrape(address)
            assert 'iocp_cluster_sessions{node="1"} 1.0' in text
            assert 'iocp_cluster_packets_received_total{node="1"} 1.0' in text
            assert 'iocp_cluster_worker_state{node="1",shard="0",state="ready"} 1.0' in text
            assert 'iocp_cluster_gateway_up{node="1"} 1.0' in text
            gateway = node.status()["gateway"]["pid"]
            os.kill(gateway, signal.SIGSTOP)
            text = scrape(address)
            os.kill(gateway, signal.SIGCONT)
            assert "iocp_cluster_nodes 1.0" in text
            assert 'iocp_cluster_gateway_up{node="1"} 0.0' in text
            assert "iocp_cluster_sessions{" not in text
            assert 'iocp_cluster_sessions{node="1"} 1.0' in scrape(address)
        node.process.terminate()
        assert node.process.wait(20) == 0
        wait_until(
            lambda: "iocp_cluster_nodes 0.0" in scrape(address), timeout_s=10, what="no node"
        )


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        listen = f"127.0.0.1:{holder.getsockname()[1]}"
        done = run_cluster("metrics", "--run-dir", str(tmp_path), "--listen", listen)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cluster: --listen: cannot listen at {listen}: Address already in use\n"


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    done = run_cluster("metrics", "--run-dir", str(tmp_path), "--listen", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cluster: --listen: 'nowhere': expected HOST:PORT with a port")


def test_without_its_library_the_remedy_is_told(tmp_path: Path) -> None:
    done = run_without_library("prometheus_client", tmp_path, "metrics", "--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "cluster: metrics: needs the library prometheus-client; run: pip install "
        "'iocp-cluster[metrics]'\n"
    )
