"""Handlers that await: what is committed when, in which order, and what of it comes out.

Both ends of the lane are in this process, and the worker's own loop runs.
"""

import asyncio
import contextvars
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.messages import GatewayHeartbeat, WorkerHeartbeat
from cluster.shared.note import HandlerCall, create_note, open_note
from cluster.shared.records import (
    BOUND,
    BROADCAST,
    CLOSED,
    DEFER,
    DEFERRED,
    DISCONNECT,
    DONE,
    FINISHED,
    OPENED,
    PACKETS,
    SEND,
)
from cluster.shared.takeover import DeferredRecord, ReplayedSession, Suspect
from cluster.shared.user_records import BindResult, Bound, pack_bound
from cluster.worker import Session
from cluster.worker.worker import StartHandlerError
from tests.record_reader import iter_records
from tests.worker.bench import Bench, MakeBench, heartbeat
from tests.worker.records import ADDRESS, packets

SLOW, PLAIN, LAST = 10, 11, 12


@pytest.fixture(autouse=True)
def _batches_do_not_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a batch follows from the handlers, not from how fast this machine is."""
    monkeypatch.setattr("cluster.worker.publisher.PUBLISH_AGE_S", 60.0)


def open_sessions(bench: Bench, *sessions: int) -> None:
    for session in sessions:
        bench.gateway.append(OPENED, session, ADDRESS.encode())


def send(bench: Bench, session: int, *contents: tuple[int, bytes], first: int = 1) -> None:
    """Have one record of packets of `session`."""
    record = packets(*contents, session=session, first_sequence=first)
    bench.gateway.append(PACKETS, session, record[16:], len(contents))


def run(bench: Bench) -> None:
    """Let the worker do what is there, until a handler finishes it."""
    bench.gateway.flush()
    bench.worker.run()
    assert bench.error is None
    bench.take()


def records(bench: Bench) -> list[list[tuple[int, int, bytes]]]:
    """Return kind, session and payload of each record, by batch, but for batches without any."""
    batches = [
        [
            (record.kind, record.session, bytes(record.payload))
            for record in iter_records(batch.records)
        ]
        for batch in bench.applied
    ]
    return [batch for batch in batches if batch]


def sent(bench: Bench) -> list[tuple[int, bytes]]:
    """Return session and bytes of what was sent."""
    return [(s, p) for batch in records(bench) for kind, s, p in batch if kind == SEND]


def deferred(position: int, index: int = 0, count: int = 1) -> bytes:
    return DEFERRED.pack(position, index, count)


def done(position: int, index: int = 0) -> bytes:
    return FINISHED.pack(position, index)


async def rounds(count: int = 3) -> None:
    """Let others go first, some times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def published(bench: Bench) -> None:
    """Wait for what the worker has in hand to be committed, however slow this machine is."""
    count = max(1, len(bench.applied))  # the first one only opens the lane
    while len(bench.applied) <= count:
        await asyncio.sleep(0.001)
        bench.take()


# -- commits ---------------------------------------------------------------------------------------


def test_a_coroutine_that_awaits_nothing_is_a_plain_handler(make_bench: MakeBench):
    bench = make_bench()

    async def answer(session: Session, payload: bytes) -> None:
        session.send(PLAIN, payload)
        if payload == b"b":
            bench.finish()

    bench.app.on_packet(PLAIN)(answer)
    open_sessions(bench, 1)
    send(bench, 1, (PLAIN, b"a"), (PLAIN, b"b"))
    run(bench)
    assert records(bench) == [[(SEND, 1, make_packet(PLAIN, b"a") + make_packet(PLAIN, b"b"))]]
    assert bench.applied[-1].commit == Commit(3, 0)


def test_a_call_that_awaits_is_deferred_with_its_commit_and_done_with_its_last_output(
    make_bench: MakeBench,
):
    bench = make_bench()

    async def answer(session: Session, payload: bytes) -> None:
        session.send(1, b"first step")
        await published(bench)
        session.send(2, b"second step")
        bench.finish()

    bench.app.on_packet(SLOW)(answer)
    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""))
    run(bench)
    assert records(bench) == [
        [(SEND, 1, make_packet(1, b"first step")), (DEFER, 1, deferred(2))],
        [(SEND, 1, make_packet(2, b"second step")), (DONE, 1, done(2))],
    ]
    assert [batch.commit for batch in bench.applied][-2:] == [Commit(3, 0), Commit(3, 0)]


