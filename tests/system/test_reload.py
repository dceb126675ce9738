"""`cluster up --reload` and `cluster reload`: files are edited while clients are served, with real
processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait_until
from tests.system.cluster_node import (
    EXIT_TIMEOUT_S,
    READY_TIMEOUT_S,
    ClusterNode,
    cluster_command,
    cluster_environment,
    run_cluster,
)
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient
from tests.system.test_spares import (
    all_answered,
    complete,
    is_complete,
    pids,
    restarts,
    spare_pids,
    under_load,
    write_config,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

ASK = 3, b"which version?"
"""What a client asks the application; no checked client sends that."""

APPLICATION = """
from cluster.worker import App

app = App()

@app.on_resumed
def resumed(session):
    session.state = "resumed"

@app.on_any
def answer(session, packet_id, payload):
    is_asked = payload == b"which version?"
    session.send(packet_id, b"{version}" if is_asked else payload)
"""
DOES_NOT_IMPORT = "from cluster.worker import App\n\napp = Apx()\n"
DOES_NOT_START = """
@app.on_start
def open_the_database():
    raise RuntimeError("no database here")
"""
RELOAD = ("--reload", "--app", "the_app:app")


class Application:
    """The file of an application, and a node that runs it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "the_app.py"
        self.edit("one")

    def edit(self, version: str, more: str = "") -> None:
        """Write a version that works, except for what `more` does."""
        self.write(APPLICATION.replace("{version}", version) + more)

    def write(self, source: str) -> None:
        """Write the file as editors do, in one step."""
        new = self.path.with_suffix(".new")
        new.write_text(source)
        new.replace(self.path)


@pytest.fixture
def application(tmp_path: Path) -> Application:
    return Application(tmp_path)


def versions(node: ClusterNode, clients: list[PacketClient]) -> set[bytes]:
    return {client.ask(*ASK)[1] for client in clients}


@contextmanager
def a_client_of_each_shard(node: ClusterNode) -> Iterator[list[PacketClient]]:
    """Two clients that stay: the node has two workers and gives them one each."""
    clients = [PacketClient(node.port) for _ in range(2)]
    try:
        yield clients
    finally:
        for client in clients:
            client.socket.close()


def wait_told(node: ClusterNode, what: str) -> None:
    """Wait until the node has told it, which takes as long as a start may."""
    wait_until(lambda: what in node.stderr, timeout_s=READY_TIMEOUT_S, what=repr(what))


def begun(node: ClusterNode, version: int) -> None:
    """Wait until the node has seen an edit."""
    wait_told(node, f"reload: version {version}: ")


def reloads(status: Any) -> tuple[int, int]:
    counters = status["counters"]
    return counters.get("reloads", 0), counters.get("reloads_failed", 0)


def lives(status: Any) -> list[Any]:
    """Return what tells the processes of a node from any others."""
    return [[child["pid"] for child in status[kind]] for kind in ("workers", "spares")]


def reloaded(node: ClusterNode, done: int, failed: int = 0, spares: int = 1) -> Any:
    """Return the status of a node that is complete after so many reloads."""
    return node.wait_status(
        lambda status: reloads(status) == (done, failed) and is_complete(status, spares),
        f"{done} reloads and {failed} that failed",
    )


def test_an_edit_is_served_by_all_workers_while_clients_stay(
    cluster_up: StartNode, application: Application, lane: str
):
    # Whatever the environment of the tests says of compiled modules.
    environment = {"PYTHONDONTWRITEBYTECODE": ""}
    node = cluster_up(*RELOAD, "--lane", lane, cwd=application.directory, env=environment)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 6) as load:
        assert versions(node, clients) == {b"one"}
        application.edit("two")
        after = reloaded(node, 1)
        assert versions(node, clients) == {b"two"}
        all_answered(load)
    assert after["gateway"]["pid"] == before["gateway"]["pid"]
    assert not {*pids(before), *spare_pids(before)} & {*pids(after), *spare_pids(after)}
    assert restarts(after) == [0, 0]
    assert "dead_letters" not in after["counters"]
    assert list(application.directory.glob("**/__pycache__/the_app*")) == []
    assert node.drain() == 0
    assert node.processes() == []
    assert node.stdout.count("ready ") == 1


