"""`cluster up` from its first line to its exit code, with real processes and real kills."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from struct import pack
from typing import Any

import psutil
import pytest

from cluster.shared.run_directory import RunDirectory
from cluster.shared.stop_requests import SAME_REQUEST_S
from cluster.supervisor.status import read_status
from tests.support import wait_until
from tests.system.cluster_node import (
    READY_TIMEOUT_S,
    ROOT,
    cluster_command,
    cluster_environment,
    run_cluster,
)
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

ECHO_ONCE_THEN_DIE = """
import os
from cluster.worker import App

app = App()

@app.on_any
def answer(session, packet_id, payload):
    if payload == b"die":
        os._exit(9)
    session.send(packet_id, payload)
"""


def write_app(directory: Path, source: str, name: str = "the_app") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(source)
    return directory


def has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# -- starting and ending ---------------------------------------------------------------------------


def test_the_ready_line_is_all_of_stdout_and_a_drain_leaves_nobody(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    assert node.stdout == (
        f"ready node=1 listen=127.0.0.1:{node.port} workers=2 "
        f"driver={node.ready['driver']} lane={node.ready['lane']}\n"
    )
    assert node.port != 0
    with PacketClient(node.port) as client:
        assert client.ask(1, b"hello") == (1, b"hello")
        node.signal(signal.SIGTERM)
        client.receive_end()
    assert node.wait_exit() == 0
    assert node.stdout.count("\n") == 1
    assert node.processes() == []


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_node_whose_standard_streams_are_closed_works(
    cluster_up_unready: StartNode, closed: tuple[int, ...]
):
    def close_streams() -> None:
        for fd in closed:
            os.close(fd)

    node = cluster_up_unready("--workers", "1", preexec_fn=close_streams)
    directory = RunDirectory(node.run_dir)

    def is_ready() -> bool:
        status = read_status(directory) if directory.exists() else None
        return status is not None and [w.state for w in status.workers] == ["ready"]

    wait_until(is_ready, timeout_s=20, interval_s=0.1, what="the node")
    port = wait_until(  # the supervisor notes it, and nobody reads its ready line
        lambda: int(directory.read_config().node.listen.rpartition(":")[2]), what="the port"
    )
    with PacketClient(port) as client:
        assert client.ask(1, b"hello") == (1, b"hello")
    if 1 not in closed:
        # It waits for the spare as well.
        wait_until(
            lambda: node.stdout.startswith("ready node=1 "),
            timeout_s=READY_TIMEOUT_S,
            what="the ready line",
        )
    if 2 not in closed:
        assert "listening at" in node.stderr
    assert node.drain() == 0
    assert node.processes() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_the_log_level_is_that_of_all_processes(cluster_up: StartNode, tmp_path: Path):
    source = 'import logging\nlogging.getLogger("game").debug("comes up")\n'
    cwd = write_app(tmp_path / "app", source + ECHO_ONCE_THEN_DIE)
    application = ("--app", "the_app:app", "--workers", "1")
    loud = cluster_up(*application, "--log-level", "debug", cwd=cwd)
    quiet = cluster_up(*application, "--log-level", "warning", cwd=cwd)
    for node in (loud, quiet):
        node.signal(signal.SIGTERM)
        assert node.wait_exit() == 0
    assert re.search(r" DEBUG worker-0\[\d+\] game: comes up", loud.stderr)
    for role in ("supervisor", "gateway"):
        assert f" INFO {role}[" in loud.stderr
    assert " INFO " not in quiet.stderr


def test_a_node_goes_on_when_nothing_can_be_written_to_its_stderr(
    cluster_up: StartNode, tmp_path: Path
):
    """Its log is lost, and so is why a process cannot start; its clients lose nothing."""
    tried = tmp_path / "tried"
    fails_from_now_on = f"open({str(tried)!r}, 'a').write('x')\nraise RuntimeError('not now')\n"

    def fill_stderr() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

    node = cluster_up(
        *("--workers", "1", "--app", "the_app:app"),
        cwd=write_app(tmp_path / "app", ECHO_ONCE_THEN_DIE),
        preexec_fn=fill_stderr,
        env={"PYTHONUNBUFFERED": ""},  # else nothing is left for the end of a process
    )
    with PacketClient(node.port) as client:
        assert client.ask(1, b"hello") == (1, b"hello")
        write_app(tmp_path / "app", fails_from_now_on)
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        assert client.ask(1, b"again") == (1, b"again")  # a spare has its shard
        wait_until(  # the second one is started when the supervisor is done with the first
            lambda: tried.exists() and len(tried.read_text()) > 1,
            timeout_s=20,
            what="spares that cannot start",
        )
        assert client.ask(1, b"still here") == (1, b"still here")
    assert node.drain() == 0
    assert node.processes() == []


def test_ctrl_c_drains_as_sigterm_does(cluster_up: StartNode):
    node = cluster_up("--workers", "1")
    node.signal(signal.SIGINT)
    assert node.wait_exit() == 0
    assert node.processes() == []


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_were_blocked_by_whoever_started_a_node_end_it_all_the_same(
    cluster_up: StartNode, number: int
):
    node = cluster_up("--workers", "1", preexec_fn=block_signals)
    os.kill(node.worker_pids()[0], signal.SIGTERM)
    node.wait_restarts(1)
    assert "exit code 0; successor" in node.stderr
    node.signal(number)
    assert node.wait_exit() == 0


def test_an_ipv6_address_stands_in_brackets(cluster_up: StartNode):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    node = cluster_up("--workers", "1", listen="[::1]:0")
    assert f"listen=[::1]:{node.port} " in node.stdout
    with PacketClient(node.port, host="::1") as client:
        assert client.ask(7, b"") == (7, b"")
    assert node.drain() == 0


def test_every_process_of_a_node_has_a_session_of_its_own(cluster_up: StartNode):
    node = cluster_up("--workers", "1")
    children = psutil.Process(node.pid).children()
    assert {os.getsid(child.pid) for child in children} == {child.pid for child in children}
    assert len(children) == 3  # gateway, worker, spare


def test_a_signal_before_the_node_is_ready_stops_it(cluster_up_unready: StartNode, tmp_path: Path):
    app = write_app(tmp_path / "apps", "import time\ntime.sleep(600)\n")
    node = cluster_up_unready("--app", "the_app:app", "--workers", "1", cwd=app)
    wait_until(lambda: "listening at" in node.stderr, timeout_s=READY_TIMEOUT_S, what="the gateway")
    node.signal(signal.SIGTERM)
    assert node.wait_exit() == 0
    assert node.stdout == ""
    assert node.processes() == []


def test_sigterm_to_every_process_of_a_node_at_once_is_a_drain(cluster_up: StartNode):
    """What a service manager does that signals a whole control group."""
    node = cluster_up("--workers", "1")
    [worker] = node.worker_pids()
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        os.kill(worker, signal.SIGSTOP)
        client.send(2, b"y")
        wait_until(lambda: node.counters()["packets_received"] == 2, what="the packet")
        for process in node.processes():
            process.terminate()
        os.kill(worker, signal.SIGCONT)
        assert client.receive() == (2, b"y")
        client.receive_end()
    assert node.wait_exit() == 0
    assert node.processes() == []


def test_a_second_signal_stops_at_once(cluster_up: StartNode, tmp_path: Path):
    source = "import time\n" + ECHO_ONCE_THEN_DIE.replace("os._exit(9)", "time.sleep(600)")
    node = cluster_up("--app", "the_app:app", cwd=write_app(tmp_path / "apps", source))
    with PacketClient(node.port) as client:
        assert client.ask(1, b"here") == (1, b"here")
        client.send(1, b"die")  # now there is something that a drain would wait for
        wait_until(lambda: node.counters()["packets_received"] == 2, what="the packet")
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGINT)  # as a parent does that forwards what its group got, too
        wait_until(lambda: "draining" in node.stderr, what="the drain")
        time.sleep(SAME_REQUEST_S)
        assert node.process.poll() is None
        node.signal(signal.SIGINT)
        assert node.wait_exit() == 128 + signal.SIGINT  # a drain that is over would be 0
    assert node.processes() == []


AT_EXIT = """
import atexit
import sys
import time
from pathlib import Path


