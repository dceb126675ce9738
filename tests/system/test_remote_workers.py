"""Workers that come to their gateway over TCP, as those of other machines do: real processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.shared.key_files import make_key_files
from tests.gateway.links.relay import Relay
from tests.support import wait_until
from tests.system.checked_client import CheckedClient, served_again
from tests.system.cluster_node import (
    ROOT,
    ClusterNode,
    cluster_command,
    cluster_environment,
    run_cluster,
)
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

HANG = 65_501


class RemoteWorker:
    """One `cluster worker --gateway`, as on a machine called `machine`."""

    def __init__(
        self, directory: Path, gateway: str, machine: str, keys: Path, app: str | None = None
    ) -> None:
        self._log = directory / f"{machine}-{os.urandom(4).hex()}.log"
        arguments = ["--shard", "1", "--gateway", gateway, "--keys", str(keys)]
        arguments += ["--run-dir", str(directory / machine), *(["--app", app] if app else [])]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                cluster_command("worker", *arguments),
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env=cluster_environment({"DEADLY": str(directory)}),
            )

    @property
    def said(self) -> str:
        """Everything on standard error so far."""
        return self._log.read_text()

    def wait_exit(self) -> int:
        """Return the exit code."""
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended:\n{self.said}") from None


class Site:
    """A node whose shard 1 is for workers on other machines."""

    def __init__(self, directory: Path, start: StartNode, *arguments: str) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        make_key_files(self.keys)
        config = directory / "remote.toml"
        config.write_text(
            f"""
            [workers]
            count = 2
            spares = 0
            worker_timeout_s = 2.0
            max_redeliveries = 2
            [remote]
            listen = "127.0.0.1:0"
            keys_dir = "{self.keys}"
            shards = [1]
            """
        )
        env = {"DEADLY": str(directory)}
        self.node: ClusterNode = start("--config", str(config), *arguments, env=env)
        self.workers: list[RemoteWorker] = []
        match = re.search(r"shards 1 connect at (tcp://\S+)", self.node.stderr)
        assert match, self.node.stderr
        self.gateway = match[1]

    def start_worker(
        self, machine: str = "berlin", app: str | None = None, gateway: str | None = None
    ) -> RemoteWorker:
        """Start a worker without waiting for it; it comes to `gateway`, if that is given."""
        reached = gateway or self.gateway
        self.workers.append(RemoteWorker(self.directory, reached, machine, self.keys, app))
        return self.workers[-1]

    def wait_serving(self, worker: RemoteWorker) -> Any:
        """Wait until `worker` has its shard; return the status."""
        try:
            return self.node.wait_status(
                lambda status: (
                    (status["workers"][1]["pid"], status["workers"][1]["state"])
                    == (worker.process.pid, "ready")
                ),
                f"process {worker.process.pid} to serve shard 1",
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; it says:\n{worker.said}") from error

    def close(self) -> None:
        """Leave no worker behind."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait(10)