def test_what_comes_behind_a_deferred_call_is_deferred_with_it_and_others_overtake(
    make_bench: MakeBench,
):
    bench = make_bench()
    calls: list[Any] = []

    async def slow(session: Session, payload: bytes) -> None:
        calls.append((session.id, session.sequence, "begins"))
        await published(bench)
        calls.append((session.id, session.sequence, "ends"))

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        calls.append((session.id, session.sequence, payload))

    @bench.app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        calls.append((session.id, cause))
        bench.finish()

    bench.app.on_packet(SLOW)(slow)
    open_sessions(bench, 1, 2)
    send(bench, 1, (PLAIN, b"before"), (SLOW, b""), (PLAIN, b"b"), (PLAIN, b"c"))
    send(bench, 1, (PLAIN, b"d"), first=5)
    bench.gateway.append(CLOSED, 1, b"eof")
    send(bench, 2, (PLAIN, b"of another"))
    run(bench)
    assert calls == [
        (1, 1, b"before"),
        (1, 2, "begins"),
        (2, 1, b"of another"),
        (1, 2, "ends"),
        (1, 3, b"b"),
        (1, 4, b"c"),
        (1, 5, b"d"),
        (1, "eof"),
    ]
    first, *later = records(bench)
    assert first == [
        (DEFER, 1, deferred(3, 1)),
        (DEFER, 1, deferred(3, 2, 2)),
        (DEFER, 1, deferred(4)),
        (DEFER, 1, deferred(5)),
    ]
    dones = [record for batch in later for record in batch]
    names = [(3, 1), (3, 2), (3, 3), (4, 0), (5, 0)]
    assert dones == [(DONE, 1, done(*name)) for name in names]


def test_a_session_is_busy_until_all_that_was_deferred_is_done(make_bench: MakeBench):
    bench = make_bench()
    busy: list[bool] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        busy.append(session._is_busy)
        await rounds()
        busy.append(session._is_busy)

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        busy.append(session._is_busy)
        asyncio.get_running_loop().call_later(0.01, look, session)

    def look(session: Session) -> None:
        busy.append(session._is_busy)
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""), (PLAIN, b""))
    run(bench)
    assert busy == [False, True, True, False]


def test_every_event_may_await_and_keeps_its_place(make_bench: MakeBench):
    bench = make_bench(sessions=[ReplayedSession(id=7, address=ADDRESS)])
    calls: list[Any] = []

    def told(event: str) -> Any:
        async def handler(session: Session, *more: Any) -> None:
            calls.append((session.id, event, "begins", *more))
            await rounds()
            calls.append((session.id, event, "ends"))
            if event == "disconnected":
                bench.finish()

        return handler

    app = bench.app
    app.on_connected(told("connected"))
    app.on_resumed(told("resumed"))
    app.on_any(told("any"))
    app.on_disconnected(told("disconnected"))
    send(bench, 7, (SLOW, b"x"))
    bench.gateway.append(CLOSED, 7, b"reset")
    run(bench)
    assert calls == [
        (7, "resumed", "begins"),
        (7, "resumed", "ends"),
        (7, "any", "begins", SLOW, b"x"),
        (7, "any", "ends"),
        (7, "disconnected", "begins", "reset"),
        (7, "disconnected", "ends"),
    ]
    # `on_resumed` runs again in each life, so nothing is deferred for it.
    assert [record[0] for batch in records(bench) for record in batch] == [DEFER, DEFER, DONE, DONE]


def test_an_opening_that_awaits_is_deferred(make_bench: MakeBench):
    bench = make_bench()

    @bench.app.on_connected
    async def connected(session: Session) -> None:
        await rounds()
        session.send(1, b"welcome")

    open_sessions(bench, 1)
    send(bench, 1, (1, b"echoed behind it"), (2, b""))
    run(bench)
    assert records(bench)[0] == [(DEFER, 1, deferred(1)), (DEFER, 1, deferred(2, 0, 2))]
    assert b"".join(data for _, data in sent(bench)) == (
        make_packet(1, b"welcome") + make_packet(1, b"echoed behind it")
    )