def wait():
    Path("at-exit").touch()
    while not Path("go-on").exists():
        time.sleep(0.01)


if "up" in sys.argv:
    atexit.register(wait)
"""


def test_a_signal_behind_the_end_of_a_node_does_not_change_its_exit_code(
    cluster_up: StartNode, tmp_path: Path
):
    apps = write_app(tmp_path / "apps", AT_EXIT, name="sitecustomize")
    write_app(apps, ECHO_ONCE_THEN_DIE)
    path = os.pathsep.join([str(apps), str(ROOT)])
    node = cluster_up("--app", "the_app:app", cwd=apps, env={"PYTHONPATH": path})
    node.signal(signal.SIGTERM)
    wait_until((apps / "at-exit").exists, what="the last moments of the process")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        node.signal(number)
    (apps / "go-on").touch()
    assert node.wait_exit() == 0


@pytest.mark.long
def test_a_drain_that_a_handler_holds_up_ends_when_its_time_is_up(
    cluster_up: StartNode, tmp_path: Path
):
    source = "import time\n" + ECHO_ONCE_THEN_DIE.replace("os._exit(9)", "time.sleep(600)")
    config = tmp_path / "cluster.toml"
    config.write_text("[supervisor]\ndrain_timeout_s = 0.5\n")
    apps = write_app(tmp_path / "apps", source)
    node = cluster_up("--app", "the_app:app", "--config", str(config), cwd=apps)
    with PacketClient(node.port) as client:
        client.send(1, b"die")
        wait_until(lambda: node.counters()["packets_received"] == 1, what="the packet")
        node.signal(signal.SIGTERM)
        client.receive_end()
        assert node.wait_exit(timeout_s=10) == 0
    assert "the time to drain is up: sessions cut off: 1, records " in node.stderr
    assert node.processes() == []


# -- deaths ----------------------------------------------------------------------------------------


def test_gateway_workers_and_spares_end_with_a_killed_supervisor(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    pids = [child.pid for child in psutil.Process(node.pid).children()]
    assert len(pids) == 4
    node.signal(signal.SIGKILL)
    # At once: by its silence they would miss it after `worker_timeout_s`, which is twice as long.
    wait_until(lambda: all(map(has_ended, pids)), timeout_s=5, what="the end of the children")
    node.wait_exit()
    assert run_cluster("status", "--run-dir", str(node.run_dir)).returncode == 4


def test_a_node_starts_again_right_after_its_supervisor_was_killed(cluster_up: StartNode):
    node = cluster_up("--workers", "1")
    node.signal(signal.SIGKILL)
    node.wait_exit()
    again = cluster_up("--workers", "1", listen=f"127.0.0.1:{node.port}", run_dir=node.run_dir)
    assert again.port == node.port
    assert again.drain() == 0, again.stderr


def test_a_killed_worker_is_replaced_and_its_clients_are_served_again(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    clients = [PacketClient(node.port) for _ in range(4)]
    try:
        for number, client in enumerate(clients):
            assert client.ask(number, b"before") == (number, b"before")
        killed = node.worker_pids()[0]
        os.kill(killed, signal.SIGKILL)
        for number, client in enumerate(clients):
            assert client.ask(number, b"after") == (number, b"after")
        status = node.wait_status(
            lambda status: [worker["state"] for worker in status["workers"]] == ["ready"] * 2,
            "both workers ready",
        )
        node.wait_restarts(1, 0)
        assert status["workers"][0]["pid"] not in (None, killed)
        assert status["gateway"]["sessions"] == 4
    finally:
        for client in clients:
            client.socket.close()
    assert node.drain() == 0


def test_a_worker_that_dies_in_a_drain_is_succeeded_within_it(cluster_up: StartNode):
    node = cluster_up("--workers", "1")
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        [worker] = node.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        client.send(2, b"y")
        wait_until(lambda: node.counters()["packets_received"] == 2, what="the packet")
        node.signal(signal.SIGTERM)
        wait_until(lambda: "cluster.gateway: draining" in node.stderr, what="the drain")
        os.kill(worker, signal.SIGKILL)
        assert client.receive() == (2, b"y")
        client.receive_end()
    assert node.wait_exit() == 0
    assert node.processes() == []


def test_a_killed_gateway_is_a_new_epoch_on_the_same_port(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    before = node.status()
    client = PacketClient(node.port)
    assert client.ask(1, b"x") == (1, b"x")
    os.kill(before["gateway"]["pid"], signal.SIGKILL)
    client.receive_end()
    client.socket.close()
    after = node.wait_status(
        lambda status: (
            status["epoch"] == before["epoch"] + 1
            and [worker["state"] for worker in status["workers"]] == ["ready"] * 2
        ),
        "the next epoch",
    )
    assert after["gateway"]["pid"] != before["gateway"]["pid"]
    old_pids = {worker["pid"] for worker in before["workers"]}
    assert not old_pids & {worker["pid"] for worker in after["workers"]}
    with PacketClient(node.port) as client:
        assert client.ask(2, b"again") == (2, b"again")
    assert node.drain() == 0
    assert node.stdout.count("ready") == 1


@pytest.mark.long
def test_a_gateway_that_is_stopped_dead_is_a_new_epoch_on_the_same_port(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 2\nworker_timeout_s = 1.0\n")
    node = cluster_up("--config", str(config))
    for lives in range(1, 4):
        before = node.status()
        client = PacketClient(node.port)
        assert client.ask(1, b"x") == (1, b"x")
        os.kill(before["gateway"]["pid"], signal.SIGSTOP)
        client.receive_end()
        client.socket.close()
        node.wait_status(
            lambda status, epoch=before["epoch"], lives=lives: (
                status["epoch"] == epoch + 1
                and [worker["state"] for worker in status["workers"]] == ["ready"] * 2
                # Told by the supervisor, once it has met this gateway. One that stops before is
                # given the time of a slow start.
                and all(worker["restarts"] >= lives for worker in status["workers"])
            ),
            "the next epoch",
        )
        assert has_ended(before["gateway"]["pid"])
        with PacketClient(node.port) as client:
            assert client.ask(2, b"again") == (2, b"again")
    assert node.stderr.count("has shown no sign of life for") == 3
    assert "no successor" not in node.stderr
    assert node.drain() == 0
    assert node.stdout.count("ready") == 1


@pytest.mark.long
def test_a_gateway_that_was_asked_to_end_by_another_is_succeeded_in_every_way(
    cluster_up: StartNode,
):
    """It drains, and its successor's workers are succeeded like those before."""
    node = cluster_up("--workers", "1")
    before = node.status()
    os.kill(before["gateway"]["pid"], signal.SIGTERM)

    def serves(status: Any, lives: int) -> bool:
        (worker,) = status["workers"]
        return bool(
            status["epoch"] == before["epoch"] + 1
            and worker["state"] == "ready"
            and worker["restarts"] >= lives
        )

    node.wait_status(lambda status: serves(status, 1), "the next epoch")
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        for lives in range(2, 4):
            os.kill(node.worker_pids()[0], signal.SIGKILL)
            assert client.ask(2, b"y") == (2, b"y")
            node.wait_status(lambda status, lives=lives: serves(status, lives), "a successor")
    assert node.drain() == 0


