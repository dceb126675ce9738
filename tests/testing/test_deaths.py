"""Workers that are killed in a test: what is lost, what is not, what an author can see of it."""

import asyncio
from typing import Any

import pytest

from cluster.testing import Packet, TestNode
from cluster.worker import App, Session

COUNT, TELL, KILL = 1, 2, 3


class Bench:
    """An application that counts packets in `saved`, in `state` and in effects outside."""

    def __init__(self) -> None:
        self.app = App()
        self.effects: list[tuple[int, bool]] = []
        """(sequence, redelivered) of each run of the handler."""
        self.log: list[Any] = []
        self.node: TestNode | None = None
        app = self.app
        app.on_start(lambda: self.log.append("start"))
        app.on_connected(lambda session: self.log.append("connected"))
        app.on_resumed(lambda session: self.log.append(("resumed", session.saved, session.state)))
        app.on_disconnected(lambda session, cause: self.log.append(cause))
        app.on_packet(COUNT)(self._count)
        app.on_packet(TELL)(lambda session, payload: session.send(TELL, payload))
        app.on_packet(KILL)(self._kill)

    def _count(self, session: Session, payload: bytes) -> None:
        self.effects.append((session.sequence, session.redelivered))
        session.state = session.sequence
        session.save(b"%d" % (int(session.saved or b"0") + 1))
        session.send(COUNT, session.saved or b"")

    def _kill(self, session: Session, payload: bytes) -> None:
        self.log.append(("before", session.redelivered))
        session.send(KILL, b"before")
        if not session.redelivered:
            assert self.node is not None
            self.node.kill_worker()
        self.log.append("behind")


def test_between_packets_nothing_is_lost_but_memory():
    bench = Bench()
    with TestNode(bench.app) as node:
        client = node.connect()
        for _ in range(3):
            client.send(COUNT)
        session = client.session
        assert session.state == 3
        node.kill_worker()
        assert bench.log == ["start", "connected", "start", ("resumed", b"3", None)]
        assert client.session is not session
        assert (client.session.saved, client.session.sequence) == (b"3", 3)
        client.send(COUNT)
        assert [packet.payload for packet in client.received] == [b"1", b"2", b"3", b"4"]
        assert [redelivered for _, redelivered in bench.effects] == [False] * 4
        assert client.is_connected


def test_who_dies_at_its_commit_has_sent_nothing_and_its_successor_does_it_again():
    bench = Bench()
    with TestNode(bench.app) as node:
        client = node.connect()
        client.send(COUNT)
        node.kill_worker(at_commit=True)
        assert bench.log.count("start") == 1  # not yet
        client.send(COUNT)
        assert bench.log[2:] == ["start", ("resumed", b"1", None)]
        assert bench.effects == [(1, False), (2, False), (2, True)]
        assert client.received == [Packet(COUNT, b"1"), Packet(COUNT, b"2")]
        client.send(COUNT)
        assert bench.effects[3:] == [(3, False)]


def test_the_opening_of_a_session_can_be_done_twice():
    bench = Bench()
    with TestNode(bench.app) as node:
        node.kill_worker(at_commit=True)
        client = node.connect()
        assert bench.log == ["start", "connected", "start", "connected"]
        assert client.session.is_open


def test_a_handler_that_is_killed_goes_no_further():
    bench = Bench()
    with TestNode(bench.app) as node:
        bench.node = node
        client = node.connect()
        client.send(KILL)
        assert client.received == [Packet(KILL, b"before")]
        seen = [entry for entry in bench.log if entry == "behind" or entry[0] == "before"]
        assert seen == [("before", False), ("before", True), "behind"]


def test_a_handler_that_will_not_die_dies_at_its_commit():
    app = App()
    redelivered: list[bool] = []

    @app.on_packet(KILL)
    def stubborn(session: Session, payload: bytes) -> None:
        redelivered.append(session.redelivered)
        session.send(KILL, b"once")
        if not session.redelivered:
            try:
                node.kill_worker()
            except BaseException:
                session.send(KILL, b"never seen")

    with TestNode(app) as node:
        client = node.connect()
        client.send(KILL)
        assert client.received == [Packet(KILL, b"once")]
        assert redelivered == [False, True]


def test_only_the_shard_whose_worker_dies_has_a_successor():
    bench = Bench()
    with TestNode(bench.app, workers=2) as node:
        one, two = node.connect(), node.connect()
        kept = two.session
        node.kill_worker(0)
        assert two.session is kept
        for client in (one, two):
            client.send(TELL, b"x")
            assert client.receive() == Packet(TELL, b"x")
        assert bench.log.count("start") == 3