def test_sequence_and_redelivered_are_those_of_the_call_in_every_step(make_bench: MakeBench):
    bench = make_bench(redelivered_through=3)
    seen: list[tuple[int, int, bool]] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        for _ in range(3):
            seen.append((session.id, session.sequence, session.redelivered))
            await asyncio.sleep(0)
        if payload == b"last":
            bench.finish()

    open_sessions(bench, 1, 2)
    send(bench, 1, (SLOW, b""), (SLOW, b""))  # the record that a predecessor was given
    send(bench, 1, (SLOW, b"last"), first=3)
    send(bench, 2, (SLOW, b""))
    run(bench)
    mine = [call for call in seen if call[0] == 1]
    assert mine == [(1, 1, True)] * 3 + [(1, 2, True)] * 3 + [(1, 3, False)] * 3
    assert [call for call in seen if call[0] == 2] == [(2, 1, False)] * 3
    assert seen.index((2, 1, False)) < seen.index((1, 2, True))


def test_what_a_round_puts_out_and_the_next_handler_does_fit_one_batch_each(make_bench: MakeBench):
    bench = make_bench(max_batch_bytes=131_072)
    large = b"x" * 60_000

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await asyncio.sleep(0)
        session.send(SLOW, large)
        session.send(SLOW, large)

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        session.send(PLAIN, large)
        session.send(PLAIN, large)
        bench.finish()

    open_sessions(bench, 1, 2)
    send(bench, 1, (SLOW, b""))
    bench.gateway.flush()  # the other chunk is there when the round behind this one is over
    send(bench, 2, (PLAIN, b""))
    run(bench)
    assert sent(bench) == [
        (1, make_packet(SLOW, large) * 2),
        (2, make_packet(PLAIN, large) * 2),
    ]


# -- errors ----------------------------------------------------------------------------------------


def test_a_step_that_raises_leaves_nothing_and_ends_its_session(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()

    @bench.app.on_packet(SLOW)
    async def fails(session: Session, payload: bytes) -> None:
        session.save(b"kept")
        session.send(1, b"kept")
        await rounds()
        session.save(b"taken back")
        session.send(1, b"taken back")
        raise KeyError("no such thing")

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        raise AssertionError("packets behind the end of their session are not handled")

    @bench.app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        assert session.saved == b"kept"
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""), (PLAIN, b""))
    bench.gateway.append(CLOSED, 1, b"eof")
    run(bench)
    assert sent(bench) == [(1, make_packet(1, b"kept"))]
    rest = [record for batch in records(bench)[1:] for record in batch]
    assert rest == [
        (DISCONNECT, 1, b"handler_error"),
        *[(DONE, 1, done(*name)) for name in [(2, 0), (2, 1), (3, 0)]],
    ]
    assert "packet id 10 raised; session 0x1" in caplog.text
    assert "no such thing" in caplog.text


def test_a_first_step_that_raises_is_a_call_that_raises(make_bench: MakeBench):
    bench = make_bench()

    @bench.app.on_packet(SLOW)
    async def fails(session: Session, payload: bytes) -> None:
        session.send(1, b"taken back")
        raise ValueError(payload)

    @bench.app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""))
    bench.gateway.append(CLOSED, 1, b"eof")
    run(bench)
    assert records(bench) == [[(DISCONNECT, 1, b"handler_error")]]


def test_a_call_that_is_cancelled_ends_without_ending_its_session(make_bench: MakeBench):
    bench = make_bench()

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.sleep(60)
        finally:
            session.send(1, b"taken back")

    @bench.app.on_packet(LAST)
    def last(session: Session, payload: bytes) -> None:
        session.send(LAST, b"still here")
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""), (LAST, b""))
    run(bench)
    assert sent(bench) == [(1, make_packet(LAST, b"still here"))]