@pytest.mark.long
def test_a_supervisor_that_slept_does_not_take_its_gateway_for_dead(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\nworker_timeout_s = 0.4\n")
    node = cluster_up("--config", str(config))
    gateway = node.status()["gateway"]["pid"]
    for _ in range(2):
        node.signal(signal.SIGSTOP)
        time.sleep(1.0)  # longer than the timeout; and then longer than it takes to judge
        node.signal(signal.SIGCONT)
        time.sleep(0.7)
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
    assert node.status()["gateway"]["pid"] == gateway
    assert node.drain() == 0


@pytest.mark.long
@pytest.mark.parametrize("first", ["children", "supervisor"])
def test_a_node_that_stood_still_as_a_whole_goes_on_with_all_its_processes(
    cluster_up: StartNode, tmp_path: Path, first: str
):
    """What a virtual machine, a container or a terminal does that is paused."""
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 2\nspares = 1\nworker_timeout_s = 4.0\n")
    node = cluster_up("--config", str(config))
    before = {process.pid for process in node.processes()}
    assert len(before) == 5  # supervisor, gateway, workers, spare
    with PacketClient(node.port) as client:
        for round_number in range(2):
            children = before - {node.pid}
            for pid in (node.pid, *children):
                os.kill(pid, signal.SIGSTOP)
            time.sleep(5.0)  # longer than the timeout
            if first == "supervisor":
                os.kill(node.pid, signal.SIGCONT)
                time.sleep(1.0)  # the others come back late, as from a swap that is slow
            for pid in (*children, node.pid):
                os.kill(pid, signal.SIGCONT)
            assert client.ask(round_number, b"x") == (round_number, b"x")
            time.sleep(1.5)  # some heartbeats
            assert {process.pid for process in node.processes()} == before
    assert node.drain() == 0


def test_a_worker_that_is_stopped_dead_is_found_stuck_and_replaced(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\nworker_timeout_s = 0.5\n")
    node = cluster_up("--config", str(config))
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        [worker] = node.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        assert client.ask(2, b"y") == (2, b"y")
    assert has_ended(worker)
    assert "is stuck; killed" in node.stderr
    assert node.drain() == 0


def test_a_spare_that_is_stopped_dead_does_not_hold_the_end_of_a_drain(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\n[supervisor]\ndrain_timeout_s = 600\n")
    node = cluster_up("--config", str(config))
    [spare] = node.status()["spares"]
    os.kill(spare["pid"], signal.SIGSTOP)
    assert node.drain() == 0
    assert has_ended(spare["pid"])
    assert "the time to drain is up" not in node.stderr


BREAKS_A_RULE = """
import gc

from cluster.worker import App
from cluster.worker.outbox import Outbox

app = App()


@app.on_any
def answer(session, packet_id, payload):
    if payload == b"break" and not session.redelivered:
        outbox = next(thing for thing in gc.get_objects() if isinstance(thing, Outbox))
        outbox.add(250, session.id, b"there is no such kind")
    session.send(packet_id, payload)
"""


def test_a_worker_that_breaks_a_rule_is_told_as_fenced_and_not_as_one_that_hangs(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\n")
    arguments = ("--config", str(config), "--app", "the_app:app")
    node = cluster_up(*arguments, cwd=write_app(tmp_path / "app", BREAKS_A_RULE))
    with PacketClient(node.port) as client:
        assert client.ask(1, b"break") == (1, b"break")
    node.wait_restarts(1)
    counters = node.counters()
    assert (counters["workers_fenced"], counters["lane_violations"]) == (1, 1)
    assert node.drain() == 0
    told = "was fenced by the gateway: an outbound record of unknown kind 250"
    assert told in node.stderr  # by the supervisor, however soon the worker has ended by itself
    assert "stuck" not in node.stderr
    assert "most recent call first" not in node.stderr


def test_an_application_that_ends_its_worker_is_told_with_file_and_line(
    cluster_up: StartNode, tmp_path: Path
):
    source = ECHO_ONCE_THEN_DIE.replace("os._exit(9)", 'raise SystemExit("no more")')
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\nmax_redeliveries = 1\n")
    arguments = ("--config", str(config), "--app", "the_app:app")
    node = cluster_up(*arguments, cwd=write_app(tmp_path / "app", source))
    with PacketClient(node.port) as client:
        client.send(1, b"die")
        client.receive_end()
    node.wait_restarts(1)
    assert "the application ended its worker: it raised SystemExit('no more')" in node.stderr
    assert 'the_app.py", line 10, in answer' in node.stderr
    os.kill(node.worker_pids()[0], signal.SIGTERM)
    node.wait_restarts(2)
    assert node.stderr.count("the application ended its worker") == 1
    assert node.drain() == 0


def test_workers_that_each_do_some_of_what_came_at_once_are_no_reason_to_give_up(
    cluster_up: StartNode, tmp_path: Path
):
    """All of it is one record, and each life is ended by the next packet."""
    source = """import os
from cluster.worker import App
app = App()
calls = []
@app.on_any
def answer(session, packet_id, payload):
    calls.append(packet_id)
    if len(calls) > 20:
        os._exit(9)
    session.send(packet_id, payload)
"""
    apps = write_app(tmp_path / "apps", source)
    node = cluster_up("--app", "the_app:app", "--workers", "1", cwd=apps)
    with PacketClient(node.port) as client:
        client.socket.sendall(b"".join(pack("<HHB", 5, 1, number) for number in range(200)))
        for number in range(200):
            assert client.receive() == (1, bytes([number]))
    assert node.drain() == 0


@pytest.mark.long
def test_a_shard_that_always_dies_ends_the_node_with_code_3(cluster_up: StartNode, tmp_path: Path):
    source = ECHO_ONCE_THEN_DIE.replace("@app.on_any", "@app.on_connected").replace(
        "def answer(session, packet_id, payload):", "def answer(session, payload=b'die'):"
    )
    apps = write_app(tmp_path / "apps", source)
    config = tmp_path / "never.toml"  # else it is set aside before the fifth death
    config.write_text("[workers]\nmax_redeliveries = 1000\n")
    node = cluster_up("--app", "the_app:app", "--workers", "1", "--config", str(config), cwd=apps)
    with PacketClient(node.port) as client:
        client.receive_end()
    assert node.wait_exit() == 3
    assert node.told_reason().startswith("cluster: gave up restarting worker 0: 5 lives in ")
    assert node.told_reason().endswith("the last ended with exit code 9")
    assert node.processes() == []


@pytest.mark.long
def test_workers_that_never_get_ready_end_the_node_with_code_3(
    cluster_up_unready: StartNode, tmp_path: Path
):
    apps = write_app(tmp_path / "apps", "import os\nos._exit(1)\n")
    config = tmp_path / "no_spares.toml"  # they die of it too, maybe first
    config.write_text("[workers]\nspares = 0\n")
    arguments = ("--app", "the_app:app", "--workers", "1", "--config", str(config))
    node = cluster_up_unready(*arguments, cwd=apps)
    assert node.wait_exit() == 3
    assert node.stdout == ""
    assert node.told_reason().startswith("cluster: gave up restarting worker 0: 5 lives in ")
    assert node.processes() == []


# -- what cannot start -----------------------------------------------------------------------------


def test_a_port_in_use_is_named(cluster_up_unready: StartNode):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = cluster_up_unready(listen=address)
        assert node.wait_exit() == 2
    assert f"cannot listen at {address}" in node.told_reason()
    assert "--listen" in node.told_reason()
    assert node.stderr.count("\n") == 1  # nothing of workers whose gateway has gone
    assert node.stdout == ""
    assert node.processes() == []


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("no_such_module:app", "no_such_module"),
        ("the_app:nothing", "the_app:nothing"),
        ("broken:app", "broken"),
    ],
)
def test_an_application_that_cannot_be_imported_is_named(
    cluster_up_unready: StartNode, tmp_path: Path, spec: str, named: str
):
    write_app(tmp_path / "apps", ECHO_ONCE_THEN_DIE)
    apps = write_app(tmp_path / "apps", "1 / 0\n", name="broken")
    node = cluster_up_unready("--app", spec, "--workers", "3", cwd=apps)
    assert node.wait_exit() == 2
    assert node.told_reason().startswith("cluster worker: ")
    assert node.stderr.count("cluster worker: ") == 1
    assert node.stderr.count("Traceback") == (spec == "broken:app")
    assert named in node.told_reason()
    assert node.stdout == ""
    assert node.processes() == []


SIGNALLED_ONCE = """
import os, signal, time
from pathlib import Path
from cluster.worker import App

app = App()
mark = Path(__file__).with_name("signalled")
if not mark.exists():
    mark.touch()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    except Exception:  # as around an import that may fail
        time.sleep(3600)
"""


def test_a_signal_in_the_import_of_an_application_is_no_error_of_it(
    cluster_up: StartNode, tmp_path: Path
):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\nspares = 0\n")
    application = write_app(tmp_path / "app", SIGNALLED_ONCE)
    node = cluster_up("--config", str(config), "--app", "the_app:app", cwd=application)
    assert "exit code 0; successor" in node.stderr
    assert "cannot import" not in node.stderr
    assert node.drain() == 0


def test_an_import_that_takes_long_is_told_with_where_it_is_and_goes_on(
    cluster_up_unready: StartNode, tmp_path: Path
):
    may_go_on = tmp_path / "may-go-on"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(may_go_on)!r}).exists():\n"
    app = write_app(tmp_path / "app", f"{waits}    time.sleep(0.01)\n{ECHO_ONCE_THEN_DIE}")
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 1\nspares = 0\nworker_timeout_s = 1.0\n")
    node = cluster_up_unready("--config", str(config), "--app", "the_app:app", cwd=app)
    told = "is not ready after 1 s; the import of 'the_app:app', or its on_start, takes long"
    wait_until(lambda: told in node.stderr, timeout_s=20, what="that it takes long")
    where = re.compile(r'the_app.py", line [23], in <module>')
    wait_until(lambda: where.search(node.stderr), timeout_s=20, what="where it is")
    [worker] = node.status()["workers"]
    may_go_on.touch()
    node.wait_ready()
    assert node.worker_pids() == [worker["pid"]]
    assert "the import of 'the_app:app' was over after " in node.stderr
    assert node.stderr.count(told) == len(where.findall(node.stderr)) == 1
    assert node.drain() == 0


