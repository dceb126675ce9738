"""A node in one process: what an author's tests rest on."""

import asyncio
import logging
import socket
import time
from typing import Any

import msgspec
import pytest

from cluster.shared.config import ConfigError
from cluster.testing import NothingReceived, Packet, TestClient, TestNode
from cluster.worker import App, Session

ECHO, FAIL, TO_ALL = 1, 2, 3


def _talk() -> tuple[App, list[Any]]:
    """Return an application, and what it notes of its life."""
    app = App()
    log: list[Any] = []

    @app.on_start
    def start() -> None:
        log.append("start")

    @app.on_connected
    def connected(session: Session) -> None:
        session.send(0, b"welcome")
        log.append("connected")

    @app.on_packet(ECHO)
    def echo(session: Session, payload: bytes) -> None:
        session.send(ECHO, payload)

    @app.on_packet(FAIL)
    def fail(session: Session, payload: bytes) -> None:
        session.send(FAIL, b"never sent")
        raise ZeroDivisionError(payload.decode())

    @app.on_packet(TO_ALL)
    def to_all(session: Session, payload: bytes) -> None:
        app.broadcast(TO_ALL, payload)

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        log.append(cause)

    @app.on_stop
    def stop() -> None:
        log.append("stop")

    return app, log


def _connect(node: TestNode) -> TestClient:
    """Return a client that has taken its welcome."""
    client = node.connect()
    assert client.receive() == Packet(0, b"welcome")
    return client


def test_a_life_from_start_to_stop():
    app, log = _talk()
    with TestNode(app) as node:
        assert log == ["start"]
        client = _connect(node)
        client.send(ECHO, b"hello")
        assert client.receive() == Packet(ECHO, b"hello")
        assert client.is_connected
        assert client.cause is None
    assert log == ["start", "connected", "drain", "stop"]
    assert client.cause == "drain"
    assert not client.is_connected


def test_clients_of_all_shards_hear_a_broadcast():
    app, _ = _talk()
    with TestNode(app, workers=3) as node:
        clients = [_connect(node) for _ in range(6)]
        clients[0].send(TO_ALL, b"x")
        for client in clients:
            assert client.receive() == Packet(TO_ALL, b"x")
        assert [session.id for session in node.sessions] == [c.session_id for c in clients]
        known = [len(life.sessions) for life in node._lives._incarnations.values()]
        assert known == [2, 2, 2]