def test_a_step_that_ends_the_process_leaves_its_note(make_bench: MakeBench, tmp_path: Path):
    reader = create_note(tmp_path / "note")
    bench = make_bench(note=open_note(tmp_path / "note"))
    seen: list[Any] = []

    def in_hand() -> HandlerCall | None:
        noted = reader.read()
        return None if noted is None else noted[0]

    @bench.app.on_packet(SLOW)
    async def leaves(session: Session, payload: bytes) -> None:
        seen.append(in_hand())
        asyncio.get_running_loop().call_soon(lambda: seen.append(in_hand()))
        await rounds()
        seen.append(in_hand())
        raise SystemExit(3)

    open_sessions(bench, 1)
    send(bench, 1, (PLAIN, b""), (SLOW, b""))
    with pytest.raises(SystemExit):
        run(bench)
    call = HandlerCall(2, 1)
    assert seen == [call, None, call]
    assert in_hand() == call
    reader.close()


# -- asyncio ---------------------------------------------------------------------------------------


def test_what_asyncio_offers_works_from_the_first_step_on(make_bench: MakeBench):
    bench = make_bench()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    said: list[str] = []

    async def child(number: int) -> int:
        await asyncio.sleep(0.001 * number)
        return number

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        variable.set("mine")
        assert asyncio.get_running_loop().is_running()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(number)) for number in range(3)]
        said.append(f"{sum(task.result() for task in tasks)}")
        said.append(await asyncio.wait_for(asyncio.to_thread(lambda: "thread"), 10))
        assert await asyncio.gather(child(1), child(2)) == [1, 2]
        said.append(variable.get())
        bench.finish()

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        assert variable.get() == ""
        asyncio.get_running_loop().call_soon(said.append, "from a plain handler")

    open_sessions(bench, 1, 2)
    send(bench, 1, (SLOW, b""))
    send(bench, 2, (PLAIN, b""))
    run(bench)
    assert said == ["from a plain handler", "3", "thread", "mine"]


def test_what_a_task_of_a_handler_sends_is_published_without_anything_else(make_bench: MakeBench):
    bench = make_bench()
    tasks = set()

    @bench.app.on_connected
    async def connected(session: Session) -> None:
        tasks.add(asyncio.create_task(tick(session)))

    async def tick(session: Session) -> None:
        for number in range(3):
            await asyncio.sleep(0.01)
            session.send(1, b"%d" % number)
            asyncio.get_running_loop().call_later(0.005, look)

    def look() -> None:
        bench.take()
        if len(sent(bench)) == 3:
            bench.finish()

    open_sessions(bench, 1)
    run(bench)
    assert sent(bench) == [(1, make_packet(1, b"%d" % number)) for number in range(3)]


def test_posted_functions_and_on_start_may_await(make_bench: MakeBench):
    bench = make_bench()
    order: list[str] = []

    @bench.app.on_start
    async def start() -> None:
        order.append("start begins")
        await asyncio.sleep(0.01)
        order.append("start ends")
        bench.app.post(posted)

    @bench.app.on_connected
    def connected(session: Session) -> None:
        order.append("connected")

    async def posted() -> None:
        await rounds()
        bench.app.broadcast(1, b"posted")
        order.append("posted")
        bench.finish()

    open_sessions(bench, 1)
    run(bench)
    assert order == ["start begins", "start ends", "connected", "posted"]
    assert (16 + 1, make_packet(1, b"posted")) in bench.others()


def test_an_application_without_coroutine_handlers_may_post_one(make_bench: MakeBench):
    bench = make_bench()

    async def posted() -> None:
        await rounds()
        bench.app.broadcast(1, b"posted")
        raise ValueError("logged")

    async def last() -> None:
        await rounds(6)
        bench.finish()

    bench.app.post(posted)
    bench.app.post(last)
    run(bench)
    # Its last step raised, so that step has left nothing.
    assert bench.others() == []


def test_an_on_start_that_raises_behind_an_await_keeps_the_worker_from_starting(
    make_bench: MakeBench,
):
    bench = make_bench()

    @bench.app.on_start
    async def start() -> None:
        await rounds()
        raise OSError("no database")

    with pytest.raises(StartHandlerError, match="start, raised OSError: no database"):
        bench.worker.run()
    assert bench.take() == []


