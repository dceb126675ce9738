"""Whatever becomes of nodes, workers and the network: a message is handled, or undelivered."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from cluster.testing import TestCluster
from cluster.worker import App, AskFailed, Session, ShardId, Undelivered

TELL, ASK = 1, 2


class Note(msgspec.Struct):
    number: int


class Question(msgspec.Struct):
    number: int


class Answer(msgspec.Struct):
    number: int


class Ledger:
    """What an application that tells and asks has seen."""

    def __init__(self) -> None:
        self.told: Counter[int] = Counter()
        self.undelivered: Counter[int] = Counter()
        self.key_changes = 0
        self.app = app = App()

        @app.on_packet(TELL)
        def tell(session: Session, number: bytes) -> None:
            app.tell_key(number, Note(int(number)))

        @app.on_packet(ASK)
        async def ask(session: Session, number: bytes) -> None:
            try:
                await app.ask(number, Question(int(number)), Answer, timeout_s=3)
            except (TimeoutError, Undelivered, AskFailed) as error:
                session.send(ASK, type(error).__name__.encode())
            else:
                session.send(ASK, number)

        @app.on_message
        def noted(note: Note, sender: ShardId) -> None:
            self.told[note.number] += 1

        @app.on_message
        async def asked(question: Question, sender: ShardId) -> Answer:
            return Answer(question.number)

        @app.on_undelivered
        def undelivered(message: object, receiver: ShardId | bytes) -> None:
            assert isinstance(message, Note)
            self.undelivered[message.number] += 1

        @app.on_keys
        def keys_changed(owners: tuple[int, ...]) -> None:
            self.key_changes += 1


def _play(seed: int) -> list[Any]:
    """Let a cluster live through what `seed` decides; return what has been seen of it."""
    chance = random.Random(seed)
    ledger = Ledger()
    sent: dict[int, int] = {}
    """The node that has told each note, as long as that lives."""
    seen: list[Any] = []
    number = 0
    with TestCluster(ledger.app, nodes=3, workers=chance.choice((1, 2))) as cluster:
        clients = [(node, node.connect()) for node in cluster.nodes]
        dead: list[Any] = []
        for _ in range(120):
            nodes = cluster.nodes
            node = chance.choice(nodes)
            match chance.choice("ttttaacmmwkskjrv"):
                case "t" | "a" as what:
                    number += 1
                    _, client = chance.choice(clients)
                    if client.is_connected:
                        if what == "t":
                            sent[number] = client.session.id >> 48
                        client.send(TELL if what == "t" else ASK, b"%d" % number)
                case "c" if len(nodes) > 1:
                    other = chance.choice([each for each in nodes if each is not node])
                    cluster.cut(node, other, one_way=chance.random() < 0.3)
                case "m":
                    cluster.mend()
                case "w":
                    node.kill_worker(at_commit=chance.random() < 0.5)
                case "k" if len(nodes) > 1 and chance.random() < 0.5:
                    cluster.kill(node)
                    dead.append(node)
                    sent = {note: teller for note, teller in sent.items() if teller != node.id}
                case "s" if dead:
                    node = cluster.start(dead.pop(chance.randrange(len(dead))))
                    clients.append((node, node.connect()))
                case "j" if len(nodes) < 5 and chance.random() < 0.5:
                    node = cluster.add()
                    clients.append((node, node.connect()))
                case "r" if len(nodes) > 2 and chance.random() < 0.5:
                    cluster.remove(node)
                    sent = {note: teller for note, teller in sent.items() if teller != node.id}
                case "v":
                    cluster.advance(chance.choice((0.1, 1, 5, 20)))
            seen.append(cluster.describe())
        cluster.mend()
        for node in dead:
            cluster.start(node)
        cluster.advance(60)
        assert cluster.describe() == "the cluster is at rest"
        for note in sent:
            assert ledger.told[note] or ledger.undelivered[note], note
        seen.append([client.received for _, client in clients])
        seen.append([node.counters for node in cluster.nodes])
        seen.append((cluster.now, ledger.told, ledger.undelivered, ledger.key_changes))
    return seen


@pytest.mark.parametrize("seed", range(10))
def test_whatever_becomes_of_nodes_no_message_is_lost_in_silence(seed: int):
    assert _play(seed) == _play(seed)
