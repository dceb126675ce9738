"""Handlers that await, in real processes that are killed at each instant that could matter.

Whatever a plain handler answers comes once; what a coroutine answers comes in order, from the last
attempt as a whole, with nothing between the attempts of one packet but themselves.
"""

import os
import random
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.system.conftest import LANES, StartNode
from tests.system.packet_client import PacketClient
from tests.system.test_crash_points import CrashingNode

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

CLIENTS = 6
DEPTH = 5

DEATHS = [
    "end_of_opening:3",
    "first_step:10",
    "second_step:10",
    "last_step:10",
    "before_defer:10",
    "after_defer:10",
    "before_done:10",
    "after_done:10",
    # Successors that have just been given what was deferred. Five in a row without any progress
    # would be the last, so others come in between.
    "after_grant:1",
    "in_on_resumed:2",
    "after_replay:1",
    "second_step:10",
    "again_first_step:1",
    "again_second_step:1",
    "first_step:10",
    "again_last_step:2",
    "before_done:1",
    "last_step:10",
    "after_done:1",
    "before_defer:1",
    "after_farewell:10",
]

WAITS = """
import asyncio, os, time
from cluster.worker import App

app = App()

@app.on_packet(1)
async def slow(session, payload):
    await asyncio.sleep(float(payload))
    session.send(1, payload)

@app.on_packet(2)
def plain(session, payload):
    session.send(2, payload)

@app.on_packet(3)
async def kill(session, payload):
    await asyncio.sleep(0.01)
    os._exit(3)

@app.on_packet(4)
async def hang(session, payload):
    await asyncio.sleep(0.01)
    time.sleep(60)

@app.on_packet(5)
async def until_there_is(session, payload):
    while not os.path.exists(payload):
        await asyncio.sleep(0.01)
    session.send(5, payload)
"""


LOGS_IN = """
import asyncio
import os
from cluster.worker import App

app = App(coroutines_max=2, coroutines_waiting_max=int(os.environ["WAITING_MAX"]))

@app.on_packet(1)
async def log_in(session, payload):
    await asyncio.sleep(0.001)
    await session.bind(payload.decode())
    session.send(1, session.user.encode())
"""


