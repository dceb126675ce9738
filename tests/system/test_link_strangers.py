"""Strangers of every kind at a node's private address: counted, no answer, no trace."""

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.gateway.links.handshake import GREETING_BYTES, Handshake, LinkIdentity
from tests.support import wait_until
from tests.system.conftest import StartNode
from tests.system.linked_nodes import SECRET, free_ports, wait_linked, write_configs

APP = "tests.applications.playground:app"
ROOT = Path(__file__).parents[2]
ATTEMPTS = 40
"""Of each kind in each round."""
ROUNDS_FIRST = 2
"""Rounds until everything that is made once or grows to a size is there."""
RSS_GROWTH_BYTES_MAX = 1 << 19
"""A page here and there; the 960 connections of two rounds, kept, are more."""

SECRET_BYTES = SECRET.strip().encode()
CLAIMED, KNOCKED_AT = 1, 2


def greeting(cluster: str = "game", node: int = CLAIMED, wanted: int = KNOCKED_AT) -> bytes:
    return Handshake(LinkIdentity(node, 7, cluster, SECRET_BYTES), wanted).begin()


def say(stranger: socket.socket, data: bytes) -> None:
    """Say it and hear nothing but the end."""
    stranger.sendall(data)
    with suppress(ConnectionError):
        assert stranger.recv(1) == b""


def prove_by(secret: bytes) -> Callable[[socket.socket], None]:
    def prove(stranger: socket.socket) -> None:
        handshake = Handshake(LinkIdentity(CLAIMED, 7, "game", secret), KNOCKED_AT)
        stranger.sendall(handshake.begin())
        say(stranger, handshake.take(stranger.recv(GREETING_BYTES, socket.MSG_WAITALL)))

    return prove


class Replay:
    """Says what an honest node said on an earlier connection."""

    def __init__(self) -> None:
        self._heard: tuple[bytes, bytes] | None = None

    def __call__(self, stranger: socket.socket) -> None:
        if self._heard is None:
            handshake = Handshake(LinkIdentity(CLAIMED, 7, "game", SECRET_BYTES), KNOCKED_AT)
            stranger.sendall(handshake.begin())
            proof = handshake.take(stranger.recv(GREETING_BYTES, socket.MSG_WAITALL))
            self._heard = handshake.begin(), proof
            say(stranger, bytes(len(proof)))  # the right one is kept for later
            return
        first, proof = self._heard
        stranger.sendall(first)
        assert len(stranger.recv(GREETING_BYTES, socket.MSG_WAITALL)) == GREETING_BYTES
        say(stranger, proof)


def reflect(stranger: socket.socket) -> None:
    """Say what the node says, as if it were its own peer."""
    stranger.sendall(greeting())
    say(stranger, stranger.recv(GREETING_BYTES, socket.MSG_WAITALL)[:32])


def leave_early(stranger: socket.socket) -> None:
    stranger.sendall(greeting()[:50])
    stranger.shutdown(socket.SHUT_WR)
    assert stranger.recv(1) == b""


KINDS: list[tuple[str, Callable[[socket.socket], None]]] = [
    ("stranger", lambda stranger: say(stranger, b"GET / HTTP/1.1\r\n\r\n".ljust(4_000))),
    ("stranger", lambda stranger: say(stranger, bytes(GREETING_BYTES))),
    ("stranger", lambda stranger: say(stranger, greeting() + b"more at once than is due")),
    ("protocol", lambda stranger: say(stranger, greeting()[:8] + b"\xff\xff" + greeting()[10:])),
    ("cluster", lambda stranger: say(stranger, greeting(cluster="another game"))),
    ("node", lambda stranger: say(stranger, greeting(node=9))),
    ("node", lambda stranger: say(stranger, greeting(wanted=1))),
    ("proof", prove_by(b"another secret of the same length")),
    ("proof", Replay()),
    ("proof", reflect),
    ("gone", leave_early),
]


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="descriptors are counted")
@pytest.mark.parametrize(
    "rounds",
    [
        ROUNDS_FIRST + 2,
        # 12,000 connections, one after the other.
        pytest.param(1_000 // ATTEMPTS, marks=[pytest.mark.long, pytest.mark.timeout(240)]),
    ],
)
def test_strangers_of_every_kind_are_counted_get_nothing_and_leave_no_trace(
    cluster_up: StartNode, tmp_path: Path, rounds: int
) -> None:
    with free_ports(2) as ports:
        configs = write_configs(tmp_path, ports)
        nodes = [cluster_up("--config", str(path), "--app", APP, cwd=ROOT) for path in configs]
    wait_linked(nodes)
    node = nodes[KNOCKED_AT - 1]
    gateway = psutil.Process(node.status()["gateway"]["pid"])
    address = ("127.0.0.1", ports[KNOCKED_AT - 1])

    def knock_all() -> None:
        for _, attempt in KINDS:
            for _ in range(ATTEMPTS):
                with socket.create_connection(address, timeout=10) as stranger:
                    attempt(stranger)
        with ExitStack() as stack:  # and a crowd that says nothing, until it leaves
            for _ in range(ATTEMPTS):
                stack.enter_context(socket.create_connection(address, timeout=10))

    def count_of(status: Any, kind: str) -> int:
        count: int = status["counters"].get(f"links_refused_{kind}", 0)
        return count

    def wait_counted(done: int) -> None:
        expected = {kind: 0 for kind, _ in KINDS}
        for kind, _ in KINDS:
            expected[kind] += ATTEMPTS * done
        expected["gone"] += ATTEMPTS * done
        status = node.wait_status(
            lambda status: all(count_of(status, kind) >= n for kind, n in expected.items()),
            "all attempts counted",
        )
        assert {kind: count_of(status, kind) for kind in expected} == expected
        assert status["links"][0]["state"] == "linked"

    descriptors = gateway.num_fds()
    memory = 0
    for number in range(1, rounds + 1):
        knock_all()
        wait_counted(number)
        if number == ROUNDS_FIRST:
            memory = gateway.memory_info().rss
    wait_until(lambda: gateway.num_fds() <= descriptors, what="descriptors as before")
    assert gateway.memory_info().rss - memory < RSS_GROWTH_BYTES_MAX