def test_no_socket_is_opened_and_nobody_sleeps(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("this is not for tests of applications")

    app, _ = _talk()
    app.every(0.5)(lambda: app.broadcast(9, b"tick"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "socketpair", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
    with TestNode(app, workers=2, gateway={"send_queue_bytes_max": 65_535}) as node:
        client = _connect(node)
        node.advance(60)
        assert len(client.received) == 240
        node.kill_worker()
        client.send(ECHO, b"x")
        assert client.received[-1] == Packet(ECHO, b"x")


def test_two_runs_are_the_same():
    def run() -> list[Any]:
        app, log = _talk()
        app.every(0.3)(lambda: app.broadcast(9, b"tick"))
        with TestNode(app, workers=2) as node:
            clients = [node.connect() for _ in range(4)]
            for number, client in enumerate(clients):
                client.send(TO_ALL, b"%d" % number)
                node.advance(0.25)
            node.kill_worker(1)
            seen = [client.received for client in clients]
            return [log, seen, [s.id for s in node.sessions], node.counters, node.now]

    assert run() == run()


# -- what handlers raise ---------------------------------------------------------------------------


def test_what_a_handler_raises_fails_the_test_where_it_was_made_to_run():
    app, log = _talk()
    with TestNode(app) as node:
        client = _connect(node)
        with pytest.raises(ZeroDivisionError, match="the reason") as caught:
            client.send(FAIL, b"the reason")
        assert caught.traceback[-1].name == "fail"
        # It is raised once, and what production does is done.
        node.settle()
        assert client.received == []
        assert client.cause == "handler_error"
        assert log[-1] == "handler_error"


def test_of_several_the_first_is_raised_and_tells_of_the_others():
    app, _ = _talk()

    def fail(session: Session, cause: str) -> None:
        raise KeyError(cause)

    app.disconnected_handler = fail
    with TestNode(app) as node:
        client = _connect(node)
        with pytest.raises(ZeroDivisionError) as caught:
            client.send(FAIL, b"first")
        assert caught.value.__notes__ == ["then a handler raised KeyError: 'handler_error'"]


def test_what_timers_posted_functions_and_on_stop_raise_comes_out_too():
    app = App()

    def fail(where: str) -> None:
        raise KeyError(where)

    app.on_start(lambda: app.call_later(1, fail, "timer"))
    app.on_stop(lambda: fail("stop"))
    with pytest.raises(KeyError, match="stop"), TestNode(app) as node:
        with pytest.raises(KeyError, match="timer"):
            node.advance(1)
        app.post(lambda: fail("posted"))
        with pytest.raises(KeyError, match="posted"):
            node.settle()


def test_errors_can_be_left_to_what_production_does():
    app, _ = _talk()
    with TestNode(app, raise_errors=False) as node:
        client = _connect(node)
        client.send(FAIL, b"one")
        assert client.cause == "handler_error"
        _connect(node).send(FAIL, b"two")
        assert [str(error) for error in node.errors] == ["one", "two"]


def test_what_on_start_raises_comes_out_of_the_with_statement():
    app, log = _talk()

    def start() -> None:
        raise LookupError("no database")

    app.start_handler = start
    with pytest.raises(LookupError, match="no database"), TestNode(app):
        raise AssertionError("not reached")
    assert log == []
    app.every(1)(lambda: None)  # nothing runs it any more


def test_a_test_that_fails_is_not_drained(caplog: pytest.LogCaptureFixture):
    """What the author has to see is his own failure, not what follows from it."""
    app, log = _talk()
    with pytest.raises(NothingReceived), TestNode(app) as node:
        client = _connect(node)
        client.receive()
    assert log == ["start", "connected"]
    app.every(1)(lambda: None)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- one node after the other ----------------------------------------------------------------------


def test_nothing_of_a_node_is_left_for_the_next():
    app, _ = _talk()
    ran: list[str] = []
    app.every(2)(lambda: ran.append("every"))
    with TestNode(app) as first:
        _connect(first)
        app.call_later(1.5, ran.append, "later")
    app.post(lambda: ran.append("posted before there is a node"))
    with TestNode(app) as second:
        assert ran == ["posted before there is a node"]
        assert second.sessions == []
        second.advance(1.9)
        assert len(ran) == 1
        second.advance(0.1)
        assert ran[1:] == ["every"]
    with pytest.raises(RuntimeError, match="running worker"):
        app.call_later(1, print)


def test_what_was_posted_to_a_node_and_did_not_run_is_dropped():
    app, _ = _talk()
    ran: list[str] = []
    with pytest.raises(KeyError), TestNode(app):
        app.post(lambda: ran.append("posted"))
        raise KeyError
    with TestNode(app):
        pass
    assert ran == []


def test_two_nodes_may_run_one_application_beside_each_other():
    app, _ = _talk()
    with TestNode(app) as one, TestNode(app) as two:
        first, second = _connect(one), _connect(two)
        first.send(TO_ALL, b"x")
        assert first.receive() == Packet(TO_ALL, b"x")
        assert second.received == []


def test_a_closed_node_does_nothing_more():
    app, log = _talk()
    node = TestNode(app)
    with node:
        client = _connect(node)
        node.close()
        assert log == ["start", "connected", "drain", "stop"]
        node.close()
    assert log.count("stop") == 1
    for call in (node.connect, node.settle, lambda: node.advance(1), node.kill_worker):
        with pytest.raises(RuntimeError, match="the node is closed"):
            call()
    with pytest.raises(ConnectionError):
        client.send(ECHO, b"x")


# -- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"gateway": {"max_sesions": 3}}, "TestNode: gateway.max_sesions = 3: expected"),
        ({"gateway": {"max_sessions": 0}}, "TestNode: gateway.max_sessions = 0: expected"),
        ({"gatway": {}}, "TestNode: gatway = {}: expected"),
        ({"gateway": 5}, "TestNode: gateway = 5: expected a section"),
        ({"lane": {"bytes": 4096}}, "TestNode: lane.bytes = 4096: expected at least"),
        ({"gateway": {"proxies": ["127.0.0.1"]}}, "TestNode: gateway.proxies: clients here come"),
    ],
)
def test_a_configuration_that_is_none_is_refused(sections: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        TestNode(App(), **sections)
    assert str(caught.value).startswith(message)


def test_a_node_needs_a_worker():
    with pytest.raises(ValueError, match="workers=0"):
        TestNode(App(), workers=0)


def test_what_is_no_application_is_refused_by_name():
    with pytest.raises(TypeError, match=r"takes a cluster\.worker\.App, not 'lobby:app'"):
        TestNode("lobby:app")  # type: ignore[arg-type]


@pytest.mark.parametrize(("workers", "count"), [({"count": 3}, 3), ({"max_redeliveries": 1}, 1)])
def test_workers_may_be_a_section_like_others(workers: dict[str, object], count: int):
    begun: list[bool] = []
    app = App()
    app.on_start(lambda: begun.append(True))
    with TestNode(app, workers=workers):
        assert len(begun) == count


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        ({"coutn": 3}, "workers.coutn = 3: expected one of the keys of [workers]:"),
        ({"max_redeliveries": 0}, "workers.max_redeliveries = 0: expected an integer from 1"),
        (257, "workers.count = 257: expected an integer from 1 to 256"),
        ("2", 'workers = "2": expected a section, written [workers]'),
    ],
)
def test_a_section_of_workers_is_checked_like_others(workers: Any, told: str):
    with pytest.raises(ConfigError) as caught:
        TestNode(App(), workers=workers)
    assert told in str(caught.value)


