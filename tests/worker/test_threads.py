"""What other threads than the loop's may do, which is to post; the rest is refused, not lost."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.worker import App, Session, TimerHandle
from tests.support import wait_until
from tests.worker.bench import ECHO, Bench, MakeBench

CALLS: list[Callable[[App, Session], object]] = [
    lambda app, session: session.send(7, b"lost"),
    lambda app, session: session.send_packets([(7, b"lost")]),
    lambda app, session: session.kick(7, b"lost"),
    lambda app, session: session.disconnect(),
    lambda app, session: session.accept(),
    lambda app, session: session.join("lost"),
    lambda app, session: session.save(b"lost"),
    lambda app, session: app.broadcast(7, b"lost"),
    lambda app, session: app.publish("everybody", 7, b"lost"),
    lambda app, session: app.send_to("ann", 7, b"lost"),
    lambda app, session: app.kick_user("ann", 7, b"lost"),
    lambda app, session: app.call_later(0, session.send, 7, b"lost"),
]


def begun(bench: Bench) -> Session:
    """Start a worker, and return its session, which has had an answer."""
    met: list[Session] = []
    bench.app.on_connected(met.append)
    bench.open_session()
    bench.send((ECHO, b"x"))
    bench.start()
    wait_until(lambda: bench.take() is not None and bench.output(), what="the echo")
    return met[0]


@pytest.mark.parametrize("call", CALLS)
def test_what_puts_something_out_is_refused_and_nothing_has_happened(
    make_bench: MakeBench, call: Callable[[App, Session], object]
):
    bench = make_bench()
    session = begun(bench)
    with pytest.raises(RuntimeError, match=r"thread MainThread may not send.*app\.post\("):
        call(bench.app, session)
    assert (session.is_open, session.saved, session._member_of) == (True, None, None)
    bench.send((ECHO, b"y"))
    wait_until(lambda: bench.take() is not None and len(bench.output()) == 10, what="the next echo")
    assert bench.output() == make_packet(ECHO, b"x") + make_packet(ECHO, b"y")
    assert bench.others() == []


def test_a_timer_is_not_cancelled_by_another_thread(make_bench: MakeBench):
    bench = make_bench()
    handles: list[TimerHandle] = []

    @bench.app.on_packet(7)
    def remind(session: Session, payload: bytes) -> None:
        handles.append(bench.app.call_later(0.01, session.send, 7, payload))

    bench.open_session()
    bench.send((7, b"told"))
    bench.start()
    wait_until(lambda: bool(handles), what="the timer")
    with pytest.raises(RuntimeError, match=r"sessions and timers; call app\.post\("):
        handles[0].cancel()
    wait_until(lambda: bench.take() is not None and bench.output(), what="what it sends")
    assert bench.output() == make_packet(7, b"told")


def test_posting_is_what_they_may_do(make_bench: MakeBench):
    bench = make_bench()
    session = begun(bench)
    bench.app.post(lambda: session.send(7, b"posted"))
    expected = make_packet(ECHO, b"x") + make_packet(7, b"posted")
    wait_until(
        lambda: bench.take() is not None and bench.output() == expected, what="what was posted"
    )


def test_a_coroutine_that_has_a_thread_send_is_told(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()

    @bench.app.on_packet(7)
    async def aside(session: Session, payload: bytes) -> None:
        await asyncio.to_thread(session.send, 7, payload)

    bench.open_session()
    bench.send((7, b"lost"))
    bench.start()
    wait_until(lambda: "app.post" in caplog.text, what="the error")
    bench.take()
    assert "the handler of packet id 7 raised" in caplog.text
    assert bench.output() == b""


def test_a_loop_may_be_turned_in_another_thread(make_bench: MakeBench):
    """As an application under test may be: the thread that turns it, or did last, is the loop's."""
    bench = make_bench()
    met: list[Session] = []
    bench.app.on_connected(met.append)
    bench.open_session()
    bench.gateway.flush()
    bench.worker.begin()
    thread = threading.Thread(target=bench.worker.turn)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match=r"app\.post"):
        met[0].send(7, b"refused")
    bench.worker.turn()
    met[0].send(7, b"taken")
    bench.worker.turn()
    bench.take()
    assert bench.output() == make_packet(7, b"taken")
