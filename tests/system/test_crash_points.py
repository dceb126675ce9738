"""A worker is killed at each instant that could make a difference; no client notices.

Every client holds each answer against what it must be, in order; the application
`tests.applications.crash_points` kills its worker and notes where. The last tests break the commit
on purpose: the same clients must notice that.
"""

import sys
import threading
from pathlib import Path

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import LANES, StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LANE_KINDS = LANES
"""Every kind of lane between processes."""

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
    "after_one_part:5",
    "after_two_parts:5",
    "farewell:30",
    "after_farewell:30",
]
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
    """A node with one worker that dies as planned, under the load of checking clients."""

    def __init__(
        self,
        start: StartNode,
        directory: Path,
        lane: str,
        plan: list[str],
        broken: str = "",
        timeout_s: float = 30.0,
    ) -> None:
        self._log = directory / "deaths"
        env = {"CRASH_PLAN": ",".join(plan), "CRASH_LOG": str(self._log), "CRASH_BREAK": broken}
        self.node: ClusterNode = start(
            *("--app", "tests.applications.crash_points:app"),
            *("--workers", "1", "--lane", lane),
            env=env,
        )
        self.clients = [
            CheckingClient(self.node.port, number, timeout_s) for number in range(CLIENTS)
        ]
        for client in self.clients:
            client.start()

    def deaths(self) -> list[tuple[str, int]]:
        """Return the instant and the pid of each death so far."""
        text = self._log.read_text() if self._log.exists() else ""
        return [(line.split()[0], int(line.split()[1])) for line in text.splitlines()]

    def wait_for_deaths(self, count: int) -> None:
        wait_until(
            lambda: len(self.deaths()) >= count or any(client.failure for client in self.clients),
            timeout_s=30,
            what=f"{count} deaths",
        )

    def wait_served_again(self) -> None:
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


@pytest.mark.parametrize("lane", LANE_KINDS)
@pytest.mark.parametrize(
    "plan",
    [[instant] for instant in INSTANTS] + [[FIRST, instant] for instant in INSTANTS_OF_SUCCESSORS],
    ids=lambda plan: "-".join(plan).replace(FIRST + "-", "successor-"),
)
def test_a_worker_that_dies_there_loses_and_repeats_nothing(
    cluster_up: StartNode, tmp_path: Path, lane: str, plan: list[str]
) -> None:
    crashing = CrashingNode(cluster_up, tmp_path, lane, plan)
    try:
        crashing.wait_for_deaths(len(plan))
        crashing.wait_served_again()
    finally:
        failures = crashing.finish()
    assert failures == []
    deaths = crashing.deaths()
    assert [instant for instant, _ in deaths] == [entry.split(":")[0] for entry in plan]
    assert len({pid for _, pid in deaths}) == len(plan)
    status = crashing.node.wait_restarts(len(plan))
    assert status["counters"]["sessions_opened"] == CLIENTS
    assert status["workers"][0]["pid"] not in [pid for _, pid in deaths]
    assert "lane_violations" not in status["counters"]
    assert "raised" not in crashing.node.stderr


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("outputs_twice", AssertionError),
        ("output_without_commit", AssertionError),
        ("commit_without_output", (AssertionError, TimeoutError)),
    ],
)
def test_the_clients_would_notice_a_commit_that_is_not_one(
    cluster_up: StartNode,
    tmp_path: Path,
    broken: str,
    told: type[Exception] | tuple[type[Exception], ...],
) -> None:
    plan = [f"{broken}:5"]
    crashing = CrashingNode(cluster_up, tmp_path, LANE_KINDS[0], plan, broken, timeout_s=3.0)
    try:
        wait_until(
            lambda: any(client.failure for client in crashing.clients), timeout_s=30, what="notice"
        )
    finally:
        failures = crashing.finish()
    assert failures
    assert all(isinstance(failure, told) for failure in failures), failures
    assert [instant for instant, _ in crashing.deaths()] == [broken]