def test_coroutines_are_cancelled_at_the_end_and_leave_no_output(make_bench: MakeBench):
    bench = make_bench()
    ends: list[str] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            session.send(1, b"never")
            await rounds()
            ends.append("cleaned up")
            raise

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        bench.finish()

    open_sessions(bench, 1, 2)
    send(bench, 1, (SLOW, b""))
    send(bench, 2, (PLAIN, b""))
    run(bench)
    assert ends == ["cleaned up"]
    assert records(bench) == [[(DEFER, 1, deferred(3))]]


def test_an_on_stop_that_awaits_comes_to_its_end_behind_all_others(make_bench: MakeBench):
    bench = make_bench()
    order: list[str] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            order.append("cancelled")

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        bench.finish()

    @bench.app.on_stop
    async def stop() -> None:
        await asyncio.sleep(0.01)
        order.append("stopped")
        bench.app.broadcast(1, b"bye")

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""))
    open_sessions(bench, 2)
    send(bench, 2, (PLAIN, b""))
    run(bench)
    assert order == ["cancelled", "stopped"]
    assert bench.others()[-1] == (BROADCAST, make_packet(1, b"bye"))


@pytest.mark.parametrize("error", ["raises", "hangs"])
def test_an_on_stop_that_does_not_come_to_a_good_end_leaves_nothing(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture, error: str
):
    bench = make_bench(worker_timeout_s=1.5)

    @bench.app.on_stop
    async def stop() -> None:
        bench.app.broadcast(1, b"taken back")
        await asyncio.sleep(0.05 if error == "raises" else 60)
        raise ValueError("no good end")

    bench.worker.request_stop()
    bench.start()
    answer_until_ended(bench)
    assert bench.others() == []
    assert "the application's on_stop raised" in caplog.text
    assert ("no good end" if error == "raises" else "within 1.5 s") in caplog.text


def test_a_worker_that_is_told_to_stop_does_not_wait_for_its_on_start(make_bench: MakeBench):
    bench = make_bench()
    cancelled: list[bool] = []

    @bench.app.on_start
    async def start() -> None:
        asyncio.get_running_loop().call_later(0.01, bench.finish)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)

    run(bench)
    assert cancelled == [True]
    assert bench.applied == []


def test_a_memoryview_is_there_until_the_coroutine_has_ended(make_bench: MakeBench):
    bench = make_bench()
    kept: list[memoryview] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: memoryview) -> None:
        kept.append(payload)
        await rounds()
        session.send(SLOW, payload)

    @bench.app.on_any
    async def last(session: Session, packet_id: int, payload: memoryview) -> None:
        await rounds()
        with pytest.raises(ValueError, match="released"):
            kept[0].tobytes()
        assert payload == b"last"
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b"abc"), (LAST, b"last"))
    run(bench)
    assert sent(bench) == [(1, make_packet(SLOW, b"abc"))]


