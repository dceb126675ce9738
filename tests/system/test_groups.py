"""Groups with real processes: members on several shards, and workers that are killed meanwhile."""

import os
import signal
import threading
from collections import defaultdict
from contextlib import ExitStack

from tests.applications.rooms import ENTER, HEARD, LEAVE, TALK, WHERE, WHISPER
from tests.system.cluster_node import ROOT
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

APP = ("--app", "tests.applications.rooms:app", "--workers", "2")


def test_members_of_all_shards_hear_what_is_published_and_others_do_not(cluster_up: StartNode):
    node = cluster_up(*APP, cwd=ROOT)
    with ExitStack() as stack:
        clients = [stack.enter_context(PacketClient(node.port)) for _ in range(6)]
        shards = {client.ask(WHERE, b"")[1] for client in clients}
        assert len(shards) == 2
        for client in clients[:4]:
            assert client.ask(ENTER, b"room") == (ENTER, b"room")
        clients[0].send(TALK, b"to all")
        for client in clients[:4]:
            assert client.receive() == (HEARD, b"to all")
        clients[1].send(WHISPER, b"to the others")
        assert clients[1].ask(LEAVE, b"room") == (LEAVE, b"room")
        clients[2].send(TALK, b"last")
        for client in (clients[0], clients[2], clients[3]):
            assert client.receive() == (HEARD, b"to the others")
            assert client.receive() == (HEARD, b"last")
        clients[3].socket.close()
        for client in (clients[0], clients[2]):
            assert client.receive() == (LEAVE, b"eof")
        # Who is in no room has heard nothing: the next packet is the answer.
        for client in (clients[1], clients[4], clients[5]):
            assert client.ask(WHERE, b"")[0] == WHERE


class Member:
    """A client that talks, and hears all that its room says, in a thread of its own."""

    def __init__(self, number: int, port: int, expected: int) -> None:
        self.number = number
        self.heard: dict[int, list[int]] = defaultdict(list)
        self.client = PacketClient(port, timeout_s=40)
        self._expected = expected
        self._thread = threading.Thread(target=self._listen)

    def start(self) -> None:
        assert self.client.ask(ENTER, b"room") == (ENTER, b"room")
        self._thread.start()

    def _listen(self) -> None:
        for _ in range(self._expected):
            packet_id, payload = self.client.receive()
            assert packet_id == HEARD
            sender, number = payload.split()
            self.heard[int(sender)].append(int(number))

    def talk(self, number: int) -> None:
        self.client.send(TALK, b"%d %d" % (self.number, number))

    def finish(self) -> None:
        self._thread.join(40)
        assert not self._thread.is_alive()


def test_workers_killed_while_members_talk_lose_and_repeat_nothing(
    cluster_up: StartNode, lane: str
) -> None:
    count, rounds, kills = 8, 150, 4
    node = cluster_up(*APP, "--lane", lane, cwd=ROOT)
    members = [Member(number, node.port, count * rounds) for number in range(count)]
    for member in members:
        member.start()
    killed = 0
    for number in range(rounds):
        if number % (rounds // kills) == 5:
            status = node.wait_status(
                lambda status, killed=killed: (
                    all(worker["state"] == "ready" for worker in status["workers"])
                    and sum(worker["restarts"] for worker in status["workers"]) == killed
                ),
                "both workers",
            )
            os.kill(status["workers"][killed % 2]["pid"], signal.SIGKILL)
            killed += 1
        for member in members:
            member.talk(number)
    for member in members:
        member.finish()
        assert dict(member.heard) == {sender: list(range(rounds)) for sender in range(count)}
        assert member.client.ask(WHERE, b"")[1].split()[1:] == [b"room"]
    for member in members:
        member.client.socket.close()
