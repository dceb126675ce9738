"""A worker is killed at each instant that could make a difference; no client notices.

Every client holds each answer against what it must be, in order; the application
`tests.applications.crash_points` kills its worker and notes where. The last tests break the commit
on purpose: the same clients must notice that.
"""

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import LANES
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LANE_KINDS = LANES
"""Every kind of lane between processes."""

APP = "tests.applications.crash_points:app"

CLIENTS = 4
DEPTH = 6

FIRST = "before_handler:30"
"""A death under load, for instants that only a successor has."""

INSTANTS = [
    "in_on_connected:2",
    "before_handler:30",
    "between_outputs:30",
    "end_of_handler:30",
    "after_handler:30",
    "before_publish:5",
    "after_publish:5",
    "farewell:30",
    "after_farewell:30",
]
INSTANTS_OF_FRAGMENTS = ["after_one_fragment:3", "after_two_fragments:3"]
INSTANTS_OF_SUCCESSORS = [
    "after_grant:1",
    "before_first_publish:1",
    "after_first_publish:1",
    "in_on_resumed:1",
    "in_on_resumed:3",
    "after_replay:1",
    "before_handler:1",
    "before_publish:1",
    "after_publish:1",
]


class CheckingClient(threading.Thread):
    """Keeps packets outstanding; each is answered by what was saved before it, and by itself."""

    def __init__(self, port: int, number: int, timeout_s: float) -> None:
        super().__init__(name=f"client {number}")
        self._client = PacketClient(port, timeout_s=timeout_s)
        self._number = number
        self._stop_asked = threading.Event()
        self.answered = 0
        self.failure: BaseException | None = None

    def _packet(self, index: int) -> tuple[int, bytes]:
        return index % 65_536, b"%d/%d/" % (self._number, index) + b"." * (index * 37 % 500)

    def run(self) -> None:
        try:
            with self._client:
                self._work()
        except BaseException as error:
            self.failure = error

    def _work(self) -> None:
        sent = 0
        while not self._stop_asked.is_set() or self.answered < sent:
            while sent < self.answered + DEPTH and not self._stop_asked.is_set():
                self._client.socket.sendall(make_packet(*self._packet(sent)))
                sent += 1
            if self.answered < sent:
                packet_id, payload = self._packet(self.answered)
                assert self._client.receive() == (packet_id, b"%d" % self.answered)
                assert self._client.receive() == (packet_id, payload)
                self.answered += 1

    def finish(self) -> None:
        """Stop sending and wait for the last answer; `failure` has what was wrong."""
        self._stop_asked.set()
        self.join(40)
        assert not self.is_alive(), f"{self.name} still waits for answer {self.answered}"


class CrashingNode:
    """A node with one worker, which dies as planned."""

    def __init__(
        self, directory: Path, lane: str, broken: str = "", app: str = APP, config: str = ""
    ) -> None:
        """Start it, with a commit that is `broken` on purpose in that way, or in none.

        `config` is the text of its configuration.
        """
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "cluster.toml"
        file.write_text(config)
        self._plan = directory / "plan"
        self._plan.touch()
        self._log = directory / "deaths"
        env = {
            "CRASH_PLAN": str(self._plan),
            "CRASH_LOG": str(self._log),
            "CRASH_BREAK": broken,
        }
        arguments = ["--config", str(file), "--app", app, "--workers", "1"]
        self.node = ClusterNode(directory, [*arguments, "--lane", lane], env=env)

    def deaths(self) -> list[tuple[str, int]]:
        """Return the instant and the pid of each death so far."""
        text = self._log.read_text() if self._log.exists() else ""
        return [(line.split()[0], int(line.split()[1])) for line in text.splitlines()]

    def wait_whole(self) -> Any:
        """Return the status once a worker serves, a spare waits, and nobody is connected."""
        deaths = len(self.deaths())
        return self.node.wait_status(
            lambda status: (
                [(worker["state"], worker["restarts"]) for worker in status["workers"]]
                == [("ready", deaths)]
                and len(status["spares"]) == 1
                and status["gateway"]["sessions"] == 0
            ),
            "a worker, a spare and no session",
        )

    def plan(self, instants: list[str]) -> None:
        """Have the next lives, the present one first, end at these instants."""
        whole = self._plan.with_suffix(".new")
        whole.write_text(self._plan.read_text() + "".join(f"{entry}\n" for entry in instants))
        whole.replace(self._plan)

    def close(self) -> None:
        """Leave no process of it, and say what it said."""
        self.node.close()
        print(f"what {self.node.run_dir} said:\n{self.node.stderr}")  # shown when a test fails


