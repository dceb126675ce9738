"""Waiting on a lane's descriptor, and closing it.

A lost wake-up is a rare hang that no other test shows, so these wait exactly as the contract
tells a worker to wait, and never by polling.
"""

import random
import select
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from cluster.shared.lane import START, Commit, GatewayLane, LaneClosedError, LaneState, WorkerLane
from tests.contract.lane_harness import PROCESS_LANES, WAIT_S, LaneHarness, lane_fixture
from tests.contract.lane_records import after, append_text, read_now, send_record, texts_of

lanes = lane_fixture()
concurrent_lanes = lane_fixture(*PROCESS_LANES)

RECORD_COUNT = 40_000


def _sleep(worker: WorkerLane) -> None:
    """Wait for the descriptor, which is armed, alone."""
    readable, _, _ = select.select([worker.fileno()], [], [], WAIT_S)
    assert readable, f"no wake-up within {WAIT_S} s; has_events={worker.has_events()}"


def _wait(worker: WorkerLane) -> None:
    """Wait as the contract says: only when `has_events` was False right before."""
    if not worker.has_events():
        _sleep(worker)


# -- wake-ups --------------------------------------------------------------------------------------


def test_records_wake_a_worker_that_waits(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    for position in range(1, 30):
        worker.fileno()
        assert not worker.has_events()
        append_text(lane, b"wake up")
        lanes.flush(lane)
        _sleep(worker)
        while worker.position_received < position:
            _wait(worker)
            read_now(worker)


def test_records_that_came_before_the_first_wait_wake(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"early")
    lanes.flush(lane)
    while worker.position_received < 1:
        _wait(worker)
        read_now(worker)


def test_a_worker_that_waits_for_room_is_woken(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=16_384)
    worker = lanes.start_worker(lane)
    record = send_record(bytes(4_000))
    for _ in range(10):
        while worker.publish(START, [record]):
            pass
        worker.fileno()
        while worker.has_events():
            assert worker.receive() is None
        while lane.serial_applied < worker.serial_published:
            lanes.apply_next(lane)
        lanes.flush(lane)
        _sleep(worker)
        assert worker.has_events()
        assert worker.receive() is None
        while not worker.publish(START, [record]):
            _wait(worker)
            assert worker.receive() is None


def test_a_worker_whose_first_batch_was_refused_is_woken_when_it_can_go(
    lanes: LaneHarness,
) -> None:
    """A connection comes about later than the lane; nothing else would ever wake that worker."""
    for _ in range(20):
        lane = lanes.open_lane()
        grant = lanes.grant(lane)
        worker = lanes.open_worker(grant)
        while not worker.publish(grant.commit, []):
            _wait(worker)
            assert worker.receive() is None
        lanes.apply_next(lane)
        worker.close()
        lane.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_that_waits_gets_everything(lanes: LaneHarness, seed: int) -> None:
    """Flushes, commits and waits in a random order: each call may swallow an edge."""
    rng = random.Random(seed)
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    texts = [b"%d" % number for number in range(2_000)]
    seen: list[bytes] = []
    unsent = iter(texts)
    while len(seen) < len(texts):
        append_text(lane, *islice(unsent, rng.choice([0, 0, 1, 1, 3, 20])))
        lanes.flush(lane)
        if rng.random() < 0.5:
            lanes.pump()
            while (batch := lane.receive()) is not None:
                lane.apply(batch)
            lanes.flush(lane)
        if worker.position_received < lane.log.sent_position:
            _wait(worker)
        if rng.random() < 0.5:
            worker.publish(after(worker.position_received), [])
        if rng.random() < 0.8:
            seen += texts_of(read_now(worker))
    assert seen == texts


def test_a_reader_loses_no_wake_up_while_another_thread_writes(
    concurrent_lanes: LaneHarness,
) -> None:
    lane = concurrent_lanes.open_lane(capacity_bytes=4_096)
    worker = concurrent_lanes.start_worker(lane)
    rng = random.Random(1)
    texts = [b"%d" % number for number in range(RECORD_COUNT)]
    seen: list[bytes] = []
    commit = START
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(_write_until_committed, concurrent_lanes, lane, texts)
        while commit != after(RECORD_COUNT) and not writing.done():
            _wait(worker)
            seen += texts_of(read_now(worker))
            reached = after(worker.position_received)
            if reached != commit and worker.publish(reached, []):
                commit = reached
            if rng.random() < 0.05:
                time.sleep(rng.random() * 0.001)
        writing.result()
    assert seen == texts


def _write_until_committed(lanes: LaneHarness, lane: GatewayLane, texts: list[bytes]) -> None:
    """The gateway's side: append in bursts while there is room, flush, apply."""
    rng = random.Random(2)
    unsent = iter(texts)
    deadline = time.monotonic() + 3 * WAIT_S
    while lane.log.committed != after(len(texts)):
        assert time.monotonic() < deadline, lane.log.committed
        if not lane.is_full:
            append_text(lane, *islice(unsent, rng.randrange(40)))
        lane.flush()
        lanes.pump()
        while (batch := lane.receive()) is not None:
            lane.apply(batch)
        if rng.random() < 0.2:
            time.sleep(rng.random() * 0.001)


# -- closing ---------------------------------------------------------------------------------------


def test_publish_after_close_is_refused(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    worker.close()
    with pytest.raises(LaneClosedError):
        worker.publish(Commit(1, 0), [])


def test_close_is_idempotent(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    worker.fileno()
    for _ in range(3):
        worker.close()
    for _ in range(3):
        lane.close()
    assert lane.state is LaneState.CLOSED
    assert lane.receive() is None


def test_a_lane_may_close_before_its_worker(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"never read")
    lanes.flush(lane)
    lane.close()
    dropped = lanes.dropped_batches
    lanes.publish(worker, START)
    if lanes.sees_ghosts:
        lanes.wait(lambda: lanes.dropped_batches == dropped + 1, "the late batch to be dropped")
    worker.close()


def test_a_lane_may_close_with_a_batch_in_hand(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    lanes.publish(worker, START, send_record(b"late"))
    lanes.receive_batch(lane)
    lane.close()
    assert lane.state is LaneState.CLOSED
