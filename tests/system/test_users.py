"""Users of a whole node: second logins and messages across shards, also while workers die."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.applications.logins import ANSWER, GONE, KICK, LOGIN, LOGOUT, WHISPER, WHO
from tests.system.cluster_node import ClusterNode
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

APP = ("--app", "tests.applications.logins:app", "--workers", "2")
BY_TURNS = """
[gateway]
routing = "round_robin"
"""


@pytest.fixture
def by_turns(tmp_path: Path) -> tuple[str, str]:
    """Arguments for a node whose clients go to its shards by turns."""
    path = tmp_path / "by-turns.toml"
    path.write_text(BY_TURNS)
    return "--config", str(path)


def log_in(client: PacketClient, name: str) -> str:
    packet_id, told = client.ask(LOGIN, name.encode())
    assert packet_id == ANSWER
    return told.decode()


def who(client: PacketClient) -> list[str]:
    """Return user, process, and the user in `on_resumed`."""
    packet_id, told = client.ask(WHO, b"")
    assert packet_id == WHO
    return told.decode().split()


def kill_by_turns(node: ClusterNode, number: int) -> None:
    """Kill a worker for the `number`th time, from 0: the two by turns, one that has taken over."""
    expected = [(number + 1) // 2, number // 2]
    status = node.wait_status(
        lambda status: (
            [worker["restarts"] for worker in status["workers"]] == expected
            and all(worker["state"] == "ready" for worker in status["workers"])
        ),
        f"the restarts {expected}",
    )
    os.kill(status["workers"][number % 2]["pid"], signal.SIGKILL)


def test_a_second_login_in_another_shard_replaces_the_first(
    cluster_up: StartNode, lane: str, by_turns: tuple[str, str]
) -> None:
    node = cluster_up(*APP, *by_turns, "--lane", lane)
    with PacketClient(node.port) as older, PacketClient(node.port) as newer:
        assert who(older)[1] != who(newer)[1]  # they are in two shards
        assert log_in(older, "ann") == "bound ann"
        newer.send(WHISPER, b"ann from another shard")
        assert older.receive() == (WHISPER, b"from another shard")
        assert log_in(newer, "ann") == "bound ann"
        older.receive_end()
        older.socket.close()
        # Which the other shard's worker tells, to the user.
        assert newer.receive() == (GONE, b"replaced")
        assert log_in(newer, "ann") == "bound ann"
        newer.send(WHISPER, b"ann to myself")
        assert newer.receive() == (WHISPER, b"to myself")
        assert newer.ask(LOGOUT, b"") == (LOGOUT, b"None")
        newer.send(WHISPER, b"ann to nobody")
        assert newer.ask(KICK, b"why") == (KICK, b"why")
        newer.receive_end()
    counters = node.wait_status(
        lambda status: status["gateway"]["sessions"] == 0, "the end of both sessions"
    )["counters"]
    assert counters["closed_replaced"] == 1
    assert counters["closed_kicked"] == 1
    assert counters["sends_to_absent_users"] == 1
    assert node.drain() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_newest_login_wins_also_while_workers_are_killed(
    cluster_up: StartNode, by_turns: tuple[str, str]
) -> None:
    node = cluster_up(*APP, *by_turns)
    with PacketClient(node.port) as observer:
        newest: PacketClient | None = None
        for number in range(6):
            older, newest = newest, PacketClient(node.port)
            newest.send(LOGIN, b"ann")
            kill_by_turns(node, number)
            assert newest.receive() == (ANSWER, b"bound ann")
            if older is not None:
                older.receive_end()
                older.socket.close()
                assert newest.receive() == (GONE, b"replaced")
            observer.send(WHISPER, b"ann %d" % number)
            assert newest.receive() == (WHISPER, b"%d" % number)
        assert newest is not None
        # Nothing came twice: what is asked last is answered next.
        assert who(newest)[0] == "ann"
        newest.socket.close()
    assert node.wait_restarts(3, 3)["counters"]["closed_replaced"] == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.long
def test_who_is_logged_in_stays_so_while_workers_are_killed(
    cluster_up: StartNode, by_turns: tuple[str, str]
) -> None:
    node = cluster_up(*APP, *by_turns, env={"SECOND_LOGIN": "reject"})
    with PacketClient(node.port) as holder, PacketClient(node.port) as rival:
        assert log_in(holder, "ann") == "bound ann"
        first = who(holder)
        for number in range(4):
            rival.send(LOGIN, b"ann")
            rival.send(LOGIN, b"bob")
            kill_by_turns(node, number)
            was_bob = "bob" if number else "None"
            assert rival.receive() == (ANSWER, b"rejected %s" % was_bob.encode())
            assert rival.receive() == (ANSWER, b"bound bob")
            rival.send(WHISPER, b"ann %d" % number)
            assert holder.receive() == (WHISPER, b"%d" % number)
        user, process, resumed = who(holder)
        assert (user, resumed) == ("ann", "ann")
        assert process != first[1]
        # A client that has gone frees its user, whatever became of its worker.
        holder.socket.close()
        node.wait_status(lambda status: status["gateway"]["sessions"] == 1, "the holder's end")
        assert log_in(rival, "ann") == "bound ann"
    assert node.counters()["binds_rejected"] == 4
