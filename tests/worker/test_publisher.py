"""When the loop publishes, how it waits for room, and how it knows that the gateway has it all.

Both ends of the lane are in this process. Where time matters the loop's clock is the test's.
"""

import threading
from collections.abc import Callable

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import START, Commit
from cluster.shared.messages import Refuse, Stop, WorkerHeartbeat
from cluster.shared.records import RecordKind
from cluster.shared.takeover import ReplayedSession, Suspect
from cluster.worker import App, Session
from cluster.worker.gateway_contact import GatewayLostError, WorkerRefusedError
from tests.record_reader import iter_records
from tests.support import wait_until
from tests.worker.bench import ECHO, STOP, Bench, Clock, MakeBench, heartbeat
from tests.worker.records import ADDRESS

# -- batches ---------------------------------------------------------------------------------------


def test_without_on_start_the_first_batch_is_empty_and_opens_the_lane(make_bench: MakeBench):
    resumed = ReplayedSession(id=9, address=ADDRESS)

    def prepare(app: App) -> None:
        app.on_resumed(lambda session: session.send(1, b"hello again"))

    bench = make_bench(sessions=[resumed], prepare=prepare)
    bench.open_session()
    bench.send((STOP, b""))
    bench.worker.run()
    first, *others = bench.take()
    assert (first.commit, bytes(first.records)) == (START, b"")
    assert bench.output() == make_packet(1, b"hello again")
    assert others


def test_output_and_commit_are_published_when_nothing_is_left_to_do(
    make_bench: MakeBench, clock: Clock
):
    bench = make_bench()
    bench.open_session()
    bench.send((ECHO, b"a"), (ECHO, b"b"))
    bench.send((ECHO, b"c"), (STOP, b""))
    bench.worker.run()
    first, batch = bench.take()
    assert batch.commit == Commit(4, 0)
    expected = make_packet(ECHO, b"a") + make_packet(ECHO, b"b") + make_packet(ECHO, b"c")
    assert bench.output() == expected


def test_a_batch_is_published_when_it_is_1_ms_old_also_inside_a_record(
    make_bench: MakeBench, clock: Clock
):
    bench = make_bench()

    def slowly(session: Session, payload: bytes) -> None:
        clock.now += 0.0004
        session.send(7, payload)

    bench.app.on_packet(7)(slowly)
    bench.open_session()
    bench.send(*[(7, b"x")] * 8, (STOP, b""))
    bench.worker.run()
    commits = [batch.commit for batch in bench.take()]
    assert commits == [START, Commit(2, 3), Commit(2, 6), Commit(3, 0)]


def test_a_batch_is_1_ms_old_also_when_many_chunks_went_into_it(
    make_bench: MakeBench, clock: Clock
):
    """A worker that is never idle must not sit on its output."""
    bench = make_bench()

    def slowly(session: Session, payload: bytes) -> None:
        clock.now += 0.0004
        session.send(7, payload)

    bench.app.on_packet(7)(slowly)
    bench.open_session()
    for _ in range(8):
        bench.send((7, b"x"))
    bench.send((STOP, b""))
    bench.worker.run()
    commits = [batch.commit for batch in bench.take()]
    assert commits == [START, Commit(5, 0), Commit(8, 0), Commit(11, 0)]


def test_a_batch_is_published_at_64_kib(make_bench: MakeBench, clock: Clock):
    bench = make_bench()
    bench.open_session()
    bench.send(*[(ECHO, b"x" * 20_000)] * 9, (STOP, b""))
    bench.worker.run()
    commits = [batch.commit for batch in bench.take()]
    assert commits == [START, Commit(2, 4), Commit(2, 8), Commit(3, 0)]
    assert bench.output() == make_packet(ECHO, b"x" * 20_000) * 9


def test_the_smallest_batch_lets_any_packet_pass(make_bench: MakeBench, clock: Clock):
    """What a call sends must not fail for what calls before it have sent."""
    bench = make_bench(max_batch_bytes=128 * 1_024)
    bench.open_session()
    sizes = (65_500, 65_531, 32_000, 65_531, 40_000)
    bench.send(*[(ECHO, b"x" * size) for size in sizes])
    bench.send((STOP, b""))
    bench.worker.run()
    bench.take()
    assert bench.output() == b"".join(make_packet(ECHO, b"x" * size) for size in sizes)


def test_what_resumed_sessions_are_sent_goes_in_as_many_batches_as_it_takes(
    make_bench: MakeBench, clock: Clock, caplog: pytest.LogCaptureFixture
):
    sessions = [ReplayedSession(id=n, address=ADDRESS) for n in range(10, 50)]

    def prepare(app: App) -> None:
        app.on_resumed(lambda session: session.send(1, b"x" * 10_000))

    bench = make_bench(max_batch_bytes=128 * 1_024, sessions=sessions, prepare=prepare)
    bench.open_session()
    bench.send((STOP, b""))
    bench.worker.run()
    bench.take()
    assert bench.output() == make_packet(1, b"x" * 10_000) * 40
    assert {batch.commit for batch in bench.applied[:-1]} == {START}
    assert caplog.text == ""


