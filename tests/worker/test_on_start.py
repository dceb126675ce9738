"""`on_start`: once, first of all, with what it sends; and what it means if it raises."""

from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import START
from cluster.shared.records import RecordKind
from cluster.shared.takeover import ReplayedSession
from cluster.worker import App
from cluster.worker.worker import StartHandlerError
from tests.record_reader import iter_records
from tests.worker.bench import STOP, MakeBench
from tests.worker.records import ADDRESS


def broadcasts(bench: Any) -> list[bytes]:
    return [
        bytes(record.payload)
        for batch in bench.applied
        for record in iter_records(batch.records)
        if record.kind == RecordKind.BROADCAST
    ]


def test_it_runs_once_before_anything_is_resumed_or_received(make_bench: MakeBench):
    calls: list[str] = []

    def prepare(app: App) -> None:
        @app.on_start
        def start() -> None:
            calls.append("start")
            app.post(lambda: calls.append("posted"))

        app.on_resumed(lambda session: calls.append("resumed"))
        app.on_connected(lambda session: calls.append("connected"))

    sessions = [ReplayedSession(id=n, address=ADDRESS) for n in (9, 10)]
    bench = make_bench(sessions=sessions, prepare=prepare)
    assert calls == []  # not when it is registered
    bench.open_session()
    bench.send((STOP, b""))
    bench.worker.run()
    assert sorted(calls[3:]) == ["connected", "posted"]
    assert calls[:3] == ["start", "resumed", "resumed"]


def test_what_it_sends_is_in_the_batch_that_opens_the_lane(
    make_bench: MakeBench,
):
    def prepare(app: App) -> None:
        app.on_start(lambda: app.broadcast(1, b"here I am"))
        app.on_resumed(lambda session: app.broadcast(2, b"and you"))

    bench = make_bench(sessions=[ReplayedSession(id=9, address=ADDRESS)], prepare=prepare)
    bench.open_session()
    bench.send((STOP, b""))
    bench.worker.run()
    first, *_ = bench.take()
    assert first.commit == START
    assert [bytes(record.payload) for record in iter_records(first.records)] == [
        make_packet(1, b"here I am")
    ]
    assert broadcasts(bench) == [make_packet(1, b"here I am"), make_packet(2, b"and you")]


@pytest.mark.parametrize("error", [ValueError("no\nsuch thing"), SystemExit("no\nsuch thing")])
def test_if_it_raises_the_worker_never_was_and_says_why_in_one_line(
    make_bench: MakeBench, error: BaseException
):
    def prepare(app: App) -> None:
        @app.on_start
        def connect_to_the_store() -> None:
            app.broadcast(1, b"never")
            raise error

    bench = make_bench(prepare=prepare)
    with pytest.raises(StartHandlerError) as raised:
        bench.worker.run()
    assert str(raised.value).endswith(
        f"connect_to_the_store, raised {type(error).__name__}: no such thing"
    )
    assert raised.value.__cause__ is error
    assert bench.take() == []  # the gateway has not heard that it was ready


def test_it_takes_nothing():
    one_argument: Any = lambda session: None  # noqa: E731 - what a type checker refuses
    with pytest.raises(TypeError, match=r"must take \(\)"):
        App().on_start(one_argument)