def test_a_wrong_configuration_is_one_line(cluster_up_unready: StartNode, tmp_path: Path):
    config = tmp_path / "cluster.toml"
    config.write_text("[workers]\ncount = 0\n")
    node = cluster_up_unready("--config", str(config))
    assert node.wait_exit() == 2
    expected = f"cluster: {config}: workers.count = 0: expected an integer from 1 to 256\n"
    assert node.stderr == expected
    assert node.stdout == ""


def test_a_run_directory_in_use_is_refused_with_the_pid(
    cluster_up: StartNode, cluster_up_unready: StartNode
):
    node = cluster_up("--workers", "1")
    second = cluster_up_unready(run_dir=node.run_dir)
    assert second.wait_exit() == 2
    assert second.told_reason() == (
        f"cluster: run directory {node.run_dir} is in use: its supervisor is pid {node.pid}: "
        f"pass another --run-dir or stop pid {node.pid}"
    )
    with PacketClient(node.port) as client:
        assert client.ask(1, b"still here") == (1, b"still here")
    assert node.drain() == 0


# -- status ----------------------------------------------------------------------------------------


# -- the run directory -----------------------------------------------------------------------------


def test_a_node_goes_on_when_the_files_of_its_run_directory_are_removed(cluster_up: StartNode):
    """As cleaners of temporary files do, which leave sockets alone."""
    node = cluster_up("--workers", "1")
    directory = RunDirectory(node.run_dir)
    with PacketClient(node.port) as client:
        for path in node.run_dir.iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)
        wait_until(lambda: directory.has_config, what="the configuration")
        wait_until(lambda: directory.holder("supervisor") == node.pid, what="the lock")
        (waiting,) = node.status()["spares"]
        os.kill(waiting["pid"], signal.SIGKILL)
        node.wait_status(
            lambda status: (
                [spare["pid"] for spare in status["spares"]] not in ([], [waiting["pid"]])
            ),
            "a spare that was started since",
        )
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        assert client.ask(1, b"hello") == (1, b"hello")
    assert "removed while the node runs, and put back: " in node.stderr
    assert node.drain() == 0
    assert node.processes() == []


