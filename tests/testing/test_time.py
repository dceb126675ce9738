"""Time is in the test's hand: what it passes comes due in order, and at its exact moment."""

import asyncio
import math

import pytest

from cluster.testing import Packet, TestNode
from cluster.worker import App, Session


def test_timers_run_at_their_exact_times_in_order():
    app = App()
    ran: list[tuple[str, float]] = []
    start = 0.0

    def note(what: str) -> None:
        ran.append((what, round(node.now - start, 9)))

    app.every(0.1)(lambda: note("tenth"))
    app.every(0.25)(lambda: note("quarter"))
    with TestNode(app) as node:
        start = node.now
        app.call_later(0.15, note, "later")
        node.advance(0.31)
        assert ran == [
            ("tenth", 0.1),
            ("later", 0.15),
            ("tenth", 0.2),
            ("quarter", 0.25),
            ("tenth", 0.3),
        ]
        assert node.now == pytest.approx(start + 0.31)


def test_no_time_passes_by_itself():
    app = App()
    app.every(0.001)(lambda: app.broadcast(9))
    with TestNode(app) as node:
        client = node.connect()
        for _ in range(10):
            client.send(1, b"x" * 60_000)
        assert client.received == []
        before = node.now
        node.advance(0)
        assert node.now == before


def test_each_worker_has_its_own_timers():
    app = App()
    ran: list[int] = []
    app.every(1)(lambda: ran.append(1))
    with TestNode(app, workers=3) as node:
        node.advance(2)
    assert len(ran) == 6


def test_what_a_timer_sends_arrives_before_time_goes_on():
    app = App()
    replies: list[float] = []

    @app.on_connected
    def ask(session: Session) -> None:
        app.call_later(1.0, session.send, 1, b"are you there?")

    @app.on_packet(2)
    def answer(session: Session, payload: bytes) -> None:
        replies.append(node.now)

    with TestNode(app) as node:
        client = node.connect()
        before = node.now
        node.advance(1.0)
        assert client.receive() == Packet(1, b"are you there?")
        client.send(2)
        assert replies == [before + 1.0]


def test_a_timer_may_be_cancelled_by_a_packet():
    app = App()

    @app.on_connected
    def begin(session: Session) -> None:
        session.state = app.call_later(5, session.disconnect, "asleep")

    @app.on_packet(1)
    def awake(session: Session, payload: bytes) -> None:
        session.state.cancel()
        begin(session)

    with TestNode(app) as node:
        client = node.connect()
        for _ in range(3):
            node.advance(4)
            client.send(1)
        assert client.cause is None
        node.advance(4.999)
        assert client.cause is None
        node.advance(0.001)
        assert client.cause == "asleep"


def test_timers_may_await_and_none_overtakes_itself():
    app = App()
    ran: list[tuple[str, float]] = []

    @app.every(1)
    async def slowly() -> None:
        begun = node.now - start
        await asyncio.sleep(2.5)
        ran.append(("every", begun))
        app.broadcast(9, b"done")

    async def once(what: str) -> None:
        await asyncio.sleep(0.5)
        ran.append((what, node.now - start))

    with TestNode(app) as node:
        start = node.now
        client = node.connect()
        app.call_later(1, once, "later")
        node.advance(8)
        assert ran == [("later", 1.5), ("every", 1.0), ("every", 4.0)]
        assert client.received == [Packet(9, b"done")] * 2


def test_a_long_time_with_nothing_to_do_passes_at_once():
    ran: list[float] = []
    app = App()
    with TestNode(app) as node:
        node.connect()
        start = node.now
        app.call_later(3_600, lambda: ran.append(node.now - start))
        node.advance(10_000)
        assert ran == [3_600]
        assert node.sessions[0].is_open


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_only_what_can_pass_passes(seconds: float):
    with TestNode(App()) as node, pytest.raises(ValueError, match="give 0 or more"):
        node.advance(seconds)


def test_an_application_reads_the_clock_that_the_test_turns():
    app = App()
    due: list[float] = []

    @app.on_packet(1)
    def mute(session: Session, payload: bytes) -> None:
        due.append(app.now + 60)

    @app.on_packet(2)
    def say(session: Session, payload: bytes) -> None:
        session.send(2, b"heard" if app.now >= due[0] else b"muted")

    with TestNode(app) as node:
        client = node.connect()
        client.send(1)
        node.advance(59.5)
        assert app.now == node.now
        client.send(2)
        assert client.receive().payload == b"muted"
        node.advance(0.5)
        client.send(2)
        assert client.receive().payload == b"heard"


def test_what_a_timer_posts_runs_in_its_own_worker():
    app = App()
    ran: list[tuple[int, int]] = []

    @app.every(1)
    def tick() -> None:
        here = app.shard.shard
        app.post(lambda: ran.append((here, app.shard.shard)))

    with TestNode(app, workers=2) as node:
        node.advance(2)
        assert ran == [(0, 0), (1, 1), (0, 0), (1, 1)]


def test_time_does_not_pass_within_a_handler():
    app = App()

    @app.on_packet(1)
    def wait(session: Session, payload: bytes) -> None:
        app.call_later(1, print)
        node.advance(2)

    with TestNode(app) as node:
        client = node.connect()
        with pytest.raises(RuntimeError, match="does not pass in the midst of a call; the node"):
            client.send(1)