def test_without_coroutines_asyncio_is_not_imported():
    code = (
        "import cluster.worker.process, cluster.worker.echo, sys; print('asyncio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("beats_often")
def test_past_the_bound_nothing_is_taken_and_the_worker_lives_and_says_so(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench(coroutines_max=2, coroutines_waiting_max=0)
    running: list[int] = []
    most = [0]
    gates: dict[int, asyncio.Event] = {}

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        running.append(session.id)
        most[0] = max(most[0], len(running))
        gates[session.id] = asyncio.Event()
        if session.id == 2:
            look()
        elif session.id == 3:
            gates[2].set()
            gates[3].set()
        await gates[session.id].wait()
        running.remove(session.id)

    beats: list[WorkerHeartbeat] = []
    committed: list[Commit] = []

    def look() -> None:
        beats.extend(bench.heartbeats())
        if len(beats) < 3 or not beats[-1].coroutines_full:  # it says that it is alive meanwhile
            asyncio.get_running_loop().call_later(0.01, look)
            return
        bench.take()
        committed.append(bench.gateway.log.committed)
        gates[1].set()

    @bench.app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        bench.finish()

    open_sessions(bench, 1, 2, 3)
    for session in (1, 2, 3):
        send(bench, session, (SLOW, b""))
    send(bench, 3, (PLAIN, b""), first=2)
    bench.gateway.flush()
    run(bench)
    assert most == [2]
    assert committed == [Commit(6, 0)]
    assert beats[-1].coroutines_full == 1
    assert caplog.text.count("2 coroutines are in progress") == 1
    assert bench.applied[-1].commit == Commit(8, 0)


def test_calls_that_wait_are_bounded_by_bytes_inside_a_record_too(make_bench: MakeBench):
    bench = make_bench(lane_bytes=4_096)
    seen: list[tuple[int, Commit]] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await published(bench)
        seen.append((session.sequence, bench.gateway.log.committed))
        if session.sequence == 40:
            bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, *[(SLOW, b"x" * 28)] * 40)
    run(bench)
    assert [sequence for sequence, _ in seen] == list(range(1, 41))
    # 2,048 bytes, at 32 and 64 for each: 22 calls; the first makes room for the 23rd when it ends.
    assert seen[0] == (1, Commit(2, 22))
    assert seen[1] == (2, Commit(2, 23))
    assert seen[-1] == (40, Commit(3, 0))
    defers = [p for batch in records(bench) for kind, _, p in batch if kind == DEFER]
    assert [DEFERRED.unpack(payload)[1:] for payload in defers][:3] == [(0, 1), (1, 21), (22, 1)]


def test_the_answer_to_a_bind_reaches_who_awaits_it_past_the_bound(make_bench: MakeBench):
    bench = make_bench(coroutines_max=1, coroutines_waiting_max=0)
    heard: list[Any] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        heard.append(await session.bind("ada"))
        heard.append(session.user)

    @bench.app.on_bound
    def bound(session: Session, result: BindResult) -> None:
        heard.append(("on_bound", result))

    @bench.app.on_packet(LAST)
    def last(session: Session, payload: bytes) -> None:
        bench.finish()

    open_sessions(bench, 1, 2)
    send(bench, 1, (SLOW, b""))
    send(bench, 2, (PLAIN, b""))
    bench.gateway.append(BOUND, 1, pack_bound(Bound(BindResult.BOUND, 1, "ada")))
    send(bench, 1, (LAST, b""), first=2)
    run(bench)
    assert heard == [BindResult.BOUND, "ada", ("on_bound", BindResult.BOUND)]


def test_the_gateway_is_told_of_an_answer_that_came_in_with_its_heartbeat(make_bench: MakeBench):
    bench = make_bench(coroutines_max=1, coroutines_waiting_max=0)
    told: list[int] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await rounds(20)
        asking = session.bind("ada")
        bench.gateway.append(BOUND, 1, pack_bound(Bound(BindResult.BOUND, 1, "ada")))
        bench.gateway.flush()
        bench.tell(heartbeat(bench, 0, position_sent=4))
        assert await asking is BindResult.BOUND
        await rounds(20)
        told.extend(beat.heard_ahead for beat in bench.heartbeats() if beat.heard_ahead)
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""))
    send(bench, 1, (PLAIN, b""), first=2)
    run(bench)
    assert told == [4]


def test_a_worker_that_is_full_again_and_again_tells_only_what_it_has_heard(make_bench: MakeBench):
    bench = make_bench(coroutines_max=1, coroutines_waiting_max=0)

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await rounds()

    @bench.app.on_packet(LAST)
    def last(session: Session, payload: bytes) -> None:
        bench.worker.request_stop()

    open_sessions(bench, *range(1, 51))
    for session in range(1, 51):
        send(bench, session, (SLOW, b""))
    send(bench, 1, (LAST, b""), first=2)
    run(bench)
    beats = bench.heartbeats()
    assert beats[-1].coroutines_full == 50
    assert sum(not beat.wants_answer for beat in beats) < 5


def test_who_awaits_an_answer_that_cannot_come_does_not_hold_the_end_up(make_bench: MakeBench):
    bench = make_bench()
    heard: list[Any] = []

    @bench.app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        heard.append(await session.bind("ada"))

    @bench.app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, (SLOW, b""))
    bench.gateway.append(CLOSED, 1, b"reset")
    run(bench)
    assert heard == [BindResult.REJECTED]


# -- successors ------------------------------------------------------------------------------------


