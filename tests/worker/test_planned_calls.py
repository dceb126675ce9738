"""`post`, `every` and `call_later`: when calls are made, beside what, what becomes of output.

Where time matters the clock is the test's; handlers let it pass.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import START, Commit
from cluster.shared.messages import Stop
from cluster.shared.records import RecordKind
from cluster.shared.takeover import ReplayedSession
from cluster.worker import App, Session
from cluster.worker.worker import StartHandlerError
from tests.support import wait_until
from tests.worker.bench import ECHO, STOP, Bench, Clock, MakeBench
from tests.worker.records import ADDRESS

SLOW = 7


def _passes(bench: Bench, clock: Clock) -> None:
    """Have each wait of the loop end at once, with all its time over."""
    wait = bench.link.wait

    def skip(timeout_s: float) -> Any:
        clock.now += timeout_s
        return wait(0)

    bench.link.wait = skip  # type: ignore[method-assign]


def _slowly(clock: Clock, seconds: float, order: list[str]) -> Callable[[Session, bytes], None]:
    def handler(session: Session, payload: bytes) -> None:
        clock.now += seconds
        order.append("packet")

    return handler


# -- posted functions ------------------------------------------------------------------------------


def test_functions_of_other_threads_run_on_the_loop_and_may_send(make_bench: MakeBench):
    bench = make_bench()
    kept: list[Session] = []
    bench.app.on_connected(kept.append)
    bench.open_session()
    bench.gateway.flush()
    bench.start()
    wait_until(lambda: kept, what="the session")
    threads = set()

    def push(number: int) -> None:
        threads.add(threading.get_ident())
        kept[0].send(1, b"%d" % number)

    for number in range(50):
        bench.app.post(partial(push, number))
    expected = b"".join(make_packet(1, b"%d" % number) for number in range(50))
    wait_until(lambda: bench.take() is not None and bench.output() == expected, what="all pushes")
    assert threads == {bench.thread.ident}  # type: ignore[union-attr]
    # They are the effect of no record, so they commit nothing beyond the opening.
    assert {batch.commit for batch in bench.applied} <= {START, Commit(2, 0)}


def test_posted_functions_get_their_turn_while_packets_keep_coming(make_bench: MakeBench):
    bench = make_bench()
    order: list[str] = []

    def handler(session: Session, payload: bytes) -> None:
        order.append("packet")
        if len(order) == 1:
            bench.app.post(lambda: order.append("posted"))

    bench.app.on_packet(7)(handler)
    bench.open_session()
    for _ in range(5):
        bench.send((7, b""))
    bench.send((STOP, b""))
    bench.worker.run()
    assert order == ["packet", "posted", *["packet"] * 4]


def test_a_function_that_posts_itself_does_not_keep_the_loop(make_bench: MakeBench):
    bench = make_bench()
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        bench.app.post(again)

    bench.app.post(again)
    bench.start()
    wait_until(lambda: count > 100, what="some rounds")
    bench.open_session()
    bench.send((ECHO, b"x"))
    wait_until(lambda: bench.take() is not None and bench.output(), what="the echo")
    bench.tell(Stop())
    bench.join()
    assert bench.error is None


def test_a_posted_function_saves_and_commits_no_packet(make_bench: MakeBench):
    resumed = ReplayedSession(id=9, address=ADDRESS, sequence=4, saved=b"old")
    kept: list[Session] = []
    bench = make_bench(sessions=[resumed], prepare=lambda app: app.on_resumed(kept.append))
    bench.start()
    wait_until(lambda: kept, what="the session")
    assert (kept[0].saved, kept[0].sequence) == (b"old", 4)
    bench.app.post(lambda: kept[0].save(b"new"))
    wait_until(lambda: bench.take() and bench.others(), what="the save")
    assert bench.others() == [(RecordKind.SAVE, b"new")]
    assert {batch.commit for batch in bench.applied} == {START}
    assert kept[0].saved == b"new"


# -- timers ----------------------------------------------------------------------------------------


def test_calls_come_at_their_times_and_the_loop_sleeps_in_between(
    make_bench: MakeBench, clock: Clock
):
    ran: list[tuple[str, float]] = []
    start = clock.now

    def note(what: str) -> None:
        ran.append((what, round(clock.now - start, 6)))

    def prepare(app: App) -> None:
        app.every(0.5)(partial(note, "half"))
        app.on_start(begin)

    def begin() -> None:
        bench.app.call_later(0.75, note, "later")
        bench.app.call_later(2.2, bench.finish)

    bench = make_bench(prepare=prepare)
    _passes(bench, clock)
    bench.worker.run()
    assert ran == [("half", 0.5), ("later", 0.75), ("half", 1.0), ("half", 1.5), ("half", 2.0)]


def test_a_wait_ends_no_sooner_than_the_call_is_due(make_bench: MakeBench):
    """A loop that wakes early has to wait again and again: it would spin before each call."""
    waits: list[float] = []
    due: list[float] = []
    late: list[float] = []
    bench = make_bench()
    wait = bench.link.wait

    def counting(timeout_s: float) -> Any:
        waits.append(timeout_s)
        return wait(timeout_s)

    bench.link.wait = counting  # type: ignore[method-assign]

    def call() -> None:
        late.append(time.monotonic() - due[-1])
        plan()

    def plan() -> None:
        if len(due) == 20:
            bench.finish()
            return
        due.append(time.monotonic() + 0.0053)
        bench.app.call_later(0.0053, call)

    bench.app.on_start(plan)
    bench.worker.run()
    assert min(late) >= 0
    assert len(late) == 20
    # One wait a call, and a few for heartbeats, the farewell, and what the machine does beside.
    assert len(waits) <= 40


def test_a_series_begins_behind_on_start(make_bench: MakeBench, clock: Clock):
    start = clock.now
    first: list[float] = []

    def begin() -> None:
        clock.now += 3.0  # a start that takes its time

    def tick() -> None:
        first.append(clock.now - start)
        bench.finish()

    def prepare(app: App) -> None:
        app.on_start(begin)
        app.every(0.5)(tick)

    bench = make_bench(prepare=prepare)
    _passes(bench, clock)
    bench.worker.run()
    assert first == [3.5]


def test_no_call_is_made_when_the_start_fails(make_bench: MakeBench, clock: Clock):
    ran: list[str] = []

    def begin() -> None:
        bench.app.call_later(0, ran.append, "later")
        raise ValueError("no database")

    def prepare(app: App) -> None:
        app.on_start(begin)
        app.every(0.001)(partial(ran.append, "every"))

    bench = make_bench(prepare=prepare)
    with pytest.raises(StartHandlerError):
        bench.worker.run()
    assert ran == []


def test_what_was_missed_while_a_handler_held_the_loop_is_skipped(
    make_bench: MakeBench, clock: Clock
):
    start = clock.now
    ran: list[float] = []
    order: list[str] = []

    def tick() -> None:
        ran.append(round(clock.now - start, 6))
        if clock.now - start >= 5:
            bench.finish()

    def prepare(app: App) -> None:
        app.every(1)(tick)
        app.on_packet(SLOW)(_slowly(clock, 3.4, order))

    bench = make_bench(prepare=prepare)
    _passes(bench, clock)
    bench.open_session()
    bench.send((SLOW, b""))
    bench.worker.run()
    assert order == ["packet"]
    assert ran == [3.4, 4.0, 5.0]


# -- packets and timers ----------------------------------------------------------------------------


def test_a_flood_of_packets_holds_a_call_up_for_a_batch_at_most(
    make_bench: MakeBench, clock: Clock
):
    """The flood is one chunk: nothing but the place between two packets is left for the call."""
    order: list[str] = []
    late: list[float] = []
    start = clock.now

    def prepare(app: App) -> None:
        app.every(0.01)(lambda: late.append((clock.now - start) % 0.01))
        app.on_packet(SLOW)(_slowly(clock, 0.0004, order))

    bench = make_bench(prepare=prepare)
    bench.open_session()
    bench.send(*[(SLOW, b"")] * 500, (STOP, b""))
    bench.worker.run()
    assert len(order) == 500
    assert len(late) == 20  # 500 packets take 0.2 s
    assert max(late) <= 0.001 + 2 * 0.0004


def test_a_flood_of_single_packets_does_not_hold_a_call_up_either(
    make_bench: MakeBench, clock: Clock
):
    order: list[str] = []
    ran: list[float] = []

    def prepare(app: App) -> None:
        app.every(0.01)(lambda: ran.append(clock.now))
        app.on_packet(SLOW)(_slowly(clock, 0.0004, order))

    bench = make_bench(prepare=prepare)
    bench.open_session()
    for _ in range(500):
        bench.send((SLOW, b""))
    bench.send((STOP, b""))
    bench.worker.run()
    assert len(ran) == 20


def test_posted_functions_hold_no_call_up(make_bench: MakeBench, clock: Clock):
    ran: list[float] = []
    order: list[str] = []

    def again() -> None:
        clock.now += 0.002
        bench.app.post(again)

    def prepare(app: App) -> None:
        app.every(0.01)(lambda: ran.append(clock.now))
        app.on_packet(SLOW)(_slowly(clock, 0.0001, order))
        app.post(again)

    bench = make_bench(prepare=prepare)
    bench.open_session()
    for _ in range(100):
        bench.send((SLOW, b""))
    bench.send((STOP, b""))
    bench.worker.run()
    assert len(ran) >= 18  # 101 rounds of 2 ms


def test_calls_that_never_end_being_due_leave_packets_their_share(
    make_bench: MakeBench, clock: Clock
):
    order: list[str] = []

    def prepare(app: App) -> None:
        app.on_packet(SLOW)(_slowly(clock, 0.0004, order))
        for _ in range(1_000):
            app.every(0.001)(call)

    def call() -> None:
        clock.now += 0.0005
        order.append("call")

    bench = make_bench(prepare=prepare)
    bench.open_session()
    bench.send(*[(SLOW, b"")] * 300, (STOP, b""))
    bench.worker.run()
    runs = [(what, len(list(group))) for what, group in itertools.groupby(order)]
    # A slice of either is 1 ms, the last call or packet of it going over it.
    assert max(length for what, length in runs if what == "call") <= 2
    assert {length for what, length in runs[1:-1] if what == "packet"} <= {2, 3, 4}
    assert order.count("call") > 100


def test_a_call_that_plans_itself_for_now_does_not_keep_the_loop(make_bench: MakeBench):
    bench = make_bench()
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        bench.app.call_later(0, again)

    bench.app.on_start(again)
    bench.start()
    wait_until(lambda: count > 100, what="some rounds")
    bench.open_session()
    bench.send((ECHO, b"x"))
    wait_until(lambda: bench.take() is not None and bench.output(), what="the echo")
    bench.finish()
    bench.join()
    assert bench.error is None


# -- output ----------------------------------------------------------------------------------------


def test_what_a_call_sends_commits_no_packet(make_bench: MakeBench):
    resumed = ReplayedSession(id=9, address=ADDRESS)
    kept: list[Session] = []
    bench = make_bench(sessions=[resumed], prepare=lambda app: app.on_resumed(kept.append))
    bench.app.every(0.005)(lambda: kept[0].send(1, b"tick"))
    bench.start()
    wait_until(lambda: bench.take() is not None and len(bench.output()) >= 24, what="ticks")
    assert bench.output().startswith(make_packet(1, b"tick") * 3)
    assert {batch.commit for batch in bench.applied} == {START}


def test_what_is_done_is_published_before_a_call_that_may_not_return(
    make_bench: MakeBench, clock: Clock
):
    order: list[str] = []
    published: list[Commit] = []

    def call() -> None:
        bench.take()
        published.append(bench.applied[-1].commit)

    def prepare(app: App) -> None:
        app.on_start(lambda: app.call_later(0.0012, call))
        app.on_packet(SLOW)(_slowly(clock, 0.0005, order))

    bench = make_bench(prepare=prepare)
    bench.open_session()
    bench.send(*[(SLOW, b"")] * 10, (STOP, b""))
    bench.worker.run()
    assert published == [Commit(2, 4)]
    assert len(order) == 10


def test_a_call_that_raises_is_logged_and_what_it_did_is_taken_back(
    make_bench: MakeBench, clock: Clock, caplog: pytest.LogCaptureFixture
):
    resumed = ReplayedSession(id=9, address=ADDRESS)
    kept: list[Session] = []
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        kept[0].send(1, b"tick %d" % calls)
        if calls == 2:
            kept[0].disconnect()
            raise ZeroDivisionError
        if calls == 3:
            bench.finish()

    def prepare(app: App) -> None:
        app.on_resumed(kept.append)
        app.every(1)(tick)

    bench = make_bench(sessions=[resumed], prepare=prepare)
    _passes(bench, clock)
    with caplog.at_level(logging.ERROR):
        bench.worker.run()
    bench.take()
    assert bench.output() == make_packet(1, b"tick 1") + make_packet(1, b"tick 3")
    assert bench.others() == []
    assert kept[0].is_open
    assert "ZeroDivisionError" in caplog.text
    assert caplog.text.count("a timer called") == 1


def test_a_worker_without_room_makes_no_calls_until_there_is_some(make_bench: MakeBench):
    bench = make_bench(lane_bytes=4_096)
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        bench.app.broadcast(1, b"x" * 1_000)

    bench.app.every(0.001)(tick)
    bench.start()
    wait_until(lambda: bench.worker._contact.batches_waited, what="a full lane")
    before = count
    waits = 0
    wait = bench.link.wait

    def counting(timeout_s: float) -> Any:
        nonlocal waits
        waits += 1
        return wait(timeout_s)

    bench.link.wait = counting  # type: ignore[method-assign]
    wait_until(lambda: waits >= 5, what="waits for room")
    assert count == before

    def goes_on() -> bool:
        bench.take()
        return count > before + 10

    wait_until(goes_on, what="further calls")
    assert all(kind == RecordKind.BROADCAST for kind, _ in bench.others())


def test_a_worker_that_is_told_to_stop_makes_no_more_calls(make_bench: MakeBench, clock: Clock):
    ran: list[str] = []

    def stop() -> None:
        bench.finish()
        clock.now += 60

    def prepare(app: App) -> None:
        app.every(1)(partial(ran.append, "every"))

    def begin() -> None:
        bench.app.call_later(0.5, stop)
        bench.app.call_later(0.6, ran.append, "later")

    bench = make_bench(prepare=prepare, worker_timeout_s=600.0)
    bench.app.on_start(begin)
    _passes(bench, clock)
    bench.worker.run()
    assert ran == []
    assert bench.worker.next_timer() is None
