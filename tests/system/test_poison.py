"""What kills or hangs each worker that takes it is set aside; everybody else is served on."""

import base64
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from tests.system.checked_client import CheckedClient
from tests.system.cluster_node import ClusterNode, run_cluster
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

DIE, HANG, WHO = 65_500, 65_501, 65_502
ECHO = 1

QUICK = """
[workers]
worker_timeout_s = 2.5
max_redeliveries = 2
"""
"""Two lives hang so long, in which a test has to see what is in hand."""


class Bench:
    """A node of one shard with the deadly application, and clients that check their echoes."""

    def __init__(
        self,
        start: StartNode,
        directory: Path,
        config: str | None = None,
        app: str = "tests.applications.deadly:app",
    ) -> None:
        self.directory = directory
        arguments = ["--app", app, "--workers", "1"]
        if config is not None:
            (directory / "poison.toml").write_text(config)
            arguments += ["--config", str(directory / "poison.toml")]
        self.node: ClusterNode = start(*arguments, env={"DEADLY": str(directory)})
        self.others = [CheckedClient(self.node.port, number) for number in range(4)]
        for other in self.others:
            other.start()

    def calls(self) -> Counter[tuple[str, int, int]]:
        """Return how often each handler call was begun: name, session, sequence."""
        lines = (self.directory / "calls").read_text().splitlines()
        words = [line.split() for line in lines]
        return Counter((name, int(session), int(sequence)) for name, session, sequence in words)

    def ask_for(self, event: str, session: int | str) -> None:
        """Have workers die in this event of `session`, or of any."""
        (self.directory / event).write_text(str(session))

    def wait_set_aside(self, count: int = 1) -> Any:
        """Wait until so much is set aside and the shard is served again."""
        return self.node.wait_status(
            lambda status: (
                status["counters"].get("dead_letters") == count
                and status["workers"][0]["state"] == "ready"
            ),
            "what is poison to be set aside",
            timeout_s=40,
        )

    def letters(self) -> list[dict[str, Any]]:
        """Return what `cluster dead-letters --json` prints."""
        done = run_cluster("dead-letters", "--run-dir", str(self.node.run_dir), "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def finish(self) -> None:
        """Check that the others were served all along, and are; end the node in order."""
        before = [other.answered for other in self.others]
        self.node.wait_status(
            lambda _: all(
                other.answered > count or other.failure
                for other, count in zip(self.others, before, strict=True)
            ),
            "every other client is answered",
        )
        for other in self.others:
            other.finish()
        self.node.wait_status(
            lambda status: (
                status["counters"]["uncommitted_bytes"] == 0
                and status["workers"][0]["in_hand"] is None
            ),
            "nothing in hand",
        )
        assert self.node.drain() == 0
        assert not list(self.node.run_dir.glob("note-*"))


def _session_of(client: PacketClient) -> int:
    return int(client.ask(WHO, b"")[1])


def test_a_packet_that_kills_each_worker_is_set_aside_after_three_deaths(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path)
    with PacketClient(bench.node.port) as victim:
        session = _session_of(victim)
        payload = bytes(range(256))
        address = "{}:{}".format(*victim.socket.getsockname())
        victim.socket.sendall(
            make_packet(ECHO, b"before")
            + make_packet(DIE, payload)
            + make_packet(ECHO, b"behind")
            + make_packet(DIE, b"never run")
        )
        assert victim.receive() == (ECHO, b"before")
        with pytest.raises(EOFError):
            victim.receive()
    status = bench.wait_set_aside()
    bench.node.wait_restarts(3)
    calls = bench.calls()
    assert calls["die", session, 3] == 3
    assert calls["echo", session, 2] <= 2, "what came before it was run again because of it"
    assert calls["echo", session, 4] == calls["die", session, 5] == 0
    (letter,) = bench.letters()
    time = letter.pop("time")
    assert time.endswith("+00:00")
    assert letter == {
        "node": 1,
        "epoch": status["epoch"],
        "shard": 0,
        "session": session,
        "address": address,
        "kind": "packet",
        "packet_id": DIE,
        "sequence": 3,
        "payload": base64.b64encode(payload).decode(),
        "deaths": 3,
    }
    bench.node.wait_status(lambda status: status["counters"].get("closed_poison") == 1, "its end")
    bench.finish()
    ends = [of for name, of, _ in bench.calls() if name == "disconnected"]
    assert ends.count(session) == 1


@pytest.mark.long
def test_of_packets_that_came_together_the_one_that_kills_is_found(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path, app="tests.applications.deadly_together:app")
    with PacketClient(bench.node.port) as victim:
        session = _session_of(victim)
        victim.socket.sendall(
            b"".join(make_packet(ECHO, b"%d" % number) for number in range(5))
            + make_packet(DIE, b"this one")
            + make_packet(ECHO, b"behind")
        )
        assert [victim.receive() for _ in range(5)] == [(ECHO, b"%d" % n) for n in range(5)]
        with pytest.raises(EOFError):
            victim.receive()
    bench.wait_set_aside()
    calls = bench.calls()
    # Once more if it was not the first of those that it came with: then they died by that name.
    assert calls["die", session, 7] in (3, 4)
    assert calls["echo", session, 8] == 0
    (letter,) = bench.letters()
    assert (letter["packet_id"], letter["sequence"], letter["deaths"]) == (DIE, 7, 3)
    assert base64.b64decode(letter["payload"]) == b"this one"
    bench.node.wait_status(lambda status: status["counters"].get("closed_poison") == 1, "its end")
    bench.finish()


def test_a_handler_that_hangs_is_seen_in_the_status_and_set_aside(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path, QUICK)
    with PacketClient(bench.node.port) as victim:
        session = _session_of(victim)
        victim.send(HANG, b"for ever")
        for for_s in (0.0, 0.5):
            status = bench.node.wait_status(
                lambda status, for_s=for_s: (
                    (status["workers"][0]["in_hand"] or {}).get("packet_id") == HANG
                    and status["workers"][0]["in_hand"]["for_s"] >= for_s
                ),
                f"the packet in hand for {for_s} s",
            )
            in_hand = status["workers"][0]["in_hand"]
            assert (in_hand["session"], in_hand["sequence"]) == (session, 2)
            assert in_hand["for_s"] < 5
        with pytest.raises(EOFError):
            victim.receive()
    bench.wait_set_aside()
    bench.node.wait_restarts(2)
    assert bench.calls()["hang", session, 2] == 2
    (letter,) = bench.letters()
    assert (letter["packet_id"], letter["sequence"], letter["deaths"]) == (HANG, 2, 2)
    assert bench.node.stderr.count("deadly.py") >= 2, "where each of them hung"
    bench.finish()


def test_poison_in_on_connected_ends_that_session_alone(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path)
    bench.node.wait_status(lambda _: all(o.answered for o in bench.others), "the other clients")
    bench.ask_for("connected", "any")
    with PacketClient(bench.node.port) as victim:
        victim.send(ECHO, b"is anybody there?")
        with pytest.raises(EOFError):
            victim.receive()
    (tmp_path / "connected").unlink()
    bench.wait_set_aside()
    (letter,) = bench.letters()
    assert (letter["kind"], letter["packet_id"], letter["payload"]) == ("opened", None, None)
    assert letter["deaths"] == 3
    calls = bench.calls()
    assert calls["connected", letter["session"], 0] == 3
    assert calls["echo", letter["session"], 1] == 0
    bench.finish()


@pytest.mark.long
def test_poison_in_on_disconnected_is_skipped(cluster_up: StartNode, tmp_path: Path) -> None:
    bench = Bench(cluster_up, tmp_path)
    with PacketClient(bench.node.port) as victim:
        session = _session_of(victim)
        bench.ask_for("disconnected", session)
    bench.wait_set_aside()
    (letter,) = bench.letters()
    assert (letter["kind"], letter["session"]) == ("closed", session)
    ended = [count for (name, of, _), count in bench.calls().items() if name == "disconnected"]
    assert sum(ended) == 3
    bench.finish()


@pytest.mark.long
def test_poison_in_on_resumed_ends_that_session_alone(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path)
    with PacketClient(bench.node.port) as victim:
        session = _session_of(victim)
        bench.ask_for("resumed", session)
        os.kill(bench.node.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(EOFError):
            victim.receive()
    bench.wait_set_aside()
    bench.node.wait_restarts(4)
    (letter,) = bench.letters()
    assert (letter["kind"], letter["session"]) == ("resumed", session)
    assert bench.calls()["resumed", session, 1] == 3
    bench.finish()


@pytest.mark.long
def test_two_packets_that_kill_are_set_aside_one_after_the_other(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path)
    victims = [PacketClient(bench.node.port) for _ in range(2)]
    for victim in victims:
        victim.send(DIE, b"")
    for victim in victims:
        with victim, pytest.raises(EOFError):
            victim.receive()
    bench.wait_set_aside(2)
    bench.node.wait_restarts(6)
    assert len({letter["session"] for letter in bench.letters()}) == 2
    bench.finish()


@pytest.mark.long
def test_a_killed_worker_with_nothing_in_hand_is_held_against_nobody(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    bench = Bench(cluster_up, tmp_path)
    for other in bench.others:
        other.finish()
    with PacketClient(bench.node.port) as client:
        for restarts in range(1, 5):
            assert client.ask(ECHO, b"still there?") == (ECHO, b"still there?")
            os.kill(bench.node.worker_pids()[0], signal.SIGKILL)
            bench.node.wait_status(
                lambda status, restarts=restarts: (
                    status["workers"][0]["restarts"] == restarts
                    and status["workers"][0]["state"] == "ready"
                ),
                "the successor",
            )
    assert "dead_letters" not in bench.node.counters()
    assert bench.letters() == []
    assert bench.node.drain() == 0


@pytest.mark.long
def test_the_death_that_has_a_packet_set_aside_is_not_the_one_that_ends_the_node(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    """Two useless lives and three that die of a packet are five, and the last one was of use."""
    app = "tests.applications.deadly:app"
    node = cluster_up("--app", app, "--workers", "1", env={"DEADLY": str(tmp_path)})
    seen: set[int] = set()

    def ready_pid() -> int:
        status = node.wait_status(
            lambda status: (
                status["workers"][0]["state"] == "ready" and status["workers"][0]["pid"] not in seen
            ),
            "a worker that is new",
        )
        pid: int = status["workers"][0]["pid"]
        seen.add(pid)
        return pid

    with PacketClient(node.port) as client:
        assert client.ask(WHO, b"")[0] == WHO
        for _ in range(3):  # the first of these had committed something
            os.kill(ready_pid(), signal.SIGKILL)
        ready_pid()
        client.send(DIE, b"")
        client.receive_end()
    with PacketClient(node.port) as client:
        assert client.ask(ECHO, b"alive") == (ECHO, b"alive")
    assert node.counters()["dead_letters"] == 1
    assert node.drain() == 0
