"""What shards save for themselves, with real processes that are killed: no ticket twice, none left
out, and all that is bulky is there again."""

import random
import sys
import threading
from pathlib import Path

import pytest

from tests.applications.tickets import COUNT_STARTS, DIGEST, FILL, FORGET_ALL, TICKET
from tests.support import wait_until
from tests.system.cluster_node import ROOT, ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

APP = ("--app", "tests.applications.tickets:app", "--workers", "1")
CLIENTS, DEPTH, KILLS = 4, 8, 4


def start(cluster_up: StartNode, *arguments: str) -> ClusterNode:
    return cluster_up(*APP, *arguments, cwd=ROOT)


class TicketTaker(threading.Thread):
    """Takes tickets, several at a time, until it is told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._client = PacketClient(port, timeout_s=30)
        self._stop_asked = threading.Event()
        self.numbers: list[int] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._client as client:
                sent = 0
                while not self._stop_asked.is_set() or len(self.numbers) < sent:
                    while sent < len(self.numbers) + DEPTH and not self._stop_asked.is_set():
                        client.send(TICKET, b"")
                        sent += 1
                    if len(self.numbers) < sent:
                        self.numbers.append(int(client.receive()[1]))
        except BaseException as error:
            self.failure = error

    def finish(self) -> list[int]:
        self._stop_asked.set()
        self.join(60)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        return self.numbers


def wait_for_tickets(takers: list[TicketTaker], count: int) -> None:
    """Wait until so many more are taken."""

    def taken() -> int:
        return sum(len(taker.numbers) for taker in takers)

    target = taken() + count
    wait_until(lambda: taken() >= target, timeout_s=30, what=f"{count} tickets")


def test_each_ticket_is_given_once_whenever_workers_die(cluster_up: StartNode, lane: str) -> None:
    node = start(cluster_up, "--lane", lane)
    takers = [TicketTaker(node.port) for _ in range(CLIENTS)]
    for taker in takers:
        taker.start()
    rng = random.Random(7)
    with PacketClient(node.port) as other:
        for restarts in range(KILLS):
            wait_for_tickets(takers, rng.randrange(200, 900))
            node.kill_worker(restarts)
        numbers = [number for taker in takers for number in taker.finish()]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert other.ask(COUNT_STARTS, b"") == (COUNT_STARTS, b"%d" % (KILLS + 1))
    assert "lane_violations" not in node.counters()


def test_a_successor_is_given_as_much_as_may_be_saved(cluster_up: StartNode, lane: str) -> None:
    node = start(cluster_up, "--lane", lane)
    with PacketClient(node.port, timeout_s=40) as client:
        digest = client.ask(FILL, b"250")[1]  # 16,250,000 bytes in one handler call
        assert client.ask(DIGEST, b"") == (DIGEST, digest)
        assert node.counters()["saved_bytes"] > 16_250_000
        for restarts in range(2):
            node.kill_worker(restarts)
            assert client.ask(DIGEST, b"") == (DIGEST, digest)
        assert client.ask(FORGET_ALL, b"") == (FORGET_ALL, b"")
        node.wait_status(lambda status: status["counters"]["saved_bytes"] == 0, "nothing")


def test_one_node_s_shards_begin_with_nothing_when_it_begins_anew(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for _ in range(2):
        node = start(cluster_up, "--run-dir", str(run_dir))
        with PacketClient(node.port) as client:
            assert client.ask(COUNT_STARTS, b"") == (COUNT_STARTS, b"1")
            assert client.ask(TICKET, b"") == (TICKET, b"1")
        node.close()


def test_a_version_that_reload_starts_goes_on_with_what_the_one_before_saved(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    file = tmp_path / "app" / "the_app.py"
    file.parent.mkdir()
    source = (ROOT / "tests" / "applications" / "tickets.py").read_text()
    file.write_text(source)
    node = cluster_up("--app", "the_app:app", "--workers", "1", "--reload", cwd=file.parent)
    with PacketClient(node.port) as client:
        assert client.ask(TICKET, b"") == (TICKET, b"1")
        new = file.with_suffix(".new")
        new.write_text(source.replace("+ 1)", "+ 10)"))
        new.replace(file)
        node.wait_status(lambda status: status["counters"].get("reloads") == 1, "the new version")
        assert client.ask(TICKET, b"") == (TICKET, b"11")