@pytest.mark.parametrize("by", ["call_later", "post"])
def test_an_application_that_never_comes_to_rest_is_found_out(
    monkeypatch: pytest.MonkeyPatch, by: str
):
    monkeypatch.setattr("cluster.testing.stage.TURNS_MAX", 500)
    app = App()

    def again() -> None:
        if by == "post":
            app.post(again)
        else:
            app.call_later(0, again)

    app.on_start(again)
    with pytest.raises(RuntimeError, match="not at rest after 500 turns"), TestNode(app):
        raise AssertionError("not reached")


def test_limits_of_the_configuration_hold():
    app, _ = _talk()
    with TestNode(app, gateway={"max_packet_bytes": 100}) as node:
        client = _connect(node)
        client.send(ECHO, b"x" * 96)
        assert client.receive() == Packet(ECHO, b"x" * 96)
        client.send(ECHO, b"x" * 97)
        assert client.cause == "bad_size"
        assert node.counters["closed_bad_size"] == 1


def test_what_there_is_now_is_counted_as_in_the_status():
    app = App()

    @app.on_packet(ECHO)
    async def keep(session: Session, payload: bytes) -> None:
        app.save("kept", payload)
        await asyncio.sleep(5)
        app.forget("kept")

    with TestNode(app, workers=2) as node:
        assert not node.counters
        client = node.connect()
        client.send(ECHO, b"x" * 96)
        assert node.counters["packets_received"] == 1
        assert node.counters["deferred_calls"] == 1
        assert node.counters["saved_bytes"] > 96
        node.advance(5)
        assert node.counters["deferred_calls"] == node.counters["saved_bytes"] == 0


def test_the_codec_is_the_applications():
    class Move(msgspec.Struct):
        x: int

    app = App(codec="json")

    @app.on_packet(4)
    def move(session: Session, move: Move) -> None:
        session.send(4, Move(move.x + 1))

    with TestNode(app) as node:
        client = node.connect()
        client.send(4, Move(1))
        packet = client.receive()
        assert packet.payload == b'{"x":2}'
        assert packet.decode(Move) == Move(2)
        with pytest.raises(msgspec.ValidationError):
            packet.decode(int)
        assert "decode_errors" not in node.counters
        client.send(4, b"no json")
        assert client.cause == "decode_error"
        assert node.counters["decode_errors"] == 1
        other = node.connect()
        other.send(5)
        node.kill_worker()
        other.send(6)
        assert node.counters["unhandled_packets"] == 2
    with TestNode(app) as node:
        assert "decode_errors" not in node.counters  # those of the node before
        assert node.counters["decode_errors"] == 0


@pytest.mark.parametrize("awaits", [False, True])
def test_a_join_is_answered_at_once_where_there_is_one_node(awaits: bool):
    app = App()

    @app.on_packet(ECHO)
    def enter(session: Session, room: bytes) -> None:
        session.join(room.decode())

    def tell(session: Session, name: str) -> None:
        app.publish(name, TO_ALL, b"has entered " + name.encode())

    async def tell_later(session: Session, name: str) -> None:
        await asyncio.sleep(0.5)
        tell(session, name)

    app.on_joined(tell_later if awaits else tell)
    with TestNode(app, workers=2) as node:
        for _ in range(2):
            client = node.connect()
            client.send(ECHO, b"the hall")
            node.advance(1.0)
            assert client.receive() == Packet(TO_ALL, b"has entered the hall")


def test_a_node_that_was_not_entered_says_how_it_is_started():
    node = TestNode(App())
    with pytest.raises(RuntimeError, match="write with TestNode"):
        node.connect()
    with node:
        assert node.connect().is_connected