def test_a_version_that_does_not_import_changes_nothing_and_is_told_and_mended(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 2):
        application.write(DOES_NOT_IMPORT)
        after = reloaded(node, 0, 1)
        assert lives(after) == lives(before)
        assert versions(node, clients) == {b"one"}
        assert (
            "cluster: reload: version 1 does not start: NameError: name 'Apx' is not defined "
            f"({application.path}, line 3); what runs goes on, and the next change is tried\n"
        ) in node.stderr
        assert node.stderr.count("Traceback") == 1
        application.write("def f(:\n")
        reloaded(node, 0, 2)
        assert f"SyntaxError: invalid syntax ({application.path}, line 1); what" in node.stderr
        application.edit("three")
        reloaded(node, 1, 2)
        assert versions(node, clients) == {b"three"}
    assert node.drain() == 0
    assert list(node.run_dir.glob("*-failure.json")) == []


@pytest.mark.long
def test_a_worker_that_is_killed_while_the_edit_is_broken_is_succeeded_by_the_old_version(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 2) as load:
        application.write(DOES_NOT_IMPORT)
        reloaded(node, 0, 1)
        os.kill(pids(before)[0], signal.SIGKILL)
        after = node.wait_restarts(1, 0)
        assert pids(after) == [*spare_pids(before), pids(before)[1]]
        assert versions(node, clients) == {b"one"}
        all_answered(load)
        # Now there is no process of the old version that could take over from the next one.
        os.kill(pids(after)[0], signal.SIGKILL)
        told = "cluster: reload: worker 0 has no process, and none of an earlier version waits"
        wait_until(lambda: told in node.stderr, timeout_s=20, what="what is missing")
        wait_until(
            lambda: node.stderr.count("exit code 2; successor in") >= 5,
            timeout_s=30,
            what="more failures than a worker is given",
        )
        assert node.process.poll() is None
        application.edit("two")
        reloaded(node, 1, 1)
        assert versions(node, clients) == {b"two"}
    assert node.stderr.count("does not start") == 1
    assert "gave up" not in node.stderr
    assert node.drain() == 0


def wait_for_version(node: ClusterNode, clients: list[PacketClient], version: str) -> None:
    """Wait until all `clients` are answered by it, and nobody by another."""
    wait_until(
        lambda: versions(node, clients) == {version.encode()},
        timeout_s=20,
        what=f"all on {version}",
    )


@pytest.mark.long
def test_of_two_edits_in_a_row_the_last_one_is_run(cluster_up: StartNode, application: Application):
    node = cluster_up(*RELOAD, cwd=application.directory)
    complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 2):
        for first, last, pause_s in (("two", "six", 0.0), ("ten", "few", 0.4)):
            # Of one length, and mostly within a second: a compiled file would not tell them apart.
            application.edit(first)
            time.sleep(pause_s)
            application.edit(last)
            wait_for_version(node, clients, last)
        node.wait_status(is_complete, "all workers and spares")
        assert versions(node, clients) == {b"few"}
    assert restarts(node.status()) == [0, 0]
    assert node.drain() == 0


@pytest.mark.long
def test_a_version_whose_on_start_raises_is_served_by_a_spare_of_the_one_before(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 2):
        application.edit("two", DOES_NOT_START)
        after = node.wait_status(
            lambda status: reloads(status) == (0, 1) and spare_pids(before)[0] in pids(status),
            "the handover back",
        )
        assert len(set(pids(before)) & set(pids(after))) == 1  # nobody else was replaced
        wait_until(lambda: versions(node, clients) == {b"one"}, what="the version before")
        assert "version 1 does not start: RuntimeError: no database here (" in node.stderr
        application.edit("three")
        reloaded(node, 1, 1)
        assert versions(node, clients) == {b"three"}
    assert node.drain() == 0


@pytest.mark.long
def test_it_works_without_spares(cluster_up: StartNode, application: Application):
    config = write_config(application.directory, "[workers]\ncount = 1\nspares = 0\n")
    node = cluster_up(*RELOAD, *config, cwd=application.directory)
    before = complete(node, spares=0)
    with PacketClient(node.port) as client, under_load(node, 2):
        application.write(DOES_NOT_IMPORT)
        assert pids(reloaded(node, 0, 1, spares=0)) == pids(before)
        application.edit("two")
        after = reloaded(node, 1, 1, spares=0)
        assert client.ask(*ASK) == (ASK[0], b"two")
        assert pids(after) != pids(before)
        assert restarts(after) == [0]
    wait_until(lambda: len(node.processes()) == 3, what="the end of all others")
    assert node.drain() == 0


