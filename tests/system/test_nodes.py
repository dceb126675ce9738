"""`cluster up --nodes N`: several linked nodes on one machine, from one command."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from cluster.shared.run_directory import RunDirectory
from tests.applications import far_rooms
from tests.applications.playground import GREETING, TO_ALL
from tests.support import wait_until
from tests.system.cluster_node import (
    READY_LINE,
    READY_TIMEOUT_S,
    ROOT,
    cluster_command,
    cluster_environment,
    run_cluster,
)
from tests.system.packet_client import PacketClient
from tests.system.test_supervisor import has_ended

ARGUMENTS = [
    *("up", "--nodes", "2", "--workers", "1", "--listen", "127.0.0.1:0"),
    *("--app", "tests.applications.playground:app"),
]


@contextmanager
def up(
    tmp_path: Path, *more: str, stdout: int | IO[bytes] = subprocess.PIPE
) -> Iterator["subprocess.Popen[str]"]:
    """Run two nodes or more; what is left of them at the end is killed."""
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            cluster_command(*ARGUMENTS, "--run-dir", str(tmp_path / "run"), *more),
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=cluster_environment(),
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_nodes_come_up_linked_are_one_for_broadcasts_and_drain(tmp_path: Path):
    with up(tmp_path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        matches = [READY_LINE.fullmatch(line) for line in lines]
        assert all(matches), (lines, (tmp_path / "stderr").read_text())
        assert [match["node"] for match in matches if match] == ["1", "2"]
        first, second = [int(match["port"]) for match in matches if match]
        with PacketClient(first) as one, PacketClient(second) as two:
            for client in (one, two):
                assert client.receive()[0] == GREETING
            one.send(TO_ALL, b"to everybody")
            for client in (one, two):
                assert client.receive() == (TO_ALL, b"to everybody")
        status = run_cluster("status", "--run-dir", str(tmp_path / "run" / "node-2"))
        assert status.returncode == 0, status.stderr
        assert "link to node 1" in status.stdout
        above = run_cluster("status", "--run-dir", str(tmp_path / "run"))
        assert above.returncode == 4
        assert "nodes run in its folders node-1, node-2: pass --run-dir" in above.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
        assert process.stdout.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_nodes_go_on_when_nobody_reads_that_they_are_ready(tmp_path: Path):
    stderr = tmp_path / "stderr"
    with Path("/dev/full").open("wb") as full, up(tmp_path, stdout=full) as process:
        wait_until(
            lambda: stderr.read_text().count("nobody reads the ready line") == 2,
            timeout_s=30,
            what="two ready lines",
        )
        for node in ("node-1", "node-2"):
            listen = RunDirectory(tmp_path / "run" / node).read_config().node.listen
            with PacketClient(int(listen.rpartition(":")[2])) as client:
                assert client.receive()[0] == GREETING
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, stderr.read_text()


def test_members_at_all_nodes_hear_all_in_order_while_a_worker_is_killed(tmp_path: Path):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\nspares = 0\n")
    more = ("--nodes", "3", "--config", str(config), "--app", "tests.applications.far_rooms:app")
    with up(tmp_path, *more) as process, ExitStack() as stack:
        assert process.stdout is not None
        matches = [READY_LINE.fullmatch(process.stdout.readline()) for _ in range(3)]
        assert all(matches), (tmp_path / "stderr").read_text()
        ports = [int(match["port"]) for match in matches if match]
        clients = [stack.enter_context(PacketClient(port)) for port in ports for _ in range(2)]
        for client in clients:
            assert client.ask(far_rooms.ENTER, b"room") == (far_rooms.ENTERED, b"room")
        status = run_cluster("status", "--run-dir", str(tmp_path / "run" / "node-2"), "--json")
        (worker,) = json.loads(status.stdout)["workers"]
        for number in range(20):
            if number == 10:
                os.kill(worker["pid"], signal.SIGKILL)
            for sender, client in enumerate(clients):
                client.send(far_rooms.TALK, bytes((sender, number)))
        for client in clients:
            heard = [client.receive() for _ in range(20 * len(clients))]
            assert {packet_id for packet_id, _ in heard} == {far_rooms.HEARD}
            for sender in range(len(clients)):
                numbers = [payload[1] for _, payload in heard if payload[0] == sender]
                assert numbers == list(range(20))
            client.socket.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()


@pytest.mark.long
def test_nothing_outlives_a_kill_of_the_one_that_started_the_nodes(tmp_path: Path):
    with up(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(family) >= 8  # two supervisors, each with a gateway, a worker and a spare
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: all(map(has_ended, family)), what="the end of all")


def test_a_node_that_does_not_end_in_time_is_killed_and_that_is_told_with_code_1(tmp_path: Path):
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 0.5\n")
    with up(tmp_path, "--nodes", "2", "--config", str(config)) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert READY_LINE.fullmatch(process.stdout.readline())
        held = RunDirectory(tmp_path / "run" / "node-2").holder("supervisor")
        assert held is not None
        os.kill(held, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        told = (tmp_path / "stderr").read_text
        assert process.wait(20) == 1, told()
        assert f"the time for the nodes to end is up; killed: node 2 (pid {held})\n" in told()
        assert has_ended(held)


def test_a_node_that_cannot_start_ends_all_with_its_code_and_line(tmp_path: Path):
    with up(tmp_path, "--app", "no_such_module:app") as process:
        assert process.wait(30) == 2
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert "no_such_module" in (tmp_path / "stderr").read_text()


def test_a_signal_while_the_nodes_start_ends_them_in_good_order(tmp_path: Path):
    with up(tmp_path) as process:
        second = tmp_path / "run" / "node-2"
        wait_until(
            lambda: second.is_dir() and any(second.iterdir()),
            timeout_s=READY_TIMEOUT_S,
            what="the second node",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
        assert process.stdout is not None
        assert process.stdout.read() == ""


@pytest.mark.long
def test_nodes_on_one_port_are_each_given_clients_and_full_ones_close_theirs(tmp_path: Path):
    config = tmp_path / "cluster.toml"
    config.write_text("[gateway]\nmax_sessions = 2\n[workers]\nspares = 0\n")
    with up(tmp_path, "--shared-port", "--config", str(config)) as process, ExitStack() as stack:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        matches = [READY_LINE.fullmatch(line) for line in lines]
        assert all(matches), (lines, (tmp_path / "stderr").read_text())
        (port,) = {int(match["port"]) for match in matches if match}
        greeted: list[PacketClient] = []

        def is_full() -> bool:
            client = stack.enter_context(PacketClient(port))
            with suppress(EOFError, ConnectionError):  # which came to the full one
                assert client.receive()[0] == GREETING
                greeted.append(client)
            return len(greeted) == 4

        wait_until(is_full, interval_s=0, what="two clients at each node")
        stack.enter_context(PacketClient(port)).receive_end()  # whichever it comes to
        greeted[0].send(TO_ALL, b"to everybody")
        for client in greeted:
            assert client.receive() == (TO_ALL, b"to everybody")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