@pytest.fixture
def site(tmp_path: Path, cluster_up: StartNode) -> Iterator[Callable[..., Site]]:
    """Start the node of a test; its workers are gone at the end."""
    made: list[Site] = []

    def start(*arguments: str) -> Site:
        made.append(Site(tmp_path, cluster_up, *arguments))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def relays() -> Iterator[Callable[[int], Relay]]:
    """Make relays to ports of this machine."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(Relay(port))


def test_remote_workers_that_are_killed_or_cut_off_lose_and_repeat_nothing(
    site: Callable[..., Site], relays: Callable[[int], Relay]
) -> None:
    here = site()
    node = here.node
    assert node.ready["workers"] == "1"  # the ready line waits for no other machine
    (_, vacant) = node.status()["workers"]
    assert vacant == {
        "shard": 1,
        "pid": None,
        "state": "starting",
        "restarts": 0,
        "lane": "zmq",
        "in_hand": None,
        "awaiting": None,
        "waits": {"median_s": None, "worst_s": None, "counts": [0] * 16, "sum_s": 0.0},
        "remote": {"key": None, "address": None},
    }
    relay = relays(int(here.gateway.rpartition(":")[2]))
    worker = here.start_worker(gateway=f"tcp://127.0.0.1:{relay.port}")
    status = here.wait_serving(worker)
    assert status["workers"][1]["remote"] == {"key": "worker", "address": "127.0.0.1"}
    assert "remote" not in status["workers"][0]
    assert f"tcp://{status['gateway']['remote_listen']}" == here.gateway
    clients = [CheckedClient(node.port, number) for number in range(6)]
    for client in clients:
        client.start()
    try:
        served_again(node, clients)
        relay.cut()
        assert worker.wait_exit() == 1, worker.said  # a connection that broke is not taken up
        worker = here.start_worker()
        here.wait_serving(worker)
        served_again(node, clients)
        worker.process.kill()
        worker = here.start_worker()
        here.wait_serving(worker)
        served_again(node, clients)
        # As when a machine stands still: it says nothing, and its connection stands. Its silence
        # is noticed by the gateway or by its connection, whichever looks first.
        worker.process.send_signal(signal.SIGSTOP)
        node.wait_status(lambda seen: seen["workers"][1]["pid"] is None, "it to be given up")
        successor = here.start_worker("oslo")
        here.wait_serving(successor)
        served_again(node, clients)
        worker.process.send_signal(signal.SIGCONT)
        # Its watchdog ends it while it goes on; the interpreter may crash over the frames that it
        # reads meanwhile, but behind the line by which it begins, and for no other reason.
        code = worker.wait_exit()
        assert code == 1 or (code == -signal.SIGSEGV and "Timeout (" in worker.said), worker.said
        served_again(node, clients)
    except BaseException:
        for client in clients:
            client.stop()
        raise  # and not what they miss because of it
    answered = sum(client.finish() for client in clients)
    assert answered > 0
    assert node.status()["workers"][1]["restarts"] == 3
    assert node.drain() == 0
    assert successor.wait_exit() == 0


def test_who_has_no_key_that_the_gateway_knows_is_told_and_gets_nothing(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site()
    strange = tmp_path / "strange"
    make_key_files(strange, ["oslo"])
    (strange / "gateway.key").write_bytes((here.keys / "gateway.key").read_bytes())
    arguments = ("--shard", "1", "--gateway", here.gateway, "--keys", str(strange))
    refused = run_cluster("worker", *arguments, "--run-dir", str(tmp_path / "oslo"))
    assert refused.returncode == 2, refused.stderr
    assert "does not know the key in" in refused.stderr.splitlines()[-1]
    assert "remote.keys_dir" in refused.stderr.splitlines()[-1]
    node = here.node
    status = node.wait_status(
        lambda seen: seen["counters"].get("remote_refused_key"), "the refusal to be counted"
    )
    assert "remote_let_in" not in status["counters"]
    assert status["workers"][1]["pid"] is None
    with PacketClient(node.port) as client:  # whom the shard of this machine serves
        assert client.ask(7, b"hello") == (7, b"hello")
    assert node.drain() == 0


def test_a_reload_where_all_workers_are_elsewhere_is_refused(
    tmp_path: Path, cluster_up: StartNode
) -> None:
    keys = tmp_path / "keys"
    make_key_files(keys)
    config = tmp_path / "remote.toml"
    remote = f'listen = "127.0.0.1:0"\nkeys_dir = "{keys}"\nshards = [0]'
    config.write_text(f"[workers]\ncount = 1\nspares = 0\n[remote]\n{remote}\n")
    node = cluster_up("--config", str(config))
    refused = run_cluster("reload", "--run-dir", str(node.run_dir))
    assert refused.returncode == 1
    assert "all workers of this node are on other machines" in refused.stderr
    counters = node.status()["counters"]
    assert not {"reloads", "reloads_failed"} & counters.keys()
    assert node.drain() == 0


@pytest.mark.long
def test_what_hangs_remote_workers_is_set_aside_as_their_notes_tell(
    site: Callable[..., Site],
) -> None:
    app = "tests.applications.deadly:app"
    here = site("--app", app)
    node = here.node
    here.wait_serving(here.start_worker(app=app))
    with PacketClient(node.port) as first, PacketClient(node.port) as second:
        # A session goes to the shard with the fewest, so one of the two has the remote one.
        assert first.ask(1, b"x") == second.ask(1, b"x") == (1, b"x")
        second.send(HANG, b"")
        for _ in range(2):
            worker = here.workers[-1]
            assert worker.wait_exit() == 1
            assert "deadly.py" in worker.said  # where it hung
            here.wait_serving(here.start_worker(app=app))
        second.receive_end()
        assert first.ask(2, b"still here") == (2, b"still here")
        wait_until(lambda: node.counters().get("dead_letters") == 1, what="the letter")
    os.kill(node.status()["gateway"]["pid"], signal.SIGKILL)
    assert here.workers[-1].wait_exit() == 1  # its service manager starts it again
    assert node.drain() == 0