class StepsClient(threading.Thread):
    """Keeps packets outstanding, and holds what comes against what may."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(name=f"client {number}")
        self._client = PacketClient(port, timeout_s=30)
        self._random = random.Random(number)
        self._number = number
        self._stop_asked = threading.Event()
        self.answered = self.attempts = 0
        self.failure: BaseException | None = None

    def _packet(self, index: int) -> tuple[int, bytes]:
        odd = random.Random(f"{self._number}/{index}").random() < 0.6
        return 2 * index % 65_536 + odd, b"%d/%d." % (self._number, index)

    def run(self) -> None:
        try:
            with self._client:
                sent = 0
                while not self._stop_asked.is_set() or self.answered < sent:
                    while sent < self.answered + DEPTH and not self._stop_asked.is_set():
                        self._client.send(*self._packet(sent))
                        sent += 1
                    if self.answered < sent:
                        self._check_answer(*self._packet(self.answered))
                        self.answered += 1
        except BaseException as error:
            self.failure = error

    def _check_answer(self, packet_id: int, payload: bytes) -> None:
        if packet_id % 2 == 0:
            assert self._client.receive() == (packet_id, payload)
            return
        step = 1
        while step <= 3:
            found = self._client.receive()
            if found == (packet_id, b"1" + payload):
                self.attempts += 1
                step = 1  # a successor has begun anew
            assert found == (packet_id, b"%d" % step + payload)
            step += 1

    def finish(self) -> int:
        """Stop sending, wait for the last answer, and return how many there were."""
        self._stop_asked.set()
        self.join(40)
        assert not self.is_alive(), f"{self.name} still waits for answer {self.answered}"
        if self.failure is not None:
            raise AssertionError(f"{self.name} at answer {self.answered}") from self.failure
        return self.answered


def _wait_served(clients: list[StepsClient]) -> None:
    before = [client.answered for client in clients]
    wait_until(
        lambda: all(
            client.answered > count + DEPTH or client.failure
            for client, count in zip(clients, before, strict=True)
        ),
        timeout_s=30,
        what="answers to every client",
    )


def test_what_awaits_is_done_at_least_once_and_in_order_whenever_its_worker_dies(
    tmp_path: Path, lane: str
) -> None:
    # A successor begins with the call in which its predecessor died, so the plan may have it killed
    # three times in a row.
    crashing = CrashingNode(
        tmp_path / "node",
        lane,
        app="tests.applications.waiting:app",
        config="[workers]\nmax_redeliveries = 10\n",
    )
    try:
        crashing.node.wait_ready()
        crashing.plan(DEATHS)
        clients = [StepsClient(crashing.node.port, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            wait_until(
                lambda: (
                    len(crashing.deaths()) == len(DEATHS)
                    or any(client.failure for client in clients)
                ),
                timeout_s=40,
                what="every death",
            )
            _wait_served(clients)
            # On the way out one more dies in the last handler of a session.
            crashing.plan(["end_of_session:2"])
        finally:
            answered = [client.finish() for client in clients]
        effects = tmp_path / "node" / "effects"
        wait_until(
            lambda: (
                effects.exists()
                and len({line.split()[0] for line in effects.read_text().splitlines()}) == CLIENTS
            ),
            what="the end of every session",
        )
        assert min(answered) > DEPTH
        assert sum(client.attempts for client in clients) > sum(
            client._packet(index)[0] % 2 for client in clients for index in range(client.answered)
        )
        status = crashing.node.wait_status(
            lambda status: status["counters"]["deferred_calls"] == 0, "nothing deferred"
        )
        assert [entry.split(":")[0] for entry in DEATHS] + ["end_of_session"] == [
            instant for instant, _ in crashing.deaths()
        ]
        assert status["counters"]["sessions_opened"] == CLIENTS
        assert "lane_violations" not in status["counters"]
        assert "dead_letters" not in status["counters"]
        assert "raised" not in crashing.node.stderr
        assert crashing.node.drain() == 0
    finally:
        crashing.close()


def test_a_stop_leaves_what_awaits_to_a_successor_and_a_drain_waits_for_it(
    cluster_up: StartNode, tmp_path: Path, lane: str
) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    node = cluster_up("--lane", lane, "--app", "waits:app", "--workers", "1", cwd=tmp_path)
    go = tmp_path / "go"
    with PacketClient(node.port) as client:
        client.send(5, os.fsencode(go))
        client.send(2, b"behind it")
        with PacketClient(node.port) as other:
            assert other.ask(2, b"overtakes") == (2, b"overtakes")
        node.wait_status(lambda status: status["counters"]["deferred_calls"] == 2, "two deferred")
        shown = node.status()["workers"][0]
        assert shown["in_hand"] is None
        awaiting = shown["awaiting"]
        assert (awaiting["packet_id"], awaiting["sequence"]) == (5, 1)
        assert awaiting["for_s"] > 0
        (worker,) = node.worker_pids()
        os.kill(worker, signal.SIGTERM)
        node.wait_restarts(1)
        # Its successor has it in hand now, and the drain waits for that.
        node.signal(signal.SIGTERM)
        wait_until(lambda: "cluster.gateway: draining" in node.stderr, what="the drain")
        go.touch()
        assert client.receive() == (5, os.fsencode(go))
        assert client.receive() == (2, b"behind it")
        client.receive_end()
    assert node.wait_exit() == 0
    assert "the time to drain is up" not in node.stderr


@pytest.mark.parametrize(
    ("packet_id", "deaths", "lane"),
    [(3, 3, LANES[0]), (4, 1, LANES[-1])],
    ids=["kills", "hangs"],
)
@pytest.mark.long
def test_a_step_that_kills_or_hangs_is_set_aside(
    cluster_up: StartNode, tmp_path: Path, packet_id: int, deaths: int, lane: str
) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "waits.toml").write_text(
        f"[workers]\nworker_timeout_s = 2.5\nmax_redeliveries = {deaths}\n"
    )
    node = cluster_up(
        *("--lane", lane, "--app", "waits:app", "--workers", "1"),
        *("--config", str(tmp_path / "waits.toml")),
        cwd=tmp_path,
    )
    with PacketClient(node.port) as client, PacketClient(node.port) as other:
        other.send(1, b"0.05")
        client.send(packet_id, b"poison")
        client.receive_end()
        assert other.receive() == (1, b"0.05")
        assert other.ask(1, b"0") == (1, b"0")
    status = node.wait_restarts(deaths)
    assert status["counters"]["dead_letters"] == 1
    # Its client saw the end a moment before the session was closed.
    node.wait_status(lambda status: status["counters"].get("closed_poison") == 1, "its end")
    assert f"packet 1 (id {packet_id})" in node.stderr
    node.wait_status(lambda status: status["counters"]["deferred_calls"] == 0, "nothing deferred")
    assert node.drain() == 0


@pytest.mark.parametrize("coroutines_max", [1, 1000])
def test_steps_that_kill_in_two_sessions_are_set_aside_one_after_the_other(
    cluster_up: StartNode, tmp_path: Path, coroutines_max: int
) -> None:
    application = WAITS.replace("App()", f"App(coroutines_max={coroutines_max})")
    (tmp_path / "waits.py").write_text(application)
    node = cluster_up("--app", "waits:app", "--workers", "1", cwd=tmp_path)
    with ExitStack() as stack:
        other, *killers = [stack.enter_context(PacketClient(node.port)) for _ in range(3)]
        other.send(1, b"0.05")
        for killer in killers:
            killer.send(3, b"poison")
        for killer in killers:
            killer.receive_end()
        assert other.receive() == (1, b"0.05")
        assert other.ask(1, b"0") == (1, b"0")
    status = node.wait_restarts(6)
    assert status["counters"]["dead_letters"] == 2
    assert node.drain() == 0


@pytest.mark.parametrize(
    ("waiting_max", "counter"), [(0, "coroutines_full"), (100, "coroutines_waited")]
)
@pytest.mark.parametrize("lane", LANES)
def test_a_worker_full_of_coroutines_that_await_binds_gets_on_with_them(
    cluster_up: StartNode, tmp_path: Path, lane: str, waiting_max: int, counter: str
) -> None:
    """It commits nothing until they are done, or as many wait for their turn as may; each wants the
    answer behind the last one."""
    (tmp_path / "logs_in.py").write_text(LOGS_IN)
    node = cluster_up(
        *("--lane", lane, "--app", "logs_in:app", "--workers", "1"),
        cwd=tmp_path,
        env={"WAITING_MAX": str(waiting_max)},
    )
    with ExitStack() as stack:
        clients = [stack.enter_context(PacketClient(node.port)) for _ in range(6)]
        for number in range(4):
            for name, client in enumerate(clients):
                client.send(1, b"%d at %d" % (name, number))
        for number in range(4):
            for name, client in enumerate(clients):
                assert client.receive() == (1, b"%d at %d" % (name, number))
        node.wait_status(lambda status: status["counters"].get(counter, 0) > 0, "it was full")
    assert node.drain() == 0