def test_a_run_directory_that_is_removed_as_a_whole_is_made_again_for_the_next_gateway(
    cluster_up: StartNode, tmp_path: Path
):
    node = cluster_up("--workers", "1")
    directory = RunDirectory(node.run_dir)
    gateway = node.status()["gateway"]["pid"]
    if not (node.run_dir / "control.sock").exists():
        pytest.skip("the path is so long that its sockets are elsewhere")
    with PacketClient(node.port) as client:
        node.run_dir.rename(tmp_path / "removed")  # at once, whatever is being written there
        wait_until(lambda: "control.sock" in node.stderr, what="what is lost")
        assert "no other process can reach it" in node.stderr
        assert client.ask(1, b"hello") == (1, b"hello")
        assert directory.holder("supervisor") == node.pid
        os.kill(gateway, signal.SIGKILL)
        client.receive_end()
    node.wait_status(
        lambda status: (
            status["gateway"]["pid"] not in (None, gateway)
            and [worker["state"] for worker in status["workers"]] == ["ready"]
        ),
        "the next gateway",
    )
    with PacketClient(node.port) as client:
        assert client.ask(1, b"again") == (1, b"again")
    assert node.drain() == 0
    assert node.processes() == []


def test_status_has_the_promised_shape(cluster_up: StartNode):
    node = cluster_up("--workers", "2")
    with PacketClient(node.port) as client:
        assert client.ask(1, b"x") == (1, b"x")
        status = node.status_command()
    shape = ["node", "epoch", "gateway", "workers", "spares", "links", "counters", "membership"]
    assert list(status) == shape
    assert status["node"] == 1
    assert status["epoch"] >= 1
    assert status["gateway"] == {
        "pid": status["gateway"]["pid"],
        "driver": node.ready["driver"],
        "sessions": 1,
    }
    pids = {child.pid for child in psutil.Process(node.pid).children()}
    [spare] = status["spares"]
    assert spare == {"pid": spare["pid"]}
    assert {status["gateway"]["pid"], *node.worker_pids(), spare["pid"]} == pids
    for shard, worker in enumerate(status["workers"]):
        assert worker == {
            "shard": shard,
            "pid": worker["pid"],
            "state": "ready",
            "restarts": 0,
            "lane": node.ready["lane"],
            "in_hand": None,
            "awaiting": None,
            "waits": worker["waits"],
        }
        assert worker["waits"].keys() == {"median_s", "worst_s", "counts", "sum_s"}
    assert (status["links"], status["membership"]) == ([], None)
    assert all(type(number) is int for number in status["counters"].values())
    table = run_cluster("status", "--run-dir", str(node.run_dir))
    assert table.returncode == 0
    assert str(status["gateway"]["pid"]) in table.stdout
    assert node.drain() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("ends", ["Ctrl-C", "the node"])
