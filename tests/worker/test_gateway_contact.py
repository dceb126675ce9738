"""What a worker does with its gateway's words, what it tells, and when it takes it for lost."""

import asyncio

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.messages import (
    GatewayHeartbeat,
    ProtocolError,
    Refuse,
    StatusRequest,
    Stop,
    WorkerHeartbeat,
)
from cluster.worker import Session
from cluster.worker.gateway_contact import GatewayLostError, WorkerRefusedError
from tests.support import wait_until
from tests.worker.bench import ECHO, Clock, MakeBench, heartbeat


def test_a_refusal_ends_the_worker_with_its_reason(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    bench.tell(Refuse(reason="fenced: for a test"))
    bench.join()
    assert isinstance(bench.error, WorkerRefusedError)
    assert str(bench.error) == "fenced: for a test"


def test_garbage_of_the_gateway_ends_the_worker(make_bench: MakeBench):
    bench = make_bench()
    bench.start()
    bench.router.send_multipart([b"worker", b"garbage"])
    bench.join()
    assert isinstance(bench.error, ProtocolError)


def test_a_silent_gateway_is_lost(make_bench: MakeBench):
    bench = make_bench(worker_timeout_s=0.2)
    bench.start()
    bench.join()
    assert isinstance(bench.error, GatewayLostError)
    assert "no heartbeat" in str(bench.error)


def test_a_gateway_that_is_silent_behind_its_word_to_stop_is_not_lost(
    make_bench: MakeBench, clock: Clock
):
    bench = make_bench(worker_timeout_s=1.0)
    ends: list[str] = []

    @bench.app.on_stop
    async def take_long() -> None:
        for _ in range(3):
            clock.now += 0.3
            await asyncio.sleep(0)
        ends.append("done")

    bench.start()
    wait_until(lambda: bench.take(), what="the first batch")
    clock.now += 0.4  # the gateway was heard before that
    bench.tell(Stop(serial_received=1_000))
    bench.join()
    assert bench.error is None
    assert ends == ["done"]


def test_a_gateway_that_claims_to_have_sent_more_is_lost(make_bench: MakeBench, clock: Clock):
    bench = make_bench(worker_timeout_s=1.0)
    bench.start()

    def is_over() -> bool:
        bench.tell(heartbeat(bench, serial_received=0, position_sent=5))
        clock.now += 0.1  # so it is never silent for as long as that
        return bench.error is not None

    wait_until(is_over, interval_s=0.02, what="the end of the worker")
    bench.join()
    assert isinstance(bench.error, GatewayLostError)
    assert "no progress" in str(bench.error)


def test_a_worker_that_is_long_busy_with_what_it_has_does_not_take_the_gateway_for_lost(
    make_bench: MakeBench, clock: Clock
):
    bench = make_bench(worker_timeout_s=1.0)

    def long(session: Session, payload: bytes) -> None:
        # Another record is sent and told of, but the worker is busy with its chunk.
        clock.now += 0.4
        bench.send((ECHO, b"later"))
        bench.tell(heartbeat(bench, 0, position_sent=bench.gateway.log.sent_position))

    bench.app.on_packet(7)(long)
    bench.open_session()
    bench.send(*[(7, b"")] * 10)
    bench.start()
    expected = make_packet(ECHO, b"later") * 10
    wait_until(lambda: bench.take() is not None and bench.output() == expected, what="the rest")
    assert bench.error is None


def test_heartbeats_tell_how_far_both_directions_are(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
):
    # One batch, and a gateway that is never given up, however slow this machine is.
    monkeypatch.setattr("cluster.worker.publisher.PUBLISH_AGE_S", 60.0)
    bench = make_bench(worker_timeout_s=4.0)
    bench.open_session()
    bench.send((ECHO, b"x"))
    bench.start()
    beats: list[WorkerHeartbeat] = []

    def has_told() -> bool:
        bench.tell(heartbeat(bench, serial_received=0))
        beats.extend(bench.heartbeats())
        return bool(beats) and (beats[-1].position_received, beats[-1].serial_sent) == (2, 2)

    wait_until(has_told, what="a heartbeat")
    assert not beats[-1].wants_answer


def test_heartbeats_of_another_life_are_not_signs_of_this_gateway(make_bench: MakeBench):
    bench = make_bench(worker_timeout_s=0.2)
    bench.start()

    def is_over() -> bool:
        bench.tell(GatewayHeartbeat(incarnation=2, position_sent=0, serial_received=0))
        return bench.error is not None

    wait_until(is_over, interval_s=0.02, what="the end of the worker")
    assert isinstance(bench.error, GatewayLostError)


def test_other_messages_are_logged_and_ignored(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    bench = make_bench()
    bench.start()
    bench.tell(StatusRequest())
    wait_until(lambda: "unexpected control message StatusRequest" in caplog.text, what="the log")
    assert bench.error is None