def of_predecessor(
    session: int,
    position: int,
    payload: bytes,
    *,
    kind: int = PACKETS,
    index: int = 0,
    sequence: int = 1,
) -> DeferredRecord:
    if kind == PACKETS:
        payload = make_packet(SLOW, payload)
    return DeferredRecord(
        session=session,
        position=position,
        index=index,
        kind=kind,
        sequence=sequence,
        payload=payload,
    )


class Successor:
    """What each call of a successor finds."""

    def __init__(self, make_bench: MakeBench, **options: Any) -> None:
        self.calls: list[Any] = []
        self.bench = make_bench(**options)
        app = self.bench.app
        app.on_connected(lambda session: self._told(session, "connected"))
        app.on_resumed(lambda session: self._told(session, "resumed"))
        app.on_disconnected(self._ended)
        app.on_packet(SLOW)(self._slow)
        app.on_packet(LAST)(self._last)

    def _told(self, session: Session, event: str) -> None:
        self.calls.append((session.id, event, session.sequence, session.redelivered))

    def _ended(self, session: Session, cause: str) -> None:
        self._told(session, cause)

    async def _slow(self, session: Session, payload: bytes) -> None:
        self._told(session, payload.decode())
        await rounds()
        session.send(SLOW, payload)

    def _last(self, session: Session, payload: bytes) -> None:
        self._told(session, "last")
        self.bench.finish()


def test_a_successor_begins_with_what_was_deferred_in_the_order_of_each_session(
    make_bench: MakeBench,
):
    successor = Successor(
        make_bench,
        sessions=[
            ReplayedSession(id=1, address=ADDRESS, sequence=4),
            ReplayedSession(id=2, address=ADDRESS),
        ],
        deferred=[
            of_predecessor(1, 3, b"one", sequence=5),
            of_predecessor(1, 3, b"two", index=1, sequence=6),
            of_predecessor(2, 4, b"opening", kind=OPENED),
        ],
    )
    bench = successor.bench
    send(bench, 1, (SLOW, b"three"), (LAST, b""), first=7)
    run(bench)
    assert [call for call in successor.calls if call[0] == 1] == [
        (1, "resumed", 4, False),
        (1, "one", 5, True),
        (1, "two", 6, True),
        (1, "three", 7, False),
        (1, "last", 8, False),
    ]
    # Its opening was not done: it comes again, in place of `on_resumed`.
    assert [call for call in successor.calls if call[0] == 2] == [(2, "connected", 0, True)]
    dones = [p for batch in records(bench) for kind, _, p in batch if kind == DONE]
    assert dones == [done(4), done(3, 0), done(3, 1), done(1, 0), done(1, 1)]


def test_in_a_session_that_was_ended_only_the_call_in_progress_begins_again(
    make_bench: MakeBench,
):
    successor = Successor(
        make_bench,
        sessions=[
            ReplayedSession(id=1, address=ADDRESS, closing=True),
            ReplayedSession(id=2, address=ADDRESS),
        ],
        deferred=[
            of_predecessor(1, 3, b"in progress"),
            of_predecessor(1, 3, b"behind it", index=1, sequence=2),
            of_predecessor(1, 4, b"eof", kind=CLOSED),
            of_predecessor(9, 5, b"of a session that is gone"),
        ],
    )
    bench = successor.bench

    async def last(session: Session, payload: bytes) -> None:
        await asyncio.sleep(0.02)
        bench.finish()

    bench.app.packet_handlers[LAST] = last
    send(bench, 2, (LAST, b""))
    run(bench)
    assert [call for call in successor.calls if call[0] == 1] == [
        (1, "in progress", 1, True),
        (1, "eof", 1, True),
    ]
    assert sent(bench) == []
    dones = [(s, p) for batch in records(bench) for kind, s, p in batch if kind == DONE and s != 2]
    assert dones == [(1, done(3, 1)), (9, done(5)), (1, done(3)), (1, done(4))]


def answer_until_ended(bench: Bench) -> None:
    """Play the gateway that a worker asks whether it has everything; handlers leave its socket."""
    assert bench.thread is not None
    while bench.thread.is_alive():
        for _ in bench.heartbeats():
            bench.take()
            taken = bench.gateway.serial_applied
            bench.tell(GatewayHeartbeat(incarnation=1, position_sent=0, serial_received=taken))
        bench.thread.join(0.005)
    bench.take()
    assert bench.error is None


