"""Clients that break every rule end their own sessions, and nobody else's."""

import contextlib
import random
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.applications import playground
from tests.support import wait_until
from tests.system.cluster_node import ClusterNode
from tests.system.outcome import Outcome
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")

ECHO = playground.ECHO
# The queue holds its half, at which a client is paused, and what one more recv can bring (two
# driver buffers, with what the last one left): nobody's own replies make it overflow.
CONFIG = """
[gateway]
max_packet_bytes = 4096
send_queue_bytes_max = 262144
send_stall_timeout_s = 1.5
close_timeout_s = 1.0
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, socket_driver: str) -> Iterator[ClusterNode]:
    """Return a node with narrow bounds, on each driver."""
    directory = tmp_path_factory.mktemp("narrow")
    config = directory / "narrow.toml"
    config.write_text(CONFIG)
    arguments = ["--workers", "2", "--config", str(config), "--app", "playground:app"]
    arguments += ["--driver", socket_driver]
    node = ClusterNode(directory, arguments, cwd=Path(playground.__file__).parent)
    try:
        yield node.wait_ready()
    finally:
        node.close()


class Neighbour(threading.Thread):
    """A good client that asks all the time, and whose every answer has to be right."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.client = PacketClient(port)
        assert self.client.receive()[0] == playground.GREETING
        self.asked = 0
        self.pushed = 0
        self.failure: BaseException | None = None
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self.ask(b"%d" % self.asked * (self.asked % 100))
                self.asked += 1
        except BaseException as error:
            self.failure = error

    def ask(self, payload: bytes) -> None:
        self.client.send(ECHO, payload)
        while (answer := self.client.receive()) != (ECHO, payload):
            assert answer[0] == playground.TO_ALL, answer
            self.pushed += 1

    def wait_served(self) -> None:
        """Wait until it has had some answers more."""
        goal = self.asked + 3
        wait_until(lambda: self.asked >= goal or self.failure, what="answers for the neighbour")
        assert self.failure is None, self.failure

    def finish(self) -> None:
        self._stop_asked.set()
        self.join(30)
        self.client.socket.close()
        assert not self.is_alive()
        if self.failure is not None:
            raise AssertionError(f"the neighbour, at question {self.asked}") from self.failure


@contextmanager
def everything_comes_back(node: ClusterNode) -> Iterator[tuple[Neighbour, Outcome]]:
    """Have a neighbour served throughout; then wait until all is as it was before."""
    before = node.status()
    gateway = psutil.Process(before["gateway"]["pid"])
    outcome = Outcome(node)  # the neighbour's own end is an `eof`
    neighbour = Neighbour(node.port)
    descriptors = gateway.num_fds()
    neighbour.start()
    try:
        yield neighbour, outcome
        neighbour.wait_served()
        node.wait_status(lambda status: status["gateway"]["sessions"] == 1, "one session is left")
        wait_until(lambda: gateway.num_fds() <= descriptors, what="descriptors come back")
    finally:
        neighbour.finish()
    status = node.wait_status(
        lambda status: (
            status["gateway"]["sessions"] == 0
            and status["counters"]["uncommitted_bytes"] == 0
            and status["counters"]["sessions_held"] == 0
        ),
        "nothing is left",
    )
    assert outcome.counters["sessions_opened"] == outcome.counters["sessions_closed"]
    assert status["gateway"]["pid"] == gateway.pid
    assert [_of_worker(worker) for worker in status["workers"]] == [
        _of_worker(worker) for worker in before["workers"]
    ]