@pytest.mark.long
def test_a_worker_killed_in_the_middle_of_a_reload_is_succeeded_and_nothing_is_lost(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    with a_client_of_each_shard(node) as clients, under_load(node, 4) as load:
        for number in range(3):
            before = complete(node)
            application.edit(f"version {number}")
            begun(node, number + 1)
            for pid in pids(before):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it was replaced already
            reloaded(node, number + 1)
            assert versions(node, clients) == {b"version %d" % number}
            all_answered(load)
    assert node.drain() == 0


@pytest.mark.long
def test_a_worker_that_does_not_end_is_killed_in_time_and_no_packet_is_blamed(
    cluster_up: StartNode, application: Application
):
    slow = """
import time
@app.on_packet(7)
def sleep(session, payload):
    time.sleep(3600)
"""
    text = "[workers]\ncount = 1\nmax_redeliveries = 1\n[supervisor]\ndrain_timeout_s = 0.5\n"
    application.edit("one", slow)
    config = write_config(application.directory, text)
    node = cluster_up(*RELOAD, *config, cwd=application.directory)
    complete(node)
    with PacketClient(node.port) as client:
        client.send(7, b"")
        node.wait_status(lambda status: status["workers"][0]["in_hand"], "the packet in hand")
        application.edit("two")
        assert client.receive() == (7, b"")  # the handler of the new version, for the same packet
        assert client.ask(*ASK) == (ASK[0], b"two")
    after = reloaded(node, 1)
    assert "has not ended in time for its successor; killed" in node.stderr
    assert "dead_letters" not in after["counters"]
    assert restarts(after) == [0]
    assert node.drain() == 0


def test_a_drain_in_the_middle_of_a_reload_ends_everybody(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    complete(node)
    application.edit("two")
    begun(node, 1)
    assert node.drain() == 0
    assert node.processes() == []


@pytest.mark.long
def test_a_gateway_killed_after_an_edit_is_succeeded_with_the_new_version(
    cluster_up: StartNode, application: Application
):
    node = cluster_up(*RELOAD, cwd=application.directory)
    before = complete(node)
    application.edit("two")
    begun(node, 1)
    os.kill(before["gateway"]["pid"], signal.SIGKILL)
    after = node.wait_status(
        lambda status: status["epoch"] > before["epoch"] and is_complete(status), "the next epoch"
    )
    with a_client_of_each_shard(node) as clients:
        assert versions(node, clients) == {b"two"}
        application.edit("three")
        # Not by the counter: that of the version before may come behind that it serves.
        wait_told(node, "reload: all workers run version 2,")
        assert not {*pids(complete(node))} & {*pids(after)}
        assert versions(node, clients) == {b"three"}
    assert node.drain() == 0


@pytest.mark.long
def test_only_the_directories_that_were_asked_for_are_watched(
    cluster_up: StartNode, application: Application
):
    for name in ("watched", "other"):
        (application.directory / name).mkdir()
    node = cluster_up(*RELOAD, "--reload-dir", "watched", cwd=application.directory)
    complete(node)
    (application.directory / "other" / "file.py").write_text("")
    (application.directory / "watched" / "file.txt").write_text("")
    application.edit("two")
    (application.directory / "watched" / "file.py").write_text("")
    reloaded(node, 1)
    assert re.findall("reload: version .* changed", node.stderr) == [
        "reload: version 1: file.py changed"
    ]
    assert node.drain() == 0


@pytest.mark.parametrize("mistake", ["does_not_import", "does_not_start"])
def test_a_first_version_that_does_not_start_waits_for_one_that_does(
    cluster_up_unready: StartNode, application: Application, mistake: str
):
    if mistake == "does_not_import":
        application.write(DOES_NOT_IMPORT)
    else:
        application.edit("one", DOES_NOT_START)
    node = cluster_up_unready(*RELOAD, cwd=application.directory)
    wait_told(node, "version 0 does not start")
    told = node.stderr
    assert node.process.poll() is None
    application.edit("two", DOES_NOT_START)
    wait_told(node, "version 1 does not start")
    assert node.stdout == ""
    application.edit("three")
    node.wait_ready()
    with a_client_of_each_shard(node) as clients:
        assert versions(node, clients) == {b"three"}
    # Each is told once, though every worker and spare has met it.
    assert told.count("Traceback") == 1
    assert node.stderr.count("Traceback") == 2
    assert "its clients wait" not in node.stderr
    assert node.drain() == 0
    assert node.processes() == []


def test_a_node_whose_first_version_does_not_start_can_be_told_to_end(
    cluster_up_unready: StartNode, application: Application
):
    application.write(DOES_NOT_IMPORT)
    node = cluster_up_unready(*RELOAD, cwd=application.directory)
    wait_told(node, "version 0 does not start")
    assert node.drain() == 0
    assert node.stdout == ""
    assert node.processes() == []


@pytest.mark.parametrize("app", ["no_such_app:app", "the_app:no_such_name"])
def test_an_application_that_is_not_there_is_no_matter_of_its_files(
    cluster_up_unready: StartNode, application: Application, app: str
):
    node = cluster_up_unready("--reload", "--app", app, cwd=application.directory)
    assert node.wait_exit() == 2
    assert app.split(":")[0] in node.told_reason()
    assert node.processes() == []


def asked_to_reload(node: ClusterNode, *arguments: str) -> tuple[int, str]:
    """Run `cluster reload`, and return its exit code and what it says."""
    done = run_cluster("reload", "--run-dir", str(node.run_dir), *arguments)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_node_that_watches_nothing_runs_an_edit_when_it_is_asked_to(
    cluster_up: StartNode, application: Application, lane: str
):
    node = cluster_up("--app", "the_app:app", "--lane", lane, cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 6) as load:
        application.edit("the second one")
        assert versions(node, clients) == {b"one"}
        assert asked_to_reload(node) == (0, "")
        assert versions(node, clients) == {b"the second one"}
        all_answered(load)
    after = reloaded(node, 1)
    assert after["gateway"]["pid"] == before["gateway"]["pid"]
    assert not {*pids(before), *spare_pids(before)} & {*pids(after), *spare_pids(after)}
    assert restarts(after) == [0, 0]
    assert "dead_letters" not in after["counters"]
    assert node.drain() == 0


def test_whoever_asks_is_told_when_a_shard_is_left_without_a_worker(
    cluster_up: StartNode, application: Application
):
    config = write_config(application.directory, "[workers]\ncount = 2\nspares = 0\n")
    node = cluster_up("--app", "the_app:app", *config, cwd=application.directory)
    left = "; worker 0 has no process, and the clients there wait for a version that starts\n"
    with a_client_of_each_shard(node) as clients:
        application.write(DOES_NOT_IMPORT)
        code, said = asked_to_reload(node)
        assert (code, said.endswith("line 3)\n")) == (1, True)
        application.edit("one that raises", DOES_NOT_START)
        code, said = asked_to_reload(node)
        assert (code, "no database here" in said, said.endswith(left)) == (1, True, True)
        application.write(DOES_NOT_IMPORT)
        code, said = asked_to_reload(node)
        assert (code, said.endswith("line 3)" + left)) == (1, True)
        application.edit("the last one")
        assert asked_to_reload(node) == (0, "")
        assert versions(node, clients) == {b"the last one"}
    assert node.drain() == 0


def test_whoever_asks_for_a_version_that_does_not_start_is_told_why_and_nothing_changes(
    cluster_up: StartNode, application: Application
):
    node = cluster_up("--app", "the_app:app", cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients, under_load(node, 2):
        application.write(DOES_NOT_IMPORT)
        reason = f"NameError: name 'Apx' is not defined ({application.path}, line 3)"
        assert asked_to_reload(node) == (1, f"cluster: not reloaded: {reason}\n")
        assert lives(reloaded(node, 0, 1)) == lives(before)
        assert node.stderr.count("Traceback") == 1
        assert f"does not start: {reason}; what runs goes on, until another is asked for\n" in (
            node.stderr
        )
        os.kill(pids(before)[0], signal.SIGKILL)
        assert versions(node, clients) == {b"one"}
        application.edit("one that raises", DOES_NOT_START)
        code, said = asked_to_reload(node)
        assert (code, "no database here" in said) == (1, True)
        application.edit("the last one")
        assert asked_to_reload(node) == (0, "")
        assert versions(node, clients) == {b"the last one"}
    assert node.drain() == 0


def test_a_reload_has_ended_when_spares_of_the_new_version_wait(
    cluster_up: StartNode, application: Application
):
    config = write_config(application.directory, "[workers]\ncount = 1\n")
    node = cluster_up("--app", "the_app:app", *config, cwd=application.directory)
    before = complete(node)
    application.edit("two", "\nimport time\ntime.sleep(1.0)\n")
    assert asked_to_reload(node) == (0, "")
    [spare] = spare_pids(node.status())
    assert spare not in spare_pids(before)
    application.write(DOES_NOT_IMPORT)
    assert asked_to_reload(node)[0] == 1
    with PacketClient(node.port) as client:
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        assert client.ask(*ASK) == (ASK[0], b"two")
    assert node.worker_pids() == [spare]
    assert node.drain() == 0


def test_a_reload_does_not_wait_for_a_spare_that_does_not_come(
    cluster_up: StartNode, application: Application
):
    config = write_config(application.directory, "[workers]\ncount = 1\n")
    node = cluster_up("--app", "the_app:app", *config, cwd=application.directory)
    complete(node)
    once = "import os\nos.mkdir('begun')\n"  # the second one to import it cannot
    application.edit("two", once)
    assert asked_to_reload(node) == (0, "")
    with PacketClient(node.port) as client:
        assert client.ask(*ASK) == (ASK[0], b"two")
    assert node.status()["spares"] == []
    assert node.drain() == 0


def test_a_version_whose_on_start_hangs_is_served_by_a_spare_of_the_one_before(
    cluster_up: StartNode, application: Application
):
    hangs = "\nimport time\n@app.on_start\ndef hang():\n    time.sleep(3600)\n"
    config = write_config(application.directory, "[workers]\ncount = 2\nworker_timeout_s = 1.0\n")
    node = cluster_up("--app", "the_app:app", *config, cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients:
        application.edit("two", hangs)
        reason = "worker 0 ended with signal 9 (SIGKILL) before it was ready"
        assert asked_to_reload(node) == (1, f"cluster: not reloaded: {reason}\n")
        assert versions(node, clients) == {b"one"}
        after = reloaded(node, 0, 1, spares=0)
        assert pids(after) == [spare_pids(before)[0], pids(before)[1]]
        application.edit("three")
        assert asked_to_reload(node) == (0, "")
        assert versions(node, clients) == {b"three"}
    assert node.drain() == 0


def test_a_version_whose_on_start_waits_for_ever_is_left_for_the_next_one(
    cluster_up: StartNode, application: Application
):
    waits = "\nimport asyncio\n@app.on_start\nasync def wait():\n    await asyncio.Event().wait()\n"
    node = cluster_up("--app", "the_app:app", cwd=application.directory)
    before = complete(node)
    with a_client_of_each_shard(node) as clients:
        application.edit("two", waits)
        assert asked_to_reload(node, "--timeout", "0.3")[0] == 1
        status = node.wait_status(
            lambda status: (
                [worker["state"] for worker in status["workers"]] == ["starting", "ready"]
            ),
            "the first worker's successor",
        )
        assert pids(status)[1] == pids(before)[1]
        application.edit("three")
        assert asked_to_reload(node) == (0, "")
        assert versions(node, clients) == {b"three"}
    assert restarts(reloaded(node, 1)) == [0, 0]
    assert node.drain() == 0


def test_who_waits_for_a_reload_is_told_that_the_node_is_about_to_end(
    cluster_up: StartNode, application: Application
):
    node = cluster_up("--app", "the_app:app", cwd=application.directory)
    complete(node)
    stays = "\n@app.on_drain\ndef stay(seconds):\n    pass\n"
    application.edit("one that keeps its sessions", stays)
    assert asked_to_reload(node) == (0, "")
    with PacketClient(node.port) as client:
        assert client.ask(*ASK) == (ASK[0], b"one that keeps its sessions")
        application.edit("two", "\nimport time\ntime.sleep(3600)\n")
        command = cluster_command("reload", "--run-dir", str(node.run_dir))
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, env=cluster_environment(), text=True
        ) as asker:
            begun(node, 2)
            node.signal(signal.SIGTERM)
            said = asker.communicate(timeout=EXIT_TIMEOUT_S)[1]
        assert client.ask(*ASK) == (ASK[0], b"one that keeps its sessions")
    assert (asker.returncode, said) == (1, "cluster: not reloaded: the node is about to end\n")
    assert node.wait_exit() == 0


def test_who_asks_for_a_reload_does_not_wait_for_ever(
    cluster_up: StartNode, application: Application, tmp_path: Path
):
    node = cluster_up("--app", "the_app:app", cwd=application.directory)
    before = complete(node)
    gate = tmp_path / "gate"
    waits = f"\nimport pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists():\n"
    application.edit("the second one", waits + "    time.sleep(0.01)\n")
    code, said = asked_to_reload(node, "--timeout", "0.3")
    assert (code, said) == (
        1,
        "cluster: not reloaded: no outcome within 0.3 s; it goes on, and is counted in "
        "`cluster status`\n",
    )
    asker = subprocess.Popen(
        cluster_command("reload", "--run-dir", str(node.run_dir)),
        stderr=subprocess.PIPE,
        env=cluster_environment(),
        text=True,
    )
    with asker:
        begun(node, 2)
        os.kill(before["gateway"]["pid"], signal.SIGKILL)
        said = asker.communicate(timeout=EXIT_TIMEOUT_S)[1]
    assert asker.returncode == 1
    assert said.startswith("cluster: not reloaded: the gateway has ended meanwhile: ")
    gate.touch()
    complete(node)
    assert node.drain() == 0
    assert asked_to_reload(node) == (4, f"cluster: nothing runs in {node.run_dir}\n")