def test_a_deferred_call_that_is_set_aside_is_skipped_and_ends_its_session(make_bench: MakeBench):
    successor = Successor(
        make_bench,
        sessions=[ReplayedSession(id=number, address=ADDRESS) for number in (1, 2, 3)],
        deferred=[of_predecessor(1, 3, b"poison"), of_predecessor(1, 4, b"behind it", sequence=2)],
        suspects=[
            Suspect(position=3, index=0, is_set_aside=True),
            Suspect(position=1, index=1, is_set_aside=True),  # in the lane
        ],
    )
    bench = successor.bench

    async def last(session: Session, payload: bytes) -> None:
        await asyncio.sleep(0.02)
        bench.worker.request_stop()

    bench.app.packet_handlers[LAST] = last
    send(bench, 2, (1, b""), (SLOW, b"poison too"))
    send(bench, 3, (LAST, b""))
    bench.gateway.flush()
    bench.start()
    answer_until_ended(bench)
    assert [call[1] for call in successor.calls] == ["resumed"] * 3
    found = [record for batch in records(bench) for record in batch if record[1] == 1]
    assert found == [(DISCONNECT, 1, b"poison"), (DONE, 1, done(3)), (DONE, 1, done(4))]
    assert (DISCONNECT, 2, b"poison") in [record for batch in records(bench) for record in batch]


def test_before_each_step_of_a_suspect_everything_is_committed(make_bench: MakeBench):
    bench = make_bench(
        sessions=[ReplayedSession(id=1, address=ADDRESS)],
        deferred=[of_predecessor(1, 3, b"suspect")],
        suspects=[Suspect(position=3, index=0, is_set_aside=False)],
    )
    seen: list[Any] = []
    # Answered in the thread of the test, as the worker waits in its own.
    bench.app.on_packet(PLAIN)(lambda session, payload: session.send(PLAIN, payload))

    @bench.app.on_packet(SLOW)
    async def suspect(session: Session, payload: bytes) -> None:
        for _ in range(2):
            # What was settled has been taken, so nothing is left to be taken now.
            seen.append(bench.gateway.serial_applied == bench.lane.serial_published)
            session.send(SLOW, b"step")
            await asyncio.sleep(0)
        seen.append(bench.gateway.serial_applied == bench.lane.serial_published)
        bench.worker.request_stop()

    open_sessions(bench, 2)
    send(bench, 2, *[(PLAIN, b"%d" % number) for number in range(9)])
    bench.gateway.flush()
    bench.start()
    answer_until_ended(bench)
    assert seen == [True] * 3
    # What came before, and each step, went out apart from the next.
    assert [[kind for kind, *_ in batch] for batch in records(bench)] == [
        [SEND],
        [SEND],
        [SEND],
        [DONE],
    ]


def test_a_suspect_takes_its_steps_ahead_of_what_else_was_deferred(make_bench: MakeBench):
    """Whatever kills as well would keep deaths from being in a row, and nothing be set aside."""
    bench = make_bench(
        sessions=[ReplayedSession(id=number, address=ADDRESS) for number in (1, 2)],
        deferred=[of_predecessor(1, 3, b"other"), of_predecessor(2, 4, b"suspect")],
        suspects=[Suspect(position=4, index=0, is_set_aside=False)],
    )
    steps: list[bytes] = []

    @bench.app.on_packet(SLOW)
    async def step(session: Session, payload: bytes) -> None:
        for _ in range(3):
            steps.append(payload)
            await asyncio.sleep(0.01)
        if payload == b"other":
            bench.worker.request_stop()

    bench.start()
    answer_until_ended(bench)
    assert steps == [b"suspect", b"other"] * 3


def test_coroutines_are_imported_with_an_application_that_has_them(tmp_path: Path):
    (tmp_path / "waits.py").write_text(
        "from cluster.worker import App\napp = App()\n"
        "@app.on_any\nasync def wait(session, packet_id, payload): ...\n"
    )
    code = (
        "import sys; from cluster.worker.loader import load_application; "
        "load_application('waits:app'); print('cluster.worker.coroutines' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=True,
    )
    assert shown.stdout == "True\n"