def test_timers_are_those_of_a_life():
    app = App()
    ran: list[str] = []
    app.every(1)(lambda: ran.append("every"))
    with TestNode(app) as node:
        app.call_later(1.2, ran.append, "later")
        node.advance(0.7)
        node.kill_worker()
        node.advance(0.9)
        assert ran == []
        node.advance(0.1)
        assert ran == ["every"]
        node.advance(5)
        assert ran == ["every"] * 6


def test_what_a_timer_was_about_to_commit_dies_with_it():
    app = App()
    app.every(1)(lambda: app.broadcast(9, b"tick"))
    with TestNode(app) as node:
        client = node.connect()
        node.advance(1)
        node.kill_worker(at_commit=True)
        node.advance(1)
        assert client.received == [Packet(9, b"tick")]
        node.advance(1)
        assert client.received == [Packet(9, b"tick")] * 2


def test_users_and_groups_outlive_a_worker():
    app = App()

    @app.on_packet(1)
    def enter(session: Session, payload: bytes) -> None:
        session.bind(payload.decode())
        session.join("room")

    @app.on_packet(2)
    def say(session: Session, payload: bytes) -> None:
        app.publish("room", 2, payload)
        app.send_to("bob", 3, payload)

    with TestNode(app, workers=2) as node:
        ann, bob = node.connect(), node.connect()
        ann.send(1, b"ann")
        bob.send(1, b"bob")
        for shard in (0, 1):
            node.kill_worker(shard)
        assert (ann.session.user, bob.session.user) == ("ann", "bob")
        assert set(bob.session.groups) == {"room"}
        ann.send(2, b"x")
        assert ann.received == [Packet(2, b"x")]
        assert bob.received == [Packet(2, b"x"), Packet(3, b"x")]
        carl = node.connect()
        carl.send(1, b"bob")
        assert bob.cause == "replaced"


@pytest.mark.parametrize("other", [0, 1])
def test_a_handler_may_kill_the_worker_of_another_shard_and_goes_on_as_its_own(other: int):
    app = App()

    @app.on_connected
    def join(session: Session) -> None:
        session.join(f"clients of {session.id}")

    @app.on_packet(KILL)
    def kill(session: Session, payload: bytes) -> None:
        node.kill_worker(other)
        app.publish(f"clients of {session.id}", KILL, payload)
        session.send(KILL, b"done")

    app.on_packet(TELL)(lambda session, payload: session.send(TELL, payload))
    with TestNode(app, workers=2) as node:
        clients = [node.connect() for _ in range(2)]
        clients[1 - other].send(KILL, b"published")
        assert clients[1 - other].received == [Packet(KILL, b"published"), Packet(KILL, b"done")]
        assert clients[other].received == []
        clients[other].send(TELL)
        assert clients[other].received == [Packet(TELL, b"")]
        assert [client.cause for client in clients] == [None, None]


def test_an_end_that_was_not_committed_comes_again():
    bench = Bench()
    with TestNode(bench.app) as node:
        client = node.connect()
        node.kill_worker(at_commit=True)
        client.close()
        assert bench.log[2:] == ["eof", "start", ("resumed", None, None), "eof"]
        assert node.sessions == []


def test_workers_that_die_as_they_begin_are_not_replaced_for_ever():
    app = App()
    with TestNode(app) as node:
        app.resumed_handler = lambda session: node.kill_worker()
        client = node.connect()
        with pytest.raises(RuntimeError, match="5 workers of shard 0 in a row"):
            node.kill_worker()
        app.resumed_handler = lambda session: session.send(1, b"back")
        node.kill_worker()
        assert client.receive() == Packet(1, b"back")


def test_a_shard_that_does_not_exist_cannot_be_killed():
    with TestNode(App(), workers=2) as node:
        for shard in (2, -1):
            with pytest.raises(ValueError, match=f"shard {shard}"):
                node.kill_worker(shard)


def test_a_worker_that_dies_as_it_begins_or_ends_has_died_and_nothing_else():
    app = App()
    log: list[str] = []

    @app.on_start
    async def start() -> None:
        log.append("start")
        await asyncio.sleep(0)
        if len(log) == 1:
            node.kill_worker()
        log.append("started")

    @app.on_stop
    def stop() -> None:
        log.append("stop")
        node.kill_worker()

    node = TestNode(app)
    with node:
        assert log == ["start", "start", "started"]
    assert log[3:] == ["stop"]
