"""What the gateway protects against, as an author sees it in a test."""

import asyncio

import pytest

from cluster.testing import Packet, TestNode
from cluster.worker import App, Session

LOGIN, WORK, LARGE, SLOW = 1, 2, 3, 4


@pytest.fixture
def app() -> App:
    made = App()

    @made.on_packet(LOGIN, public=True)
    def login(session: Session, payload: bytes) -> None:
        if payload == b"secret":
            session.accept()
        session.send(LOGIN, payload)

    @made.on_packet(WORK)
    def work(session: Session, payload: bytes) -> None:
        session.send(WORK, payload)

    @made.on_packet(LARGE)
    def large(session: Session, payload: bytes) -> None:
        for _ in range(int(payload)):
            session.send(LARGE, b"x" * 60_000)

    return made


def test_an_idle_client_is_ended_at_its_time(app: App):
    with TestNode(app, limits={"idle_timeout_s": 60}) as node:
        idle, busy = node.connect(), node.connect()
        for _ in range(2):
            node.advance(29)
            busy.send(WORK)
        assert (idle.cause, busy.cause) == (None, None)
        node.advance(5)
        assert (idle.cause, busy.cause) == ("idle_timeout", None)
        assert node.counters["closed_idle_timeout"] == 1


def test_a_client_that_waits_for_a_coroutine_is_not_idle(app: App):
    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await asyncio.sleep(300)
        session.send(SLOW, payload)

    with TestNode(app, limits={"idle_timeout_s": 60}) as node:
        client, idle = node.connect(), node.connect()
        client.send(SLOW, b"patience")
        node.advance(299)
        assert (client.cause, idle.cause) == (None, "idle_timeout")
        node.advance(2)
        assert client.receive() == Packet(SLOW, b"patience")
        node.advance(58)
        assert client.cause is None
        node.advance(5)
        assert client.cause == "idle_timeout"


def test_a_login_that_awaits_has_twice_the_time(app: App):
    @app.on_packet(SLOW, public=True)
    async def log_in_slowly(session: Session, payload: bytes) -> None:
        await asyncio.sleep(float(payload))
        session.accept()

    with TestNode(app, limits={"auth_timeout_s": 10}) as node:
        quick, late = node.connect(), node.connect()
        quick.send(SLOW, b"15")
        late.send(SLOW, b"25")
        node.advance(19)
        assert (quick.cause, late.cause) == (None, None)
        node.advance(20)
        assert (quick.cause, late.cause) == (None, "auth_timeout")


def test_a_packet_that_is_not_completed_ends_its_client(app: App):
    with TestNode(app) as node:
        client = node.connect()
        client.send_bytes(b"\x10\x00\x02\x00half")
        node.advance(29)
        assert client.cause is None
        node.advance(3)
        assert client.cause == "packet_timeout"


def test_only_public_packets_get_through_before_a_client_is_accepted(app: App):
    with TestNode(app, limits={"auth_timeout_s": 10}) as node:
        client, silent = node.connect(), node.connect()
        client.send(LOGIN, b"wrong")
        client.send(WORK, b"early")
        assert client.received == [Packet(LOGIN, b"wrong")]
        silent.send(WORK, b"never")
        node.advance(5)
        client.session.accept()  # as a handler of something else may
        node.settle()
        assert client.received[1:] == [Packet(WORK, b"early")]
        node.advance(10)
        assert client.cause is None
        assert silent.cause == "auth_timeout"
        node.kill_worker()
        client.send(WORK, b"still accepted")
        assert client.received[-1] == Packet(WORK, b"still accepted")


def test_a_client_that_sends_too_much_is_ended(app: App):
    with TestNode(app, limits={"packets_per_s": 10}) as node:
        client = node.connect()
        for _ in range(3):
            for _ in range(10):
                client.send(WORK)
            node.advance(1)
        assert len(client.received) == 30
        assert client.cause is None
        client.send_bytes(b"\x04\x00\x02\x00" * 12)
        assert client.cause == "rate_limited"


def test_connections_over_the_limit_are_turned_away(app: App):
    with TestNode(app, limits={"connections_per_address": 2}) as node:
        one, two, three = node.connect(), node.connect(), node.connect()
        assert [client.is_connected for client in (one, two, three)] == [True, True, False]
        assert (three.session_id, three.cause) == (None, "rate_limited")
        assert len(node.sessions) == 2
        one.close()
        assert node.connect().is_connected


def test_the_application_hears_of_a_client_that_takes_too_little(app: App):
    heard: list[str] = []
    app.on_send_blocked(lambda session: heard.append("blocked"))
    app.on_send_ready(lambda session: heard.append("ready"))
    with TestNode(app) as node:
        client = node.connect()
        client.stop_reading()
        client.send(LARGE, b"4")
        assert heard == []
        client.send(LARGE, b"8")
        assert heard == ["blocked"]
        assert client.session.is_send_blocked
        node.kill_worker()
        client.read_on()
        assert [packet.id for packet in client.received] == [LARGE] * 12
        assert heard[-1] == "ready"
        assert not client.session.is_send_blocked