def _of_worker(worker: Any) -> Any:
    """Return what a status tells of a worker that is the same as long as it lives."""
    return {key: value for key, value in worker.items() if key != "waits"}


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _deaf(port: int) -> socket.socket:
    """Return a client that is never going to read."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    deaf.settimeout(0.1)
    deaf.connect(("127.0.0.1", port))
    return deaf


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4_097, 65_535])
def test_a_size_that_no_packet_may_have_ends_the_session(node: ClusterNode, size: int) -> None:
    with everything_comes_back(node) as (neighbour, outcome):
        for _ in range(10):
            with PacketClient(node.port) as bad:
                assert bad.receive()[0] == playground.GREETING
                assert bad.ask(ECHO, b"a good one first") == (ECHO, b"a good one first")
                bad.socket.sendall(struct.pack("<HH", size, 1) + b"rest")
                bad.receive_end()
        neighbour.wait_served()
    assert outcome.causes == {"bad_size": 10, "eof": 1}
    assert node.status_command()["counters"]["closed_bad_size"] >= 10


def test_random_bytes_end_their_own_session_only(node: ClusterNode) -> None:
    source = random.Random(20)
    with everything_comes_back(node) as (neighbour, outcome):
        for _ in range(30):
            with PacketClient(node.port) as bad:
                # Ends by itself: random sizes are above the allowed 4,096 fifteen times of sixteen.
                with contextlib.suppress(OSError):
                    bad.socket.sendall(source.randbytes(source.randrange(1, 60_000)))
                with contextlib.suppress(OSError):  # it may have been cut off already
                    bad.socket.shutdown(socket.SHUT_WR)
                bad.receive_end()
        neighbour.wait_served()
    assert outcome.causes["bad_size"] >= 20
    assert outcome.counters["sessions_closed"] == 31


def test_a_reset_in_the_middle_of_a_packet_is_the_end_of_it(node: ClusterNode) -> None:
    with everything_comes_back(node) as (neighbour, outcome):
        for _ in range(30):
            bad = PacketClient(node.port)
            assert bad.receive()[0] == playground.GREETING
            bad.socket.sendall(struct.pack("<HH", 1_000, ECHO) + b"only a part")
            _reset(bad.socket)
        neighbour.wait_served()
    assert outcome.causes == {"reset": 30, "eof": 1}


def test_hundreds_that_connect_and_vanish_leave_nothing(node: ClusterNode) -> None:
    with everything_comes_back(node) as (neighbour, _):
        for index in range(400):
            sock = socket.create_connection(("127.0.0.1", node.port))
            if index % 2:
                _reset(sock)
            else:
                sock.close()
        neighbour.wait_served()


def test_a_client_that_ends_its_side_in_the_middle_of_a_packet_is_closed(
    node: ClusterNode,
) -> None:
    with everything_comes_back(node) as (_, outcome), PacketClient(node.port) as half:
        assert half.receive()[0] == playground.GREETING
        half.socket.sendall(struct.pack("<HH", 1_000, ECHO) + b"half of a packet, and then EOF")
        half.socket.shutdown(socket.SHUT_WR)
        assert half.socket.recv(1) == b""
    assert outcome.causes == {"eof": 2}


def test_a_client_that_keeps_its_side_open_is_closed_all_the_same(node: ClusterNode) -> None:
    """It is told the end, and never answers it."""
    with everything_comes_back(node) as (neighbour, outcome), PacketClient(node.port) as rude:
        assert rude.receive()[0] == playground.GREETING
        rude.send(playground.RAISE, b"")
        assert rude.socket.recv(1) == b""
        neighbour.wait_served()
        node.wait_status(
            lambda status: status["gateway"]["sessions"] == 1, "it is closed within its time"
        )
    assert outcome.causes == {"handler_error": 1, "eof": 1}


LOG_RECORD = re.compile(r"\d{4}-\d\d-\d\d [\d:,]{12} [A-Z]+ [a-z]+(-\d+)?\[\d+\] cluster\.[\w.]+: ")
"""How a record of the log begins."""


def test_what_clients_say_in_a_traceback_passes_for_no_line_of_the_log(node: ClusterNode) -> None:
    """The application raises with their text, as it is."""
    begins = "2026-01-01 00:00:00,000 ERROR gateway[1] cluster.gateway: forged"
    # With the one above not more than the tracebacks that one worker logs in 10 s.
    ends = ["\n", "\r", "\r\n", "\v\f", "\x1c", "\x85", "\u2028", "\x1b[2K\x1b[1G", "x" * 4_050]
    with everything_comes_back(node) as (_, outcome):
        before = len(node.stderr)
        for end in ends:
            with PacketClient(node.port) as forger:
                assert forger.receive()[0] == playground.GREETING
                text = "".join(f"{end}{begins}" for _ in range(3))[:4_000]
                forger.send(playground.RAISE, text.encode())
                assert forger.socket.recv(1) == b""
    log = node.stderr[before:]
    assert log.count("ValueError: the application is broken here") == len(ends)
    for line in log.splitlines():  # which splits where any reader might
        assert line.startswith("    ") or LOG_RECORD.match(line), line
        assert line.isprintable()
        assert not line.startswith("2026-01-01")
    assert outcome.causes["handler_error"] == len(ends)


def test_a_reader_that_never_reads_is_paused_and_then_cut_off(node: ClusterNode) -> None:
    packet = struct.pack("<HH", 4_096, ECHO) + b"x" * 4_092
    with everything_comes_back(node) as (neighbour, outcome), _deaf(node.port) as deaf:
        is_cut_off = False
        while not is_cut_off:
            try:
                deaf.send(packet)
            except TimeoutError:  # it is not read any more, for nothing leaves it
                neighbour.wait_served()
            except OSError:
                is_cut_off = True
    assert outcome.counters["slow_reader_paused"] >= 1
    assert outcome.causes == {"send_stalled": 1, "eof": 1}


def test_a_reader_that_never_reads_what_others_push_is_cut_off(node: ClusterNode) -> None:
    with everything_comes_back(node) as (neighbour, outcome):
        overflows = node.counters().get("closed_send_overflow", 0)
        with _deaf(node.port), PacketClient(node.port) as talker:
            assert talker.receive()[0] == playground.GREETING
            pushed = 0

            def is_cut_off() -> bool:
                nonlocal pushed
                talker.send(playground.PUSH, b"x" * 4_000)
                for _ in range(64):
                    assert talker.receive() == (playground.TO_ALL, b"x" * 4_000)
                pushed += 64  # as much as the queue of the neighbour holds, who has to keep up
                wait_until(
                    lambda: neighbour.pushed >= pushed or neighbour.failure, what="the neighbour"
                )
                counters = node.counters()
                return bool(counters.get("closed_send_overflow", 0) > overflows)

            wait_until(is_cut_off, interval_s=0, timeout_s=20, what="the overflow")
            neighbour.wait_served()
    assert neighbour.pushed >= 64
    assert outcome.causes == {"send_overflow": 1, "eof": 2}


def test_clients_that_drip_bytes_hold_up_nobody(node: ClusterNode) -> None:
    with everything_comes_back(node) as (neighbour, outcome), contextlib.ExitStack() as stack:
        drips = [stack.enter_context(PacketClient(node.port)) for _ in range(20)]
        for drip in drips:
            assert drip.receive()[0] == playground.GREETING
        for byte in struct.pack("<HH", 200, ECHO) + b"d" * 60:
            for drip in drips:
                drip.socket.send(bytes((byte,)))
        neighbour.wait_served()
    assert outcome.causes == {"eof": 21}
