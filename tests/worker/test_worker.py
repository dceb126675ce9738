"""The loop: what comes is handled before it sleeps, and how it is stopped.

Both ends of the lane are in this process. Where time matters the loop's clock is the test's.
Handlers run in the loop's thread, so in most tests they play the gateway as well.
"""

from typing import Any

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.messages import Stop
from cluster.shared.records import CLOSED
from cluster.worker import App
from tests.support import wait_until
from tests.worker.bench import ECHO, STOP, Clock, MakeBench


def test_handlers_are_told_what_a_predecessor_was_sent(make_bench: MakeBench, clock: Clock):
    told: list[bool] = []

    def prepare(app: App) -> None:
        app.on_connected(lambda session: told.append(session.redelivered))
        app.on_packet(7)(lambda session, payload: told.append(session.redelivered))

    bench = make_bench(redelivered_through=2, prepare=prepare)
    bench.open_session()
    bench.send((7, b""), (7, b""))
    bench.send((7, b""), (STOP, b""))
    bench.worker.run()
    assert told == [True, True, True, False]


def test_what_came_while_there_was_no_room_is_handled_before_the_loop_sleeps(
    make_bench: MakeBench,
):
    bench = make_bench()
    refusals = [1, 1]
    publish = bench.lane.publish
    asleep: list[float] = []
    waits_for_room = False
    wait = bench.link.wait

    def publish_later(commit: Commit, records: list[bytes]) -> bool:
        nonlocal waits_for_room
        waits_for_room = commit == Commit(3, 0) and bool(refusals)
        if waits_for_room:
            refusals.pop()
            bench.send((STOP, b""))
            return False
        return bool(publish(commit, records))

    def wait_unless_work_is_left(timeout_s: float) -> Any:
        if bench.worker._backlog.chunks and not waits_for_room:
            asleep.append(timeout_s)
        return wait(timeout_s)

    bench.lane.publish = publish_later
    bench.link.wait = wait_unless_work_is_left  # type: ignore[method-assign]
    bench.open_session()
    bench.send((ECHO, b"x"))
    bench.worker.run()
    assert refusals == []
    assert asleep == []


def test_a_closed_session_is_let_go(make_bench: MakeBench):
    bench = make_bench()
    bench.open_session()
    bench.gateway.append(CLOSED, 1, b"eof")
    bench.gateway.flush()
    bench.start()
    wait_until(lambda: bench.take() is not None and bench.gateway.log.is_committed, what="commit")
    assert bench.worker._dispatcher.sessions == {}


def test_what_is_in_hand_at_a_stop_is_published(make_bench: MakeBench, clock: Clock):
    bench = make_bench()
    bench.open_session()
    bench.send((ECHO, b"before"), (STOP, b""), (ECHO, b"after"))
    bench.send((ECHO, b"not begun"))
    bench.worker.run()
    bench.take()
    assert bench.output() == make_packet(ECHO, b"before") + make_packet(ECHO, b"after")
    assert bench.applied[-1].commit == Commit(3, 0)


def test_a_message_to_stop_ends_the_loop(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    bench.tell(Stop())
    bench.join()
    assert bench.error is None


def test_a_request_to_stop_wakes_the_loop(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    bench.worker.request_stop()
    bench.join()
    assert bench.error is None
    bench.worker.request_stop()  # too late, and harmless
    bench.app.post(lambda: None)
