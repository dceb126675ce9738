"""The command line: what it takes, what it refuses, what it calls."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from cluster.cli import commands
from cluster.iocp import NetAddress
from cluster.shared.config import Config
from cluster.shared.dead_letters import DEAD_LETTERS, DeadLetter
from cluster.shared.messages import ProtocolVersionError
from cluster.shared.node_status import (
    CommitWaits,
    GatewayStatus,
    InHand,
    LinkStatus,
    MembershipStatus,
    NodeStatus,
    RemoteWorker,
    SpareStatus,
    WorkerStatus,
)
from cluster.shared.run_directory import RunDirectory, default_run_directory
from tests.bots.echo_server import echo_server

ROOT = Path(__file__).parents[1]

STATUS = NodeStatus(
    node=3,
    epoch=5,
    gateway=GatewayStatus(pid=4711, driver="readiness", sessions=9),
    workers=[
        WorkerStatus(
            shard=0,
            pid=4712,
            state="ready",
            restarts=0,
            lane="zmq",
            waits=CommitWaits(median_s=0.0031, worst_s=1.2345, counts=[1], sum_s=1.0),
        ),
        WorkerStatus(shard=1, pid=None, state="backoff", restarts=7, lane="zmq"),
    ],
    spares=[SpareStatus(pid=4713)],
    links=[],
    counters={"sends": 123},
)


class Called:
    """Stands in for what a command calls, and keeps what it was called with."""

    def __init__(self, result: object = 0) -> None:
        self.result = result
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: object) -> object:
        self.arguments = arguments
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def run(*arguments: str) -> Any:
    return CliRunner().invoke(commands.app, list(arguments))


def run_process(*arguments: str, timeout_s: float = 30.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called()
    monkeypatch.setattr("cluster.supervisor.supervisor.supervise", called)
    monkeypatch.setattr("cluster.shared.logs.configure_logging", Called())
    return called


@pytest.fixture
def read_status(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called(STATUS)
    monkeypatch.setattr("cluster.supervisor.status.read_status", called)
    return called


# -- up --------------------------------------------------------------------------------------------


def test_up_takes_its_exit_code_from_the_supervisor(supervise: Called):
    supervise.result = 3
    done = run("up")
    assert (done.exit_code, done.output) == (3, "")
    config, run_directory, watched = supervise.arguments
    assert config == Config()
    assert watched == []
    assert run_directory.path == default_run_directory()


def test_every_flag_of_up_sets_its_key(supervise: Called, tmp_path: Path):
    done = run(
        *("up", "--listen", "[::1]:99", "--workers", "5", "--app", "shop.main:app"),
        *("--driver", "readiness", "--lane", "zmq", "--run-dir", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    config, run_directory, _ = supervise.arguments
    assert (config.node.listen, config.workers.count) == ("[::1]:99", 5)
    assert (config.node.app, config.gateway.driver, config.lane.kind) == (
        "shop.main:app",
        "readiness",
        "zmq",
    )
    assert run_directory.path == tmp_path


def test_a_flag_beats_the_file_and_the_file_the_default(supervise: Called, tmp_path: Path):
    file = tmp_path / "cluster.toml"
    run_dir = str(tmp_path / "run")
    file.write_text(f"[node]\nrun_dir = {json.dumps(run_dir)}\n[workers]\ncount = 4\nspares = 3\n")
    assert run("up", "--config", str(file), "--workers", "9").exit_code == 0
    config, run_directory, _ = supervise.arguments
    assert (config.workers.count, config.workers.spares) == (9, 3)
    assert str(run_directory.path) == run_dir


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workers", "0"], "cluster: --workers: workers.count = 0: expected an integer from 1"),
        (["--listen", "here"], "cluster: --listen: node.listen = "),
        (["--app", "noname"], "cluster: --app: node.app = "),
        (["--config", "/no/such/file.toml"], "cluster: /no/such/file.toml: cannot be read"),
    ],
)
def test_a_wrong_value_is_one_line_and_code_2(supervise: Called, arguments: list[str], told: str):
    done = run("up", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert supervise.arguments == ()


def test_reload_names_the_directories_to_watch(
    supervise: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run("up", "--reload").exit_code == 0
    assert supervise.arguments[2] == [tmp_path]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert run("up", "--reload", "--reload-dir", "one", "--reload-dir", "two").exit_code == 0
    assert supervise.arguments[2] == [tmp_path / "one", tmp_path / "two"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--reload", "--reload-dir", "nowhere"], "--reload-dir: 'nowhere': expected an existing"),
        (["--reload-dir", "."], "--reload-dir: '.': pass --reload as well, or leave it out"),
    ],
)
def test_what_cannot_be_watched_is_one_line_and_code_2(
    supervise: Called, arguments: list[str], told: str
):
    done = run("up", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"cluster: {told}")
    assert done.stderr.count("\n") == 1
    assert supervise.arguments == ()


@pytest.mark.parametrize(
    "error", [OSError("no more processes"), ProtocolVersionError(7)], ids=lambda error: str(error)
)
def test_an_expected_error_is_one_line_and_code_2(supervise: Called, error: Exception):
    supervise.result = error
    done = run("up")
    assert (done.exit_code, done.stderr) == (2, f"cluster: {error}\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["up", "--driver", "epoll"], ["--driver", "'epoll'", "'readiness'"]),
        (["up", "--lane=pigeon"], ["--lane", "'pigeon'", "'shm'"]),
        (["up", "--workers", "many"], ["--workers", "'many'", "integer"]),
        (["up", "--workers"], ["--workers", "requires an argument"]),
        (["up", "--unknown"], ["--unknown"]),
        (["up", "more"], ["more"]),
        (["up", "talk:app"], ["talk:app", "write --app talk:app"]),
        (["gateway"], ["Missing", "--run-dir"]),
        (["worker", "--run-dir", "x"], ["Missing", "--shard"]),
        (["worker", "--shard", "-1", "--run-dir", "x"], ["--shard", "-1", "0"]),
        (["bots"], ["Missing", "--connect"]),
        (["bots", "--connect", "127.0.0.1:1", "--sessions", "0"], ["--sessions", "0", "1"]),
        (["bots", "--connect", "127.0.0.1:1", "--size", "65532"], ["--size", "65532", "65531"]),
        (["bots", "--connect", "127.0.0.1:1", "--depth", "0"], ["--depth", "0", "1"]),
        (["bots", "--connect", "127.0.0.1:1", "--seconds", "-1"], ["--seconds", "-1", "0"]),
        (["nothing"], ["nothing"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_command_line_is_one_line_and_code_2(arguments: list[str], told: list[str]):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("cluster: ")
    assert done.stderr.count("\n") == 1
    command = "" if arguments == ["nothing"] else f" {arguments[0]}"
    assert done.stderr.endswith(f"; see cluster{command} --help\n")
    for word in told:
        assert word in done.stderr
    assert done.stdout == ""


def test_without_a_command_the_help_is_shown():
    done = run()
    assert done.exit_code == 2
    assert "Usage: " in done.output
    assert "Commands:" in done.output


# -- gateway and worker ----------------------------------------------------------------------------


def test_gateway_leaves_its_configuration_for_the_workers(
    monkeypatch: pytest.MonkeyPatch, supervise: Called, tmp_path: Path
):
    run_gateway = Called(2)
    monkeypatch.setattr("cluster.gateway.process.run_gateway", run_gateway)
    done = run("gateway", "--run-dir", str(tmp_path), "--workers", "7", "--listen", "127.0.0.1:5")
    assert done.exit_code == 2
    run_directory, config = run_gateway.arguments
    assert run_directory.path == tmp_path
    assert config.workers.count == 7
    assert run_directory.read_config() == config


def test_gateway_keeps_away_from_the_configuration_of_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, supervise: Called, tmp_path: Path
):
    run_gateway = Called()
    monkeypatch.setattr("cluster.gateway.process.run_gateway", run_gateway)
    monkeypatch.setattr("cluster.shared.run_directory.GATEWAY_GONE_WAIT_S", 0.0)
    directory = RunDirectory(tmp_path)
    directory.write_config(Config())
    with directory.lock("gateway"):
        done = run("gateway", "--run-dir", str(tmp_path), "--workers", "7")
    assert done.exit_code == 2
    assert f"its gateway is pid {os.getpid()}" in done.stderr
    assert directory.read_config() == Config()
    assert run_gateway.arguments == ()


def test_worker_is_called_with_its_shard(
    monkeypatch: pytest.MonkeyPatch, supervise: Called, tmp_path: Path
):
    run_worker = Called(1)
    monkeypatch.setattr("cluster.worker.process.run_worker", run_worker)
    assert run("worker", "--shard", "3", "--run-dir", str(tmp_path)).exit_code == 1
    run_directory, shard = run_worker.arguments
    assert (run_directory.path, shard) == (tmp_path, 3)


def test_a_worker_of_another_machine_is_called_with_all_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, supervise: Called, tmp_path: Path
):
    run_remote_worker = Called(1)
    monkeypatch.setattr("cluster.worker.process.run_remote_worker", run_remote_worker)
    arguments = ["--gateway", "tcp://[::1]:7900", "--keys", "k", "--app", "a:b"]
    done = run("worker", "--shard", "3", *arguments, "--run-dir", str(tmp_path))
    assert (done.exit_code, done.stderr) == (1, "")
    gateway, keys_dir, shard, app, run_directory = run_remote_worker.arguments
    assert (gateway, keys_dir, shard, app) == (NetAddress("::1", 7900), Path("k"), 3, "a:b")
    assert run_directory.path == tmp_path
    assert run("worker", "--shard", "3", *arguments[:4]).exit_code == 1
    assert run_remote_worker.arguments[3] is None
    assert run_remote_worker.arguments[4].path == default_run_directory()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ["--run-dir: missing", "--gateway"]),
        (["--gateway", "tcp://10.0.0.1:7900"], ["--keys: missing"]),
        (["--gateway", "10.0.0.1:7900", "--keys", "k"], ["--gateway: '10.0.0.1:7900'", "tcp://"]),
        (["--run-dir", "x", "--keys", "k"], ["--keys: 'k': only with --gateway"]),
        (["--run-dir", "x", "--app", "a:b"], ["--app: 'a:b': only with --gateway"]),
        (["--run-dir", "x", "--log-level", "debug"], ["--log-level: 'debug': only with"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_worker_here_and_one_elsewhere_are_not_mixed_up(
    supervise: Called, arguments: list[str], told: list[str]
):
    done = run("worker", "--shard", "3", *arguments)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for word in told:
        assert word in done.stderr


# -- keys ------------------------------------------------------------------------------------------


def test_keys_are_made_and_never_replaced_unasked(tmp_path: Path):
    directory = tmp_path / "keys"
    done = run("keys", str(directory))
    assert (done.exit_code, done.stderr) == (0, "")
    made = [Path(line) for line in done.stdout.splitlines()]
    assert made == [
        directory / name
        for name in ("gateway.key", "gateway.key_secret", "worker.key", "worker.key_secret")
    ]
    before = [path.read_bytes() for path in made]
    again = run("keys", str(directory))
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.startswith(f"cluster: {directory / 'gateway.key'} is there already")
    assert again.stderr.count("\n") == 1
    assert [path.read_bytes() for path in made] == before
    one = run("keys", str(directory), "--worker", "oslo", "--worker", "rome")
    assert one.stdout.split() == [
        str(directory / name)
        for name in ("oslo.key", "oslo.key_secret", "rome.key", "rome.key_secret")
    ]
    assert run("keys", str(directory), "--replace").exit_code == 0
    assert not {path.read_bytes() for path in made} & set(before)


def test_a_name_for_a_key_is_checked(tmp_path: Path):
    done = run("keys", str(tmp_path), "--worker", "../gateway")
    assert done.exit_code == 2
    assert done.stderr.startswith("cluster: --worker: '../gateway': expected a name of")
    assert list(tmp_path.iterdir()) == []


# -- status ----------------------------------------------------------------------------------------


def test_status_tells_people_which_shards_are_served_from_elsewhere(
    read_status: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    status = read_status.result
    assert isinstance(status, NodeStatus)
    there = RemoteWorker(key="berlin", address="10.0.0.2")
    nobody = RemoteWorker(key=None, address=None)
    workers = [
        msgspec.structs.replace(status.workers[0], shard=0, pid=17, remote=there),
        msgspec.structs.replace(status.workers[0], shard=1, pid=None, remote=nobody),
    ]
    gateway = msgspec.structs.replace(status.gateway, remote_listen="10.0.0.1:7900")
    read_status.result = msgspec.structs.replace(status, workers=workers, gateway=gateway)
    done = run("status", "--run-dir", str(tmp_path))
    assert "workers on other machines connect at tcp://10.0.0.1:7900" in done.stdout
    assert "17 (berlin at 10.0.0.2)" in done.stdout
    assert "- (elsewhere)" in done.stdout


def test_status_as_json_is_the_promised_object(read_status: Called, tmp_path: Path):
    done = run("status", "--json", "--run-dir", str(tmp_path))
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "node": 3,
        "epoch": 5,
        "gateway": {"pid": 4711, "driver": "readiness", "sessions": 9},
        "workers": [
            {
                "shard": 0,
                "pid": 4712,
                "state": "ready",
                "restarts": 0,
                "lane": "zmq",
                "in_hand": None,
                "awaiting": None,
                "waits": {"median_s": 0.0031, "worst_s": 1.2345, "counts": [1], "sum_s": 1.0},
            },
            {
                "shard": 1,
                "pid": None,
                "state": "backoff",
                "restarts": 7,
                "lane": "zmq",
                "in_hand": None,
                "awaiting": None,
                "waits": None,
            },
        ],
        "spares": [{"pid": 4713}],
        "links": [],
        "counters": {"sends": 123},
        "membership": None,
    }
    assert read_status.arguments[0].path == tmp_path


def test_status_for_people_shows_the_same(read_status: Called):
    done = run("status")
    assert done.exit_code == 0
    for shown in (
        "node 3, epoch 5",
        "4711",
        "4712",
        "backoff",
        "9 sessions",
        "spares 4713",
        "sends 123",
    ):
        assert shown in done.stdout


def statuses(monkeypatch: pytest.MonkeyPatch, *following: NodeStatus | None) -> None:
    """Have each read of the status find the next of these; then somebody presses Ctrl-C."""
    results = iter(following)

    def read(directory: object) -> NodeStatus | None:
        for status in results:
            return status
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.supervisor.status.read_status", read)


def test_status_again_and_again_shows_what_grows_by_the_second(monkeypatch: pytest.MonkeyPatch):
    more = {"sends": 1_123, "dead_letters": 0, "sessions_held": 1_007}
    again = msgspec.structs.replace(STATUS, counters=more)
    reborn = msgspec.structs.replace(again, epoch=6, counters={"sends": 5})
    statuses(monkeypatch, STATUS, again, again, reborn)
    done = run("status", "--watch", "0.1")
    assert done.exit_code == 0
    first, second, third, fourth = done.stdout.strip().split("\n\n")
    for block in (first, second, third, fourth):
        assert block.startswith("node 3, epoch ")
        assert "spares 4713" in block
    assert "sends" not in first
    assert "\nsessions_held 1,007 now" in second
    rate = re.search(r"\nsends ([\d,.]+)/s", second)
    assert rate
    assert 0 < float(rate[1].replace(",", "")) <= 1_000 / 0.1
    assert "dead_letters" not in second
    assert "sends" not in third
    assert "sends" not in fourth


def test_status_again_and_again_as_json_until_the_node_has_ended(monkeypatch: pytest.MonkeyPatch):
    statuses(monkeypatch, STATUS, STATUS, None)
    done = run("status", "--watch", "0.1", "--json")
    assert done.exit_code == 4
    lines = done.stdout.splitlines()
    assert [msgspec.json.decode(line, type=NodeStatus) for line in lines] == [STATUS, STATUS]
    assert "nothing runs in " in done.stderr


def test_status_for_people_says_that_the_gateway_does_not_answer(read_status: Called):
    read_status.result = msgspec.structs.replace(STATUS, counters={})
    shown = run("status").stdout
    assert "gateway pid 4711, readiness, does not answer: as last known\n" in shown
    assert "sessions" not in shown
    assert "4712" in shown


def test_status_for_people_shows_the_membership(read_status: Called):
    membership = MembershipStatus(
        source="etcd",
        state="lease_lost",
        members=[1, 3],
        lease_left_s=0.0,
        heard_s_ago=12.34,
        failures=5,
        reason="http://a:2379: refused",
    )
    read_status.result = msgspec.structs.replace(STATUS, membership=membership)
    assert (
        "membership etcd: lease_lost, 0.0 s of its lease left, heard from the store 12.3 s ago; "
        "members 1, 3: http://a:2379: refused\n"
    ) in run("status").stdout
    static = MembershipStatus(source="static", state="member", members=[3])
    read_status.result = msgspec.structs.replace(STATUS, membership=static)
    assert "membership static: member; members 3\n" in run("status").stdout


def test_status_for_people_shows_what_stands_in_brackets(read_status: Called):
    gateway = msgspec.structs.replace(STATUS.gateway, remote_listen="[fd00::3]:7900")
    membership = MembershipStatus(
        source="etcd", state="member", members=[3], reason="http://[fd00::9]:2379: [/bold] :eyes:"
    )
    link = LinkStatus(
        node=4,
        address="[fd00::4]:7800",
        state="backoff",
        waiting_records=0,
        waiting_bytes=0,
        failures=1,
        reason="cannot connect to [fd00::4]:7800: refused",
    )
    read_status.result = msgspec.structs.replace(
        STATUS, gateway=gateway, membership=membership, links=[link]
    )
    shown = run("status").stdout
    for line in (
        "workers on other machines connect at tcp://[fd00::3]:7900",
        "members 3: http://[fd00::9]:2379: [/bold] :eyes:",
        "link to node 4 at [fd00::4]:7800: backoff: cannot connect to [fd00::4]:7800: refused",
    ):
        assert f"{line}\n" in shown


def test_status_of_nothing_is_code_4(read_status: Called, tmp_path: Path):
    read_status.result = None
    done = run("status", "--json", "--run-dir", str(tmp_path))
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == f"cluster: nothing runs in {tmp_path}\n"


def test_status_names_the_nodes_that_run_in_folders_and_the_remedy(tmp_path: Path):
    directories = [RunDirectory(tmp_path / "run" / f"node-{n}") for n in (1, 2, 10)]
    for directory in directories:
        directory.create()
    base = tmp_path / "run"
    base.chmod(0o700)
    (base / "node-x").mkdir()
    done = run("status", "--run-dir", str(base))
    assert (done.exit_code, done.stdout) == (4, "")
    have_run = "nodes have run in its folders node-1, node-2, node-10"
    assert done.stderr == f"cluster: nothing runs in {base}; {have_run}\n"
    with directories[1].lock("supervisor"), directories[2].lock("gateway"):
        done = run("status", "--run-dir", str(base))
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == (
        f"cluster: nothing runs in {base} itself; nodes run in its folders node-2, node-10: "
        f"pass --run-dir {base / 'node-2'}\n"
    )


def test_status_and_dead_letters_look_where_the_configuration_says(
    read_status: Called, tmp_path: Path
):
    read_status.result = None
    file = tmp_path / "cluster.toml"
    said = tmp_path / "said"
    said.mkdir(mode=0o700)
    file.write_text(f"[node]\nrun_dir = {json.dumps(str(said))}\n")
    config = ("--config", str(file))
    assert run("status", *config).stderr == f"cluster: nothing runs in {said}\n"
    flag = ("--run-dir", str(tmp_path))
    assert run("status", *config, *flag).stderr == f"cluster: nothing runs in {tmp_path}\n"
    assert run("dead-letters", *config).stderr == f"cluster: no dead letters in {said}\n"
    file.write_text("[node]\nrun_dir = 3\n")
    for command in ("status", "dead-letters"):
        done = run(command, *config)
        assert done.exit_code == 2
        assert "node.run_dir" in done.stderr
        assert done.stderr.count("\n") == 1


def test_status_for_people_shows_what_is_in_hand(read_status: Called):
    packet = InHand(session=0xABC, packet_id=3, sequence=4, for_s=1.25)
    event = InHand(session=0xDEF, packet_id=None, sequence=None, for_s=7.0)
    workers = [
        msgspec.structs.replace(worker, in_hand=in_hand)
        for worker, in_hand in zip(STATUS.workers, (packet, event), strict=True)
    ]
    read_status.result = msgspec.structs.replace(STATUS, workers=workers)
    shown = " ".join(run("status").stdout.replace("│", " ").split())
    for word in ("packet 4", "(id 3)", "0xabc", "1.2 s", "an event", "0xdef"):
        assert word in shown


def test_status_for_people_shows_how_long_packets_wait(read_status: Called):
    read_status.result = STATUS
    shown = " ".join(run("status").stdout.replace("│", " ").split())
    assert "4712 ready 0 zmq 3.1, 1,234 ms" in shown
    assert "backoff 7 zmq -" in shown


def test_status_for_people_shows_what_has_waited_longest_in_a_coroutine(read_status: Called):
    packet = InHand(session=0xABC, packet_id=3, sequence=4, for_s=61.25)
    workers = [msgspec.structs.replace(worker, awaiting=packet) for worker in STATUS.workers]
    read_status.result = msgspec.structs.replace(STATUS, workers=workers)
    shown = " ".join(run("status").stdout.replace("│", " ").split())
    for word in ("shard 1 awaits longest: packet 4 (id 3) of 0xabc for 61.2 s",):
        assert word in shown


# -- dead letters ----------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A run directory with two dead letters."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    packet = DeadLetter(
        time="2026-01-02T03:04:05.678+00:00",
        node=1,
        epoch=2,
        shard=3,
        session=0xABC,
        address="127.0.0.1:5",
        kind="packet",
        packet_id=6,
        sequence=7,
        payload=b"\x00\xff\n",
        deaths=3,
    )
    event = msgspec.structs.replace(
        packet, kind="opened", packet_id=None, sequence=None, payload=None
    )
    lines = [msgspec.json.encode(letter) + b"\n" for letter in (packet, event)]
    (directory.path / DEAD_LETTERS).write_bytes(b"".join(lines))
    return directory.path


def test_dead_letters_for_people_are_a_line_each(letters: Path):
    done = run("dead-letters", "--run-dir", str(letters))
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "1 2026-01-02T03:04:05.678+00:00 shard 3 session 0xabc 127.0.0.1:5 "
        "packet 7 (id 6, 3 bytes): 3 deaths",
        "2 2026-01-02T03:04:05.678+00:00 shard 3 session 0xabc 127.0.0.1:5 opened: 3 deaths",
    ]


def test_dead_letters_as_json_are_the_lines_of_the_file(letters: Path):
    done = run("dead-letters", "--json", "--run-dir", str(letters))
    assert done.exit_code == 0
    assert done.stdout == (letters / DEAD_LETTERS).read_text()


def test_the_payload_of_a_dead_letter_is_written_raw(letters: Path):
    done = run("dead-letters", "--payload", "1", "--run-dir", str(letters))
    assert (done.exit_code, done.stdout_bytes) == (0, b"\x00\xff\n")
    for number, told in (("2", "it is of no packet"), ("3", "--payload 3: lines are 1 to 2;")):
        done = run("dead-letters", "--payload", number, "--run-dir", str(letters))
        assert (done.exit_code, done.stdout) == (2, "")
        assert told in done.stderr


def test_no_dead_letters_is_code_0_and_no_run_directory_code_4(letters: Path, tmp_path: Path):
    (letters / DEAD_LETTERS).unlink()
    done = run("dead-letters", "--run-dir", str(letters))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"cluster: no dead letters in {letters}\n"
    assert run("dead-letters", "--json", "--run-dir", str(letters)).output == ""
    nowhere = tmp_path / "nowhere"
    for more in ((), ("--json",), ("--payload", "1")):
        done = run("dead-letters", "--run-dir", str(nowhere), *more)
        assert (done.exit_code, done.stdout) == (4, "")  # as `cluster status` ends
        assert done.stderr == (
            f"cluster: no node has run in {nowhere}: pass the node's --run-dir\n"
        )


@pytest.mark.parametrize("more", [(), ("--json",), ("--payload", "1")])
def test_dead_letters_in_folders_of_nodes_are_named_with_the_remedy(
    letters: Path, tmp_path: Path, more: tuple[str, ...]
):
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    nodes = [RunDirectory(base / f"node-{n}") for n in (1, 2, 3)]
    for directory in nodes:
        directory.create()
    at_base = ("dead-letters", "--run-dir", str(base))
    done = run(*at_base)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"cluster: no dead letters in {base}, nor in its folders of 3 nodes\n"
    for directory in nodes[1:]:
        (directory.path / DEAD_LETTERS).write_bytes((letters / DEAD_LETTERS).read_bytes())
    done = run(*at_base, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"cluster: no dead letters in {base} itself, but in its folders node-2, node-3: "
        f"pass --run-dir {base / 'node-2'}\n"
    )
    # Where a node runs in the directory itself, what others have left in folders is not asked for.
    RunDirectory(base).write_config(Config())
    done = run(*at_base)
    assert (done.exit_code, done.stderr) == (0, f"cluster: no dead letters in {base}\n")
    with RunDirectory(base).lock("nodes"):
        assert run(*at_base).exit_code == 2


# -- bots ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", ":7", "[::1]", "host:70000", "a b:1", "[::1]:0"])
def test_bots_refuse_what_is_no_address(address: str):
    done = run("bots", "--connect", address)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"cluster: --connect: {address!r}: expected ")


def test_bots_as_a_process_end_with_a_clean_result():
    with echo_server() as address:
        done = run_process(
            *("bots", "--connect", str(address), "--sessions", "4", "--depth", "3"),
            *("--size", "12", "--seconds", "0.3", "--json"),
        )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["sessions"], report["lost"], report["differed"]) == (4, 0, 0)
    assert report["packets"] >= 12
    assert done.stderr == ""  # the progress is for terminals


# -- the whole -------------------------------------------------------------------------------------


def test_the_help_names_the_defaults_of_the_configuration():
    config = Config()
    shown = " ".join(run("up", "--help").stdout.split())
    for flag, default in (
        ("--listen HOST:PORT", config.node.listen),
        ("--workers N", config.workers.count),
        ("--node-id N", config.node.id),
    ):
        assert f"by default {default}." in shown.partition(flag)[2].partition(" --")[0]


def test_version_and_help_are_code_0():
    assert run("--version").stdout.startswith("cluster")
    help_text = run("--help").stdout
    for command in ("up", "gateway", "worker", "keys", "status", "dead-letters", "bots"):
        assert f"  {command} " in help_text
    assert "..." not in help_text.partition("Commands:")[2]  # no summary is cut
    assert "completion" not in help_text


def test_the_command_line_imports_no_room_before_it_knows_the_command():
    code = (
        "import sys, cluster.cli.commands\n"
        "rooms = ('supervisor', 'gateway', 'worker', 'bots', 'iocp', 'shared')\n"
        "print([name for name in sys.modules if name.startswith('cluster.')"
        " and name.split('.')[1] in rooms])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("module", ["typer", "cluster.shared.config", "cluster.supervisor.status"])
@pytest.mark.parametrize(("is_ignored", "code"), [(False, 130), (True, 4)])
def test_ctrl_c_ends_a_command_quietly_whatever_it_is_importing(
    module: str, is_ignored: bool, code: int, tmp_path: Path
):
    interrupted = (
        "import signal, sys\n"
        f"if {is_ignored}:\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "class Interrupts:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts)\n"
        "from cluster.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", interrupted, "status", "--run-dir", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert not done.stderr or is_ignored, done.stderr


def test_python_m_cluster_is_the_command_line():
    done = run_process("status", "--run-dir", str(ROOT / "no such directory"))
    assert done.returncode == 4
    assert "nothing runs in" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize(
    ("arguments", "who", "needed"),
    [
        (("up", "--listen", "127.0.0.1:0"), "a supervisor", 64),
        (("up", "--listen", "127.0.0.1:0", "--nodes", "3"), "cluster up --nodes", 96),
        (("worker", "--shard", "0"), "a worker", 48),
        (("status",), "a question to the gateway", 24),
        (("reload",), "a question to the gateway", 24),
    ],
)
def test_a_limit_of_open_files_that_zeromq_would_abort_at_is_told(
    tmp_path: Path, arguments: tuple[str, ...], who: str, needed: int
):
    directory = RunDirectory(tmp_path / "run")
    if arguments[0] != "up":
        directory.create()
        directory.write_config(Config())
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))\n"
        f"sys.argv = ['cluster', *{arguments!r}, '--run-dir', {str(directory.path)!r}]\n"
        "runpy.run_module('cluster', run_name='__main__')"
    )
    with directory.lock("gateway") if arguments[0] != "up" else nullcontext():
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert done.stderr.splitlines()[-1:] == [
        f"cluster{' worker' if arguments[0] == 'worker' else ''}: {who} needs {needed} open files, "
        "and 10 are allowed here: raise the limit (ulimit -Hn, LimitNOFILE)"
    ]
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_gateway_and_worker_serve_under_an_outside_supervisor(tmp_path: Path):
    """The two commands by hand: they find each other, and SIGTERM drains the gateway."""
    from tests.support import wait_until

    common = ["--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cluster"]
    gateway = subprocess.Popen(
        [*command, "gateway", *common, "--listen", "127.0.0.1:0", "--workers", "1"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = subprocess.Popen(
        [*command, "worker", "--shard", "0", *common], env=environment, stderr=subprocess.DEVNULL
    )
    try:

        def is_ready() -> bool:
            done = run_process("status", *common, "--json")
            return done.returncode == 0 and [
                each["state"] for each in json.loads(done.stdout)["workers"]
            ] == ["ready"]

        wait_until(is_ready, timeout_s=30, interval_s=0.1, what="the worker ready")
        gateway.send_signal(signal.SIGTERM)
        assert gateway.communicate(timeout=20)[1]
        assert gateway.returncode == 0
        assert worker.wait(timeout=20) is not None
    finally:
        for process in (gateway, worker):
            process.kill()
            process.communicate()
