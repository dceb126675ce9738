"""A drain whose sessions the application lets go by itself."""

import asyncio

import pytest

from cluster.testing import Packet, TestNode
from cluster.worker import App, Session


class Match:
    """Sessions that play on after a drain has begun, for three ticks; others are let go at once."""

    PLAY, LEAVE = 1, 2

    def __init__(self) -> None:
        self.app = app = App()
        self.told: list[float] = []
        self.causes: list[str] = []
        self.playing: set[int] = set()

        @app.on_packet(self.PLAY)
        def play(session: Session, payload: bytes) -> None:
            session.save(b"playing")
            self.playing.add(session.id)
            session.send(self.PLAY, payload)

        @app.on_packet(self.LEAVE)
        def leave(session: Session, payload: bytes) -> None:
            session.disconnect("left")

        @app.on_resumed
        def go_on(session: Session) -> None:
            if session.saved:
                self.playing.add(session.id)

        @app.on_drain
        def let_go(seconds: float) -> None:
            self.told.append(seconds)
            for session in list(app.sessions.values()):
                if session.id not in self.playing:
                    session.disconnect("not playing")

        @app.on_disconnected
        def ended(session: Session, cause: str) -> None:
            self.causes.append(cause)


@pytest.fixture
def match() -> Match:
    return Match()


def test_sessions_stay_until_the_application_lets_them_go(match: Match):
    with TestNode(match.app) as node:
        player, idler = node.connect(), node.connect()
        player.send(match.PLAY, b"1")
        assert player.receive() == Packet(match.PLAY, b"1")
        node.drain()
        assert match.told == [8.0]
        assert (idler.is_connected, idler.cause) == (False, "not playing")
        node.advance(5.0)
        player.send(match.PLAY, b"2")
        assert player.receive() == Packet(match.PLAY, b"2")
        player.send(match.LEAVE, b"")
        assert (player.is_connected, player.cause) == (False, "left")
    assert match.causes == ["not playing", "left"]
    assert match.told == [8.0]


def test_whom_the_application_keeps_for_too_long_is_ended_in_good_order(match: Match):
    with TestNode(match.app, supervisor={"drain_timeout_s": 4.0}) as node:
        player = node.connect()
        player.send(match.PLAY, b"1")
        assert player.receive() == Packet(match.PLAY, b"1")
        node.drain()
        assert match.told == [3.0]
        node.advance(2.9)
        assert player.is_connected
        node.advance(0.2)
        assert (player.is_connected, player.cause) == (False, "drain")
    assert match.causes == ["drain"]


def test_the_end_of_the_block_waits_for_what_the_application_does_in_time(match: Match):
    ticks: list[float] = []

    @match.app.every(1.0)
    def tick() -> None:
        if match.told:
            ticks.append(match.app.now)
            if len(ticks) == 3:
                for session in match.app.sessions.values():
                    session.disconnect("played")

    with TestNode(match.app, supervisor={"drain_timeout_s": 60.0}) as node:
        player = node.connect()
        player.send(match.PLAY, b"1")
        assert player.receive() == Packet(match.PLAY, b"1")
    assert (match.causes, len(ticks)) == (["played"], 3)


def test_nobody_new_is_accepted_while_sessions_are_kept(match: Match):
    with TestNode(match.app) as node:
        player = node.connect()
        player.send(match.PLAY, b"")
        node.drain()
        with pytest.raises(ConnectionRefusedError):
            node.connect()
        assert player.is_connected


@pytest.mark.parametrize("when", ["before", "at", "behind"])
def test_a_worker_that_takes_over_is_told_as_well(match: Match, when: str):
    with TestNode(match.app, workers=2) as node:
        clients = [node.connect() for _ in range(4)]
        for client in clients:
            client.send(match.PLAY, b"")
        if when == "before":
            node.kill_worker(0)
        elif when == "at":
            node.kill_worker(0, at_commit=True)
        node.drain()
        node.advance(1.0)
        if when == "behind":
            node.kill_worker(0)
        node.settle()
        assert match.told[0] == 8.0
        assert len(match.told) == (2 if when == "before" else 3)
        if when == "behind":
            assert match.told[-1] == 7.0  # as much as is left
        for client in clients:
            assert client.is_connected
            client.send(match.LEAVE, b"")
        assert [client.cause for client in clients] == ["left"] * 4


def test_a_worker_that_takes_over_when_the_sessions_are_ended_is_not_told():
    app = App()
    told: list[float] = []
    app.on_drain(told.append)
    with TestNode(app, supervisor={"drain_timeout_s": 4.0}) as node:
        client = node.connect()
        node.drain()
        node.advance(3.0)
        assert client.cause == "drain"
        node.kill_worker(0)
        node.settle()
    assert told == [3.0]


def test_a_handler_of_drains_that_raises_keeps_sessions_no_longer_than_others():
    app = App()

    @app.on_drain
    def fail(seconds: float) -> None:
        raise RuntimeError("no")

    with TestNode(app, raise_errors=False) as node:
        client = node.connect()
        node.drain()
        assert client.is_connected
        assert [str(error) for error in node.errors] == ["no"]
    assert client.cause == "drain"


def test_a_handler_of_drains_may_await(match: Match):
    app = App()
    told: list[float] = []

    @app.on_drain
    async def let_go(seconds: float) -> None:
        told.append(seconds)
        await asyncio.sleep(seconds / 2)
        for session in list(app.sessions.values()):
            session.disconnect("slowly")

    with TestNode(app) as node:
        client = node.connect()
        node.drain()
        node.advance(3.9)
        assert client.is_connected
        node.kill_worker(0)  # the call is made again, from its begin
        node.advance(2.0)  # of the 4.1 s that are left
        assert told == pytest.approx([8.0, 4.1])
        assert client.is_connected
        node.advance(0.1)
        assert client.cause == "slowly"


def test_a_handler_of_drains_that_awaits_the_end_of_all_sessions_does_not_hold_it_up():
    app = App()
    causes: list[str] = []

    @app.on_drain
    async def let_go(seconds: float) -> None:
        while app.sessions:
            await asyncio.sleep(0.5)

    @app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        causes.append(cause)

    with TestNode(app) as node:
        client = node.connect()
        node.drain()
        node.advance(7.9)
        assert client.is_connected
        node.advance(0.2)
        assert client.cause == "drain"
        assert causes == ["drain"]


def test_without_a_handler_sessions_end_at_once():
    app = App()
    with TestNode(app) as node:
        client = node.connect()
        node.drain()
        assert client.cause == "drain"