def test_nothing_new_is_not_published(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    for _ in range(3):
        ran = threading.Event()
        bench.app.post(ran.set)
        assert ran.wait(10)
    bench.worker.request_stop()
    bench.join()
    assert bench.take() == []
    assert bench.error is None


@pytest.mark.parametrize("too_much", [0, 1])
def test_one_call_may_put_out_max_batch_bytes_behind_what_waits_already(
    make_bench: MakeBench, clock: Clock, caplog: pytest.LogCaptureFixture, too_much: int
):
    """The gateway takes such a batch, and what a call before it sent leaves in any case."""
    bench = make_bench(max_batch_bytes=128 * 1_024)
    rest = 128 * 1_024 - 2 * 50_000 - 3 * 20 + too_much
    large = [b"x" * 50_000, b"y" * 50_000, b"z" * rest]

    def send_large(session: Session, payload: bytes) -> None:
        bench.app.post(bench.finish)
        for part in large:
            session.send(7, part)

    bench.app.on_packet(7)(send_large)
    bench.open_session()
    bench.send((ECHO, b"before" * 10_000), (7, b""), (ECHO, b"behind"))
    bench.worker.run()
    bench.take()
    output = [make_packet(ECHO, b"before" * 10_000)]
    if not too_much:
        output += [make_packet(7, part) for part in large] + [make_packet(ECHO, b"behind")]
    assert bench.output() == b"".join(output)
    assert ("OutputTooLarge" in caplog.text) == bool(too_much)
    ends = [kind for kind, _ in bench.others()]
    assert ends == [RecordKind.DISCONNECT] * too_much
    assert bench.applied[-1].commit == Commit(3, 0)


def test_what_was_put_out_in_one_batch_keeps_the_order_that_clients_see(
    make_bench: MakeBench, clock: Clock
):
    bench = make_bench()

    def all_at_once(session: Session, payload: bytes) -> None:
        bench.app.post(bench.finish)
        session.save(b"one")
        session.send(7, b"a")
        bench.app.broadcast(8, b"to all")
        session.save(b"two")
        session.send(7, b"b")
        session.disconnect("bye")
        session.save(b"three")
        bench.app.broadcast(8, b"to the others")

    bench.app.on_packet(7)(all_at_once)
    bench.open_session()
    bench.send((7, b""))
    bench.worker.run()
    bench.take()
    (batch,) = [batch for batch in bench.applied if batch.records]
    assert [(record.kind, bytes(record.payload)) for record in iter_records(batch.records)] == [
        (RecordKind.SEND, make_packet(7, b"a")),
        (RecordKind.BROADCAST, make_packet(8, b"to all")),
        (RecordKind.SEND, make_packet(7, b"b")),
        (RecordKind.DISCONNECT, b"bye"),
        (RecordKind.BROADCAST, make_packet(8, b"to the others")),
        (RecordKind.SAVE, b"three"),
    ]
    assert batch.commit == Commit(3, 0)


# -- waiting for room ------------------------------------------------------------------------------


@pytest.mark.usefixtures("beats_often")
def test_a_worker_without_room_is_alive_and_goes_on_when_there_is_some(make_bench: MakeBench):
    bench = make_bench(lane_bytes=4_096)
    bench.open_session()
    contents = [(ECHO, b"%4d" % n * 100) for n in range(400)]
    for content in contents:
        bench.send(content)
    bench.start()
    beats: list[WorkerHeartbeat] = []

    def has_waited() -> bool:
        bench.tell(heartbeat(bench, serial_received=0))
        beats.extend(bench.heartbeats())
        return sum(beat.batches_waited == 1 for beat in beats) >= 3

    wait_until(has_waited, what="heartbeats without room")
    assert bench.error is None
    expected = b"".join(make_packet(*content) for content in contents)

    def has_everything() -> bool:
        bench.take()
        bench.tell(heartbeat(bench, serial_received=bench.gateway.serial_applied))
        return bench.output() == expected

    wait_until(has_everything, what="all output")
    assert bench.error is None


@pytest.mark.usefixtures("beats_often")
def test_a_worker_without_room_takes_in_what_comes_and_tells_of_it(make_bench: MakeBench):
    """By what it tells, the gateway knows that nothing was lost on the way."""
    bench = make_bench(lane_bytes=4_096)
    bench.open_session()
    for _ in range(8):
        bench.send((ECHO, b"x" * 2_000))
    bench.start()

    def tells(position: int) -> bool:
        sent = bench.gateway.log.sent_position
        bench.tell(heartbeat(bench, serial_received=0, position_sent=sent))
        return any(
            beat.batches_waited and beat.position_received == position
            for beat in bench.heartbeats()
        )

    wait_until(lambda: bench.lane.serial_published >= 2, what="output that fills the lane")
    bench.send((ECHO, b"for this there is no room"))
    wait_until(lambda: tells(10), what="a worker without room")
    serial = bench.lane.serial_published
    bench.send((ECHO, b"this comes meanwhile"))
    wait_until(lambda: tells(11), what="the news of what came")
    assert bench.lane.serial_published == serial
    assert bench.error is None


@pytest.mark.parametrize("by", ["request", "message"])
def test_a_worker_without_room_can_be_stopped(make_bench: MakeBench, by: str):
    bench = make_bench(lane_bytes=4_096)
    bench.open_session()
    for number in range(400):
        bench.send((ECHO, b"%4d" % number * 100))
    bench.start()

    wait_until(lambda: bench.worker._contact.batches_waited, what="a full lane")
    if by == "request":
        bench.worker.request_stop()
    else:
        bench.tell(Stop())
    bench.join()
    assert bench.error is None
    done = bench.take()[-1].commit
    assert Commit(2, 0) < done < Commit(402, 0)  # a successor goes on there


# -- before a suspect ------------------------------------------------------------------------------


def _with_a_suspect(
    make_bench: MakeBench, timeout_s: float = 60.0
) -> tuple[Bench, Callable[[], bool]]:
    """Return a worker whose third record is a suspect, and whether it has asked three times
    for the gateway to have what comes before."""
    suspect = Suspect(position=3, index=0, is_set_aside=False)
    bench = make_bench(suspects=[suspect], worker_timeout_s=timeout_s)
    bench.open_session()
    bench.send((ECHO, b"before"))
    bench.send((ECHO, b"suspect"))
    bench.start()
    asked: list[WorkerHeartbeat] = []

    def has_asked() -> bool:
        bench.take()
        asked.extend(beat for beat in bench.heartbeats() if beat.wants_answer)
        return len(asked) >= 3

    return bench, has_asked


def test_a_suspect_waits_until_the_gateway_has_what_comes_before(make_bench: MakeBench):
    bench, has_asked = _with_a_suspect(make_bench)
    wait_until(has_asked, what="the question for what was published")
    assert bench.output() == make_packet(ECHO, b"before")
    assert bench.gateway.log.committed == Commit(3, 0)

    def is_through() -> bool:
        bench.take()
        bench.tell(heartbeat(bench, serial_received=bench.gateway.serial_applied))
        return bench.output() == make_packet(ECHO, b"before") + make_packet(ECHO, b"suspect")

    wait_until(is_through, what="the suspect's output")
    assert bench.error is None


def test_a_worker_that_is_told_to_stop_leaves_the_suspect_to_its_successor(make_bench: MakeBench):
    bench, has_asked = _with_a_suspect(make_bench)
    wait_until(has_asked, what="the question for what was published")
    bench.worker.request_stop()
    bench.join()
    bench.take()
    assert bench.error is None
    assert bench.output() == make_packet(ECHO, b"before")


def test_a_worker_that_waits_before_a_suspect_notices_that_the_gateway_is_lost(
    make_bench: MakeBench,
):
    bench, _ = _with_a_suspect(make_bench, timeout_s=0.2)
    wait_until(lambda: bench.error, what="the end of the worker")
    assert isinstance(bench.error, GatewayLostError)
    assert any(beat.wants_answer for beat in bench.heartbeats())
    bench.take()
    assert bench.output() == make_packet(ECHO, b"before")


# -- the farewell ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("has_long")
def test_a_stopped_worker_stays_until_its_last_batch_has_arrived(make_bench: MakeBench):
    """Its lane drops what has not left when it closes."""
    bench = make_bench()
    bench.open_session()
    bench.send((ECHO, b"x"))
    bench.start()
    wait_until(lambda: bench.take() and bench.output(), what="the echo")
    last_serial = len(bench.applied)
    bench.worker.request_stop()
    asked: list[WorkerHeartbeat] = []

    def has_asked() -> bool:
        new = [beat for beat in bench.heartbeats() if beat.wants_answer]
        for _ in new:
            bench.tell(heartbeat(bench, serial_received=last_serial - 1))
        asked.extend(new)
        return len(asked) >= 5

    wait_until(has_asked, what="a worker that asks on")
    assert bench.thread is not None
    assert bench.thread.is_alive()
    assert {beat.serial_sent for beat in asked} == {last_serial}
    bench.join()
    assert bench.error is None


def test_a_stopped_worker_does_not_wait_for_ever(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("cluster.worker.publisher.FAREWELL_S", 0.1)
    bench = make_bench()
    bench.start()
    bench.worker.request_stop()
    assert bench.thread is not None
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert bench.error is None
    assert "has not taken the last batch within 0.1 s" in caplog.text


def test_who_is_told_to_stop_and_that_all_has_arrived_leaves_without_asking(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    bench.tell(Stop(serial_received=1))
    assert bench.thread is not None
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert bench.error is None
    assert [beat for beat in bench.heartbeats() if beat.wants_answer] == []


@pytest.mark.usefixtures("has_long")
def test_who_is_fenced_while_it_says_farewell_is_told_so(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    bench.worker.request_stop()
    wait_until(lambda: any(b.wants_answer for b in bench.heartbeats()), what="a farewell")
    bench.tell(Refuse(reason="fenced: for a test"))
    bench.join()
    assert isinstance(bench.error, WorkerRefusedError)
