"""Handlers and timers that raise, however often, do not fill the log; who tests hears of each."""

import logging
from typing import Any

import pytest

from cluster.testing import TestNode
from cluster.worker import App, Session
from cluster.worker.handler_errors import LOG_INTERVAL_S, TRACEBACKS_MAX, HandlerErrors
from tests.worker.bench import MakeBench
from tests.worker.log_bench import Clock, make_session

RAISE = 7
LEFT_OUT = "raised; their tracebacks are left out"


def test_a_flood_is_logged_in_so_many_tracebacks_and_then_counted(
    caplog: pytest.LogCaptureFixture,
):
    clock = Clock()
    errors = HandlerErrors(clock)
    session = make_session()
    for _ in range(1_000):
        errors.of_session(session, "on_connected", ValueError("no"), has_ended=False)
    errors.log_unlogged()
    assert len(caplog.messages) == TRACEBACKS_MAX
    clock.now += LOG_INTERVAL_S
    errors.log_unlogged()
    errors.log_unlogged()
    assert caplog.messages[TRACEBACKS_MAX:] == [f"990 more calls for sessions {LEFT_OUT}"]
    errors.of_session(session, "on_connected", ValueError("again"), has_ended=False)
    assert "again" in caplog.text


def test_what_clients_cause_hides_no_timer_that_fails(caplog: pytest.LogCaptureFixture):
    errors = HandlerErrors(Clock())
    for _ in range(TRACEBACKS_MAX + 1):
        errors.of_session(make_session(), "on_connected", ValueError("no"), has_ended=False)
    errors.of_other("a posted function", ValueError("hear me"))
    assert "hear me" in caplog.text
    for _ in range(TRACEBACKS_MAX):
        errors.of_other("a posted function", ValueError("no"))
    errors.of_other("the application's on_stop", ValueError("the last"), is_once=True)
    assert "the last" in caplog.text
    errors.log_unlogged(is_last=True)
    assert caplog.messages[-2:] == [
        f"1 more calls for sessions {LEFT_OUT}",
        f"1 more calls of timers, posted functions and messages {LEFT_OUT}",
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("points", "in session.state"), ("user", "call session.bind"), ("groups", "session.join")],
)
def test_an_attribute_that_no_session_takes_is_told_with_the_remedy(
    name: str, remedy: str, caplog: pytest.LogCaptureFixture
):
    app = App()

    @app.on_packet(RAISE)
    def wrong(session: Session, payload: bytes) -> None:
        setattr(session, name, 3)

    @app.on_packet(RAISE + 1)
    def reads(session: Session, payload: bytes) -> Any:
        return getattr(session, f"{name}_before")

    with TestNode(app) as node:
        client = node.connect()
        with pytest.raises(AttributeError) as raised:
            client.send(RAISE)
        (note,) = raised.value.__notes__
        assert remedy in note
        with pytest.raises(AttributeError) as raised:
            node.connect().send(RAISE + 1)
        (note,) = raised.value.__notes__
        assert "in session.state" in note
    assert remedy in caplog.text


def test_attributes_of_the_applications_own_classes_are_not_told_of(
    caplog: pytest.LogCaptureFixture,
):
    own: Any = type("Session", (), {"__slots__": ()})
    errors = HandlerErrors(Clock())
    with pytest.raises(AttributeError) as raised:
        own().points += 1
    errors.of_other("a timer", raised.value)
    assert "session.state" not in caplog.text


def fail(*arguments: Any) -> None:
    raise ValueError("no")


def test_a_handler_and_a_series_that_always_raise(caplog: pytest.LogCaptureFixture):
    app = App()
    app.on_packet(RAISE)(fail)
    app.every(0.01)(fail)
    heard: list[str] = []
    app.on_connected(lambda session: heard.append("connected"))
    count = 3 * TRACEBACKS_MAX
    with caplog.at_level(logging.ERROR), TestNode(app, raise_errors=False) as node:
        for _ in range(count):
            node.connect().send(RAISE, b"")
        assert [str(error) for error in node.errors] == ["no"] * count
        node.advance(1.0)
        assert len(node.errors) >= count + 99, "the next call comes all the same"
        texts = [record.getMessage() for record in caplog.records]
        of_sessions = [text for text in texts if text.startswith("the handler of packet id 7")]
        of_timers = [text for text in texts if text == "a function that a timer called raised"]
        assert len(of_sessions) == len(of_timers) == TRACEBACKS_MAX
        assert len(heard) == count
    assert f"{count - TRACEBACKS_MAX} more calls for sessions {LEFT_OUT}" in caplog.text


def test_a_worker_that_ends_tells_what_it_has_not_logged(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()
    for _ in range(TRACEBACKS_MAX + 2):
        bench.app.post(fail)
    bench.app.post(bench.finish)
    with caplog.at_level(logging.ERROR):
        bench.start()
        bench.join()
    raised = [text for text in caplog.messages if text == "a posted function raised"]
    assert len(raised) == TRACEBACKS_MAX
    assert f"2 more calls of timers, posted functions and messages {LEFT_OUT}" in caplog.text


def test_an_event_handler_that_raises_behind_an_await_is_named(caplog: pytest.LogCaptureFixture):
    app = App()

    @app.on_connected
    async def greet(session: Session) -> None:
        raise ValueError("at once")

    @app.on_disconnected
    async def part(session: Session, cause: str) -> None:
        import asyncio

        await asyncio.sleep(0)
        raise ValueError("later")

    with TestNode(app, raise_errors=False) as node:
        node.connect()
        node.advance(1.0)
        assert [str(error) for error in node.errors] == ["at once", "later"]
    connected, disconnected = (text for text in caplog.messages if "raised" in text)
    assert connected.startswith("on_connected raised; session ")
    assert connected.endswith("is ended")
    assert disconnected.startswith("on_disconnected raised; session ")
    assert disconnected.endswith("had ended already")