class Load:
    """Checking clients of a node, from their start to their end."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self.clients = [CheckingClient(port, number, timeout_s) for number in range(CLIENTS)]
        for client in self.clients:
            client.start()

    @property
    def has_failed(self) -> bool:
        """Whether a client has found something wrong."""
        return any(client.failure for client in self.clients)

    def wait_served(self) -> None:
        """Wait until all that is outstanding now is answered, and more."""
        before = [client.answered for client in self.clients]
        wait_until(
            lambda: all(
                client.answered > count + DEPTH or client.failure
                for client, count in zip(self.clients, before, strict=True)
            ),
            timeout_s=30,
            what="answers to every client",
        )

    def finish(self) -> list[BaseException]:
        """End the load; return what clients found wrong."""
        for client in self.clients:
            client.finish()
        return [client.failure for client in self.clients if client.failure]


class NodesToCrash:
    """A node for each kind of lane, which tests use one after the other while all is well."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: dict[tuple[str, str], CrashingNode] = {}
        self._numbers = itertools.count()

    @contextmanager
    def use(self, lane: str, config: str = "") -> Iterator[CrashingNode]:
        """Lend a node with this lane and `config`; whoever fails with it is its last user."""
        crashing = self._nodes.pop((lane, config), None)
        if crashing is None:
            directory = self._directory / f"{lane}{next(self._numbers)}"
            crashing = CrashingNode(directory, lane, config=config)
        try:
            if not crashing.node.ready:
                crashing.node.wait_ready()
            yield crashing
        except BaseException:
            crashing.close()
            raise
        self._nodes[lane, config] = crashing

    def close(self) -> None:
        """Leave no process of any of them."""
        for crashing in self._nodes.values():
            crashing.close()


@pytest.fixture(scope="module")
def nodes_to_crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodesToCrash]:
    """Nodes whose worker dies at will; to start one for each death would take ten times as long."""
    nodes = NodesToCrash(tmp_path_factory.mktemp("crash"))
    yield nodes
    nodes.close()


@pytest.mark.parametrize("lane", LANE_KINDS)
@pytest.mark.parametrize(
    "plan",
    [[instant] for instant in INSTANTS] + [[FIRST, instant] for instant in INSTANTS_OF_SUCCESSORS],
    ids=lambda plan: "-".join(plan).replace(FIRST + "-", "successor-"),
)
def test_a_worker_that_dies_there_loses_and_repeats_nothing(
    nodes_to_crash: NodesToCrash, lane: str, plan: list[str]
) -> None:
    check_deaths(nodes_to_crash, lane, plan)


@pytest.mark.skipif("shm" not in LANE_KINDS, reason="no lanes of shared memory here")
@pytest.mark.parametrize("instant", INSTANTS_OF_FRAGMENTS)
def test_of_a_batch_that_goes_in_fragments_nothing_counts_before_the_last(
    nodes_to_crash: NodesToCrash, instant: str
) -> None:
    # With rings this small many a batch is longer than a message.
    config = "[gateway]\nmax_packet_bytes = 1000\n[lane]\nbytes = 8704\n"
    check_deaths(nodes_to_crash, "shm", [instant], config)


def check_deaths(
    nodes_to_crash: NodesToCrash, lane: str, plan: list[str], config: str = ""
) -> None:
    """Kill workers at the instants of `plan`, and see that no client notices."""
    with nodes_to_crash.use(lane, config) as crashing:
        before = crashing.wait_whole()
        earlier_deaths = len(crashing.deaths())
        crashing.plan(plan)
        load = Load(crashing.node.port)
        try:
            wait_until(
                lambda: len(crashing.deaths()) >= earlier_deaths + len(plan) or load.has_failed,
                timeout_s=30,
                what=f"{len(plan)} deaths",
            )
            load.wait_served()
        finally:
            failures = load.finish()
        assert failures == []
        deaths = crashing.deaths()[earlier_deaths:]
        assert [instant for instant, _ in deaths] == [entry.split(":")[0] for entry in plan]
        assert deaths[0][1] == before["workers"][0]["pid"]
        assert len({pid for _, pid in deaths}) == len(plan)
        status = crashing.node.wait_restarts(earlier_deaths + len(plan))
        opened = status["counters"]["sessions_opened"]
        assert opened - before["counters"].get("sessions_opened", 0) == CLIENTS
        assert status["workers"][0]["pid"] not in [pid for _, pid in deaths]
        assert "lane_violations" not in status["counters"]
        assert "raised" not in crashing.node.stderr


@pytest.mark.parametrize(
    ("broken", "told", "timeout_s"),
    [
        ("outputs_twice", AssertionError, 30.0),
        ("output_without_commit", AssertionError, 30.0),
        # Whoever has all but an answer waits for that until its time is up.
        ("commit_without_output", (AssertionError, TimeoutError), 3.0),
    ],
)
def test_the_clients_would_notice_a_commit_that_is_not_one(
    tmp_path: Path,
    broken: str,
    told: type[Exception] | tuple[type[Exception], ...],
    timeout_s: float,
) -> None:
    crashing = CrashingNode(tmp_path, LANE_KINDS[0], broken)
    try:
        crashing.plan([f"{broken}:5"])
        load = Load(crashing.node.wait_ready().port, timeout_s)
        try:
            wait_until(lambda: load.has_failed, timeout_s=30, what="notice")
        finally:
            failures = load.finish()
    finally:
        crashing.close()
    assert failures
    assert all(isinstance(failure, told) for failure in failures), failures
    assert [instant for instant, _ in crashing.deaths()] == [broken]