def test_status_on_a_terminal_is_drawn_again_until_the_end(cluster_up: StartNode, ends: str):
    node = cluster_up("--workers", "1")
    screen, terminal = os.openpty()
    drawn = b""

    def reads() -> bool:
        nonlocal drawn
        assert select.select([screen], [], [], 20)[0], drawn
        try:
            more = os.read(screen, 65_536)
        except OSError:  # the program has ended
            return False
        drawn += more
        return bool(more)

    command = cluster_command("status", "--watch", "0.1", "--run-dir", str(node.run_dir))
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env=cluster_environment({"TERM": "xterm"}),
    ) as process:
        try:
            os.close(terminal)
            while drawn.count(b"gateway pid") < 3:
                assert reads(), drawn
            if ends == "the node":
                assert node.drain() == 0
            else:
                process.send_signal(signal.SIGINT)
            while reads():
                pass
            assert process.wait(20) == (4 if ends == "the node" else 0)
        finally:
            process.kill()
            os.close(screen)
    assert b"\x1b[?1049l" in drawn, "the terminal is as it was"
    assert (b"nothing runs in" in drawn) is (ends == "the node")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_again_and_again_ends_quietly_when_nobody_reads_it_any_more(
    cluster_up: StartNode, options: list[str]
):
    """As behind `| head -1`."""
    node = cluster_up("--workers", "1")
    command = cluster_command("status", "--watch", "0.1", *options, "--run-dir", str(node.run_dir))
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cluster_environment({}),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(20) == 1
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_status_of_a_gateway_that_hangs_is_what_the_supervisor_knows(cluster_up: StartNode):
    node = cluster_up("--workers", "1")
    before = node.status()
    os.kill(before["gateway"]["pid"], signal.SIGSTOP)
    try:
        status = node.status()
    finally:
        os.kill(before["gateway"]["pid"], signal.SIGCONT)
    assert status["counters"] == {}
    assert status["gateway"]["pid"] == before["gateway"]["pid"]
    (worker,) = before["workers"]
    assert status["workers"] == [worker | {"waits": None}]
    assert node.drain() == 0


def test_status_where_nothing_runs_is_code_4(cluster_up: StartNode, tmp_path: Path):
    nowhere = run_cluster("status", "--run-dir", str(tmp_path / "nowhere"), "--json")
    assert (nowhere.returncode, nowhere.stdout) == (4, "")
    node = cluster_up("--workers", "1")
    assert node.drain() == 0
    assert run_cluster("status", "--run-dir", str(node.run_dir)).returncode == 4
