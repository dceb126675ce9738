"""`on_stop`: once, behind every other call, with a part in the last batch; and when it is not."""

import logging
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.lane import Commit
from cluster.shared.messages import Refuse, Stop
from cluster.shared.records import RecordKind
from cluster.worker import App, Session
from cluster.worker.gateway_contact import WorkerRefusedError
from cluster.worker.worker import StartHandlerError
from tests.record_reader import iter_records
from tests.worker.bench import ALL, ECHO, STOP, Bench, MakeBench


@pytest.fixture(autouse=True)
def _batches_do_not_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is the last batch, and none that was due before because this machine is slow:
    for room for that one nobody here would see."""
    monkeypatch.setattr("cluster.worker.publisher.PUBLISH_AGE_S", 60.0)


def run_to_the_end(bench: Bench) -> None:
    bench.open_session()
    bench.send((ECHO, b"a"), (STOP, b""))
    bench.worker.run()
    bench.take()


def test_it_runs_once_behind_all_that_was_in_hand(make_bench: MakeBench):
    calls: list[str] = []

    def prepare(app: App) -> None:
        app.on_start(lambda: calls.append("start"))
        app.on_packet(3)(lambda session, payload: calls.append("packet"))
        app.on_stop(lambda: calls.append("stop"))

    bench = make_bench(prepare=prepare)
    bench.open_session()
    bench.send((STOP, b""), (3, b""))
    bench.worker.run()
    assert calls == ["start", "packet", "stop"]


def test_what_it_sends_and_saves_goes_with_the_last_batch(make_bench: MakeBench):
    sessions: list[Session] = []

    def prepare(app: App) -> None:
        app.on_connected(sessions.append)

        @app.on_stop
        def stop() -> None:
            app.broadcast(9, b"back soon")
            for session in sessions:
                session.send(8, b"and to you")
                session.save(b"state")

    bench = make_bench(prepare=prepare)
    run_to_the_end(bench)
    assert bench.output() == make_packet(ECHO, b"a") + make_packet(8, b"and to you")
    assert bench.others() == [
        (RecordKind.BROADCAST, make_packet(9, b"back soon")),
        (RecordKind.SAVE, b"state"),
    ]
    last = {record.kind for record in iter_records(bench.applied[-1].records)}
    assert last == {RecordKind.BROADCAST, RecordKind.SEND, RecordKind.SAVE}


def test_if_it_raises_that_is_logged_and_nothing_that_it_sent_is_sent(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    def prepare(app: App) -> None:
        @app.on_stop
        def stop() -> None:
            app.broadcast(9, b"never")
            raise OSError("no such store")

    bench = make_bench(prepare=prepare)
    with caplog.at_level(logging.ERROR):
        run_to_the_end(bench)
    (line,) = caplog.records
    assert line.getMessage() == "the application's on_stop raised"
    assert line.exc_info is not None
    assert "no such store" in str(line.exc_info[1])
    assert bench.output() == make_packet(ECHO, b"a")
    assert bench.others() == []


def test_what_the_lane_refused_when_the_stop_came_is_tried_again_and_nothing_is_told(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()
    publish = bench.lane.publish
    refused: list[Commit] = []

    def refuse_once(commit: Commit, records: list[bytes]) -> bool:
        if records and not refused:
            refused.append(commit)
            bench.finish()
            return False
        return publish(commit, records)

    bench.lane.publish = refuse_once
    bench.open_session()
    bench.send((ECHO, b"a"))
    with caplog.at_level(logging.INFO):
        bench.worker.run()
    bench.take()
    assert len(refused) == 1
    assert bench.output() == make_packet(ECHO, b"a")
    assert "no room" not in caplog.text


@pytest.mark.usefixtures("has_long")
@pytest.mark.parametrize("awaits", [False, True])
def test_what_it_puts_out_waits_for_room_a_moment(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture, awaits: bool
):
    def prepare(app: App) -> None:
        @app.on_stop
        def stop() -> None:
            app.broadcast(9, b"back soon")

        if awaits:

            @app.on_packet(3)
            async def nothing(session: Session, payload: bytes) -> None:
                pass

    bench = make_bench(prepare=prepare)
    publish = bench.lane.publish
    refusals = 0

    def refuse_at_the_end(commit: Commit, records: list[bytes]) -> bool:
        nonlocal refusals
        if records and refusals < 5:
            refusals += 1
            return False
        return publish(commit, records)

    bench.lane.publish = refuse_at_the_end
    with caplog.at_level(logging.INFO):
        run_to_the_end(bench)
    assert refusals == 5
    assert bench.output() == make_packet(ECHO, b"a")
    assert bench.others() == [(RecordKind.BROADCAST, make_packet(9, b"back soon"))]
    assert "no room" not in caplog.text


@pytest.mark.usefixtures("has_long")
def test_what_it_puts_out_is_bounded_beside_what_found_no_room(make_bench: MakeBench):
    def prepare(app: App) -> None:
        @app.on_stop
        def stop() -> None:
            for number in range(2):
                app.broadcast(number, b"x" * 50_000)

        @app.on_packet(3)
        def much(session: Session, payload: bytes) -> None:
            for _ in range(2):
                session.send(3, b"x" * 50_000)

    bench = make_bench(prepare=prepare, max_batch_bytes=120_000)
    publish = bench.lane.publish
    refusals = 0

    def refuse_until_told_to_stop(commit: Commit, records: list[bytes]) -> bool:
        nonlocal refusals
        if records and refusals < 2:
            refusals += 1
            bench.worker.request_stop()
            return False
        return publish(commit, records)

    bench.lane.publish = refuse_until_told_to_stop
    bench.open_session()
    bench.send((3, b""))
    bench.tell(Stop(serial_received=ALL))
    bench.worker.run()
    bench.take()
    assert len(bench.others()) == 2
    assert max(len(batch.records) for batch in bench.applied) <= accepted_batch_bytes(120_000)


def test_a_commit_that_the_lane_does_not_take_is_not_called_output(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()
    publish = bench.lane.publish
    bench.lane.publish = lambda commit, records: (
        bench.lane.serial_published == 0 and publish(commit, records)
    )
    bench.open_session()
    bench.send((STOP, b""))  # answers nothing
    with caplog.at_level(logging.INFO):
        bench.worker.run()
    assert "stopped with a commit for which the lane has no room" in caplog.text


def test_it_runs_also_when_the_lane_takes_nothing_any_more(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    calls: list[str] = []

    def prepare(app: App) -> None:
        @app.on_stop
        def stop() -> None:
            calls.append("stop")
            app.broadcast(9, b"for this there is no room either")

    bench = make_bench(prepare=prepare)
    publish = bench.lane.publish
    bench.lane.publish = lambda commit, records: not records and publish(commit, records)
    with caplog.at_level(logging.INFO):
        run_to_the_end(bench)
    assert calls == ["stop"]
    assert bench.output() == b""
    assert "stopped with output for which the lane has no room" in caplog.text


def test_a_worker_that_is_not_wanted_any_more_ends_without_it(make_bench: MakeBench):
    calls: list[str] = []
    bench = make_bench(prepare=lambda app: app.on_stop(lambda: calls.append("stop")))
    bench.tell(Refuse(reason="fenced"))
    with pytest.raises(WorkerRefusedError):
        bench.worker.run()
    assert calls == []


def test_a_worker_that_could_not_start_ends_without_it(make_bench: MakeBench):
    calls: list[str] = []

    def prepare(app: App) -> None:
        app.on_start(lambda: [][0])
        app.on_stop(lambda: calls.append("stop"))

    bench = make_bench(prepare=prepare)
    bench.tell(Stop(serial_received=ALL))
    with pytest.raises(StartHandlerError):
        bench.worker.run()
    assert calls == []


def test_it_takes_nothing():
    one_argument: Any = lambda session: None  # noqa: E731 - what a type checker refuses
    with pytest.raises(TypeError, match=r"must take \(\)"):
        App().on_stop(one_argument)
