"""The chat and the game of `examples/`, served by real processes to their own terminal clients."""

import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Self

import msgspec
import pytest

from cluster.testing import TestNode
from examples.chat import protocol as chat
from examples.game.protocol import JOIN, NAME_MAX, TICKS_PER_S, WORLD, Join, World, You
from examples.game.server import app as game
from tests.support import wait_until
from tests.system.cluster_node import ROOT, ClusterNode, cluster_environment
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the nodes of these tests need signals")

StartNode = Callable[..., ClusterNode]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    nodes: list[ClusterNode] = []

    def start(app: str) -> ClusterNode:
        nodes.append(ClusterNode(tmp_path / "node", ["--app", app], cwd=ROOT))
        return nodes[-1].wait_ready()

    yield start
    for node in nodes:
        node.close()
        print(node.stderr)


class Terminal:
    """A client whose user is the test."""

    def __init__(self, module: str, name: str, node: ClusterNode) -> None:
        self.lines: deque[str] = deque()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, name, f"127.0.0.1:{node.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=cluster_environment(),
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Wait until a line matches `pattern` as a whole; it and those before it are taken."""
        compiled = re.compile(pattern)
        seen: list[str] = []

        def found() -> "re.Match[str] | None":
            while self.lines:
                seen.append(self.lines.popleft())
                if match := compiled.fullmatch(seen[-1]):
                    return match
            return None

        match = wait_until(found, timeout_s=20, what=f"a line {pattern!r} after {seen}")
        assert match is not None
        return match

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def test_people_chat_in_a_room_across_workers_and_a_death(start_node: StartNode):
    node = start_node("examples.chat.server:app")
    module = "examples.chat.client"
    with Terminal(module, "ann", node) as ann, Terminal(module, "bob", node) as bob:
        for name, terminal in (("ann", ann), ("bob", bob)):
            terminal.wait_for(rf"\* welcome, {name}")
        ann.type("/join garden\n")
        ann.wait_for(r"\[garden\] \* ann came in")
        bob.type("/join garden\n")
        for terminal in (ann, bob):
            terminal.wait_for(r"\[garden\] \* bob came in")
        ann.type("good morning\n")
        for terminal in (ann, bob):
            terminal.wait_for(r"\[garden\] <ann> good morning")
        with Terminal(module, "ann", node) as other:
            other.wait_for(r"\* somebody else has that name")
            other.type("/quit\n")
            assert other.process.wait(10) == 0
        for pid in node.worker_pids():
            os.kill(pid, signal.SIGKILL)
        bob.type("still here?\n")
        for terminal in (ann, bob):
            terminal.wait_for(r"\[garden\] <bob> still here\?")
        bob.type("/leave garden\n")
        ann.wait_for(r"\[garden\] \* bob went away")
        ann.type("/quit\n")
        assert ann.process.wait(10) == 0
        assert node.drain() == 0
        bob.wait_for(r"\* the connection has ended")


def test_who_joins_a_room_behind_the_login_waits_for_the_name(start_node: StartNode):
    node = start_node("examples.chat.server:app")
    with PacketClient(node.port) as client:
        client.send(chat.LOGIN, msgspec.json.encode(chat.Login("ann")))
        client.send(chat.JOIN, msgspec.json.encode(chat.Room("garden")))
        heard = [client.receive() for _ in range(3)]
    assert [packet_id for packet_id, _ in heard] == [chat.NOTICE, chat.NOTICE, chat.LINE]
    assert msgspec.json.decode(heard[1][1], type=chat.Notice).text == "welcome, ann"
    assert msgspec.json.decode(heard[2][1], type=chat.Line).text == "ann came in"


def test_players_move_together_and_stay_where_they_are_when_workers_die(start_node: StartNode):
    node = start_node("examples.game.server:app")
    module = "examples.game.client"
    with Terminal(module, "ann", node) as ann, Terminal(module, "bob", node) as bob:
        ann.wait_for(r"at 20\.0 6\.0, 2 players, \d+ worlds")
        ann.type("w")
        where = r"at 20\.0 0\.0, 2 players, (\d+) worlds"
        ann.wait_for(where)
        bob.wait_for(r"at 20\.0 6\.0, 2 players, \d+ worlds")
        before = int(ann.wait_for(where)[1])
        for pid in node.worker_pids():
            os.kill(pid, signal.SIGKILL)
        # More than came before the death: these worlds are a successor's.
        assert any(int(ann.wait_for(where)[1]) > before + TICKS_PER_S for _ in range(10))
        bob.type("q")
        assert bob.process.wait(10) == 0
        ann.wait_for(r"at 20\.0 0\.0, 1 players, \d+ worlds")


def test_players_are_known_by_an_id_that_no_session_of_the_cluster_shares():
    with TestNode(game) as node:
        client = node.connect()
        client.send(JOIN, Join("ann"))
        assert client.receive().decode(You) == You(client.session.id)
        node.advance(1 / TICKS_PER_S)
        world = client.receive().decode(World)
        assert (world.node, world.shard) == (1, 0)
        assert [player.player for player in world.players] == [client.session.id]


def test_time_goes_on_where_the_last_save_left_it():
    with TestNode(game) as node:
        client = node.connect()
        client.send(JOIN, Join("ann"))
        node.advance(1)
        seen = [packet.decode(World).tick for packet in client.received if packet.id == WORLD]
        assert len(seen) == TICKS_PER_S
        node.kill_worker()
        node.advance(1)
        after = [packet.decode(World).tick for packet in client.received if packet.id == WORLD]
        assert after[: len(seen)] == seen
        assert after[len(seen)] == seen[-1] + 1  # saved with the last tick: 20 is a multiple of 10


def test_a_player_without_a_proper_name_is_told_by_the_end_of_its_session():
    with TestNode(game) as node:
        client = node.connect()
        client.send(JOIN, Join("x" * (NAME_MAX + 1)))
        assert client.cause == "bad_name"


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("examples.chat.client", ["ann", "nowhere"], "'nowhere' is not an address"),
        ("examples.game.client", ["ann", "7777"], "'7777' is not an address"),
        ("examples.game.client", ["x" * (NAME_MAX + 1)], "give 1 to 12 characters"),
    ],
)
def test_a_client_says_what_it_cannot_do_with_its_arguments(
    module: str, arguments: list[str], told: str
):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=cluster_environment(),
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert told in done.stdout
