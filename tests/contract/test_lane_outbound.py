"""From the worker to the gateway: batches, and the window of what is not applied yet."""

import random

import pytest

from cluster.shared.lane import START, Commit, GatewayLane, LaneViolation, WorkerLane
from tests.contract.lane_harness import LaneHarness, lane_fixture
from tests.contract.lane_records import after, append_text, send_record

lanes = lane_fixture()

CAPACITY_BYTES = 16_384
KIB_RECORD = send_record(bytes(1_000))


# -- batches ---------------------------------------------------------------------------------------


def test_batches_arrive_in_order_and_whole(lanes: LaneHarness) -> None:
    rng = random.Random(1)
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    batches = [
        [rng.randbytes(rng.choice([0, 1, 7, 300, 65_531])) for _ in range(rng.randrange(5))]
        for _ in range(60)
    ]
    for serial, payloads in enumerate(batches, 2):
        lanes.push(worker, START, *map(send_record, payloads))
        assert worker.serial_published == serial
        if serial % 7 == 0:
            while lane.serial_applied < serial:
                assert lanes.apply_next(lane)[0] == batches[lane.serial_applied - 2]
            lanes.flush(lane)
    while lane.serial_applied <= len(batches):
        assert lanes.apply_next(lane)[0] == batches[lane.serial_applied - 2]
    assert lane.receive() is None


def test_a_batch_without_records_is_a_pure_commit(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"a", b"b")
    lanes.flush_and_read(lane, worker)
    lanes.publish(worker, after(2))
    batch = lanes.receive_batch(lane)
    assert len(batch.records) == 0
    assert batch.commit == after(2)
    assert len(lane.apply(batch)) == 2


def test_a_batch_tells_who_wrote_it(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    grant = lanes.grant(lane)
    worker = lanes.open_worker(grant)
    lanes.publish(worker, START)
    batch = lanes.receive_batch(lane)
    assert (batch.incarnation, batch.serial) == (grant.incarnation, 1)


def test_has_received_tells_of_batches(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    assert not lane.has_received
    worker = lanes.start_worker(lane)
    assert not lane.has_received
    lanes.publish(worker, START)
    lanes.wait(lambda: lane.has_received, "the batch")
    lanes.apply_next(lane)
    assert not lane.has_received


# -- bounds ----------------------------------------------------------------------------------------


def test_a_batch_of_max_batch_bytes_is_applied(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(max_batch_bytes=5 * len(KIB_RECORD))
    worker = lanes.start_worker(lane)
    lanes.publish(worker, START, *[KIB_RECORD] * 5)
    assert len(lanes.apply_next(lane)[0]) == 5


def test_a_batch_beyond_max_batch_bytes_is_a_violation(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(max_batch_bytes=5 * len(KIB_RECORD))
    worker = lanes.start_worker(lane)
    lanes.publish(worker, START, *[KIB_RECORD] * 6)
    with pytest.raises(LaneViolation, match=str(5 * len(KIB_RECORD))):
        lanes.receive_batch(lane)


def test_an_oversized_batch_may_go_when_nothing_is_outstanding(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    lanes.publish(worker, START, send_record(bytes(3 * CAPACITY_BYTES)))
    assert not worker.publish(START, [send_record(b"small")])
    assert len(lanes.apply_next(lane)[0][0]) == 3 * CAPACITY_BYTES
    lanes.flush(lane)
    lanes.push(worker, START, KIB_RECORD)


# -- the window ------------------------------------------------------------------------------------


def _fill_window(lanes: LaneHarness, worker: WorkerLane) -> int:
    """Publish until it is refused, and return how many batches went."""
    count = 0
    while worker.publish(START, [KIB_RECORD]):
        count += 1
        assert count * len(KIB_RECORD) <= CAPACITY_BYTES
    assert count >= CAPACITY_BYTES * 3 // 4 // len(KIB_RECORD)
    return count


def _apply(lanes: LaneHarness, lane: GatewayLane, count: int) -> None:
    for _ in range(count):
        lanes.apply_next(lane)


def test_a_refused_batch_was_not_published(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    count = _fill_window(lanes, worker)
    serial = worker.serial_published
    for _ in range(3):
        assert not worker.publish(START, [send_record(b"refused"), KIB_RECORD])
    assert worker.serial_published == serial
    _apply(lanes, lane, count)
    assert lane.receive() is None
    lanes.flush(lane)
    lanes.push(worker, START, KIB_RECORD)
    assert lanes.apply_next(lane)[0] == [bytes(1_000)]


def test_room_returns_with_the_next_records(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    for position in range(1, 6):
        count = _fill_window(lanes, worker)
        _apply(lanes, lane, count)
        append_text(lane, b"next")
        assert len(lanes.flush_and_read(lane, worker)) == 1
        assert worker.position_received == position
        assert worker.publish(START, [KIB_RECORD])
        _apply(lanes, lane, 1)


def test_room_returns_without_records(lanes: LaneHarness) -> None:
    """A worker that only pushes gets acknowledgements of their own."""
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    for _ in range(5):
        count = _fill_window(lanes, worker)
        _apply(lanes, lane, count)
        if lane.needs_flush:
            lanes.flush(lane)
        assert not lane.needs_flush
        lanes.push(worker, START, KIB_RECORD)
        _apply(lanes, lane, 1)
        lanes.flush(lane)


def test_room_returns_when_the_control_plane_tells(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    count = _fill_window(lanes, worker)
    _apply(lanes, lane, count)
    worker.taken(lane.serial_applied)
    worker.taken(1)  # an older one that came late takes nothing back
    assert worker.publish(START, [KIB_RECORD])


@pytest.mark.parametrize("seed", range(5))
def test_a_refused_batch_can_go_once_all_is_applied_and_flushed(
    lanes: LaneHarness, seed: int
) -> None:
    """Whatever the sizes: nobody has to wait for a heartbeat to learn of room."""
    rng = random.Random(seed)
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    for _ in range(60):
        record = send_record(bytes(rng.choice([0, 30, 1_500, 3_000, 12_000, 16_300, 40_000])))
        if not worker.publish(START, [record]):
            while lane.serial_applied < worker.serial_published:
                lanes.apply_next(lane)
            if lane.needs_flush:
                lanes.flush(lane)
            lanes.push(worker, START, record)


def test_no_refusal_lies_below_what_is_acknowledged(lanes: LaneHarness) -> None:
    """At the very byte from which on the gateway tells what it has applied."""
    for size in range(CAPACITY_BYTES // 4 - 80, CAPACITY_BYTES // 4 + 8):
        lane = lanes.open_lane(CAPACITY_BYTES)
        worker = lanes.start_worker(lane)
        worker.taken(1)
        large = send_record(bytes(CAPACITY_BYTES))
        assert worker.publish(START, [bytes(size)])
        if not worker.publish(START, [large]):
            lane.apply(lanes.receive_batch(lane))
            if lane.needs_flush:
                lanes.flush(lane)
            lanes.push(worker, START, large)
        worker.close()
        lane.close()


def test_more_taken_than_published_is_a_violation(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    with pytest.raises(LaneViolation):
        worker.taken(2)


def test_a_successor_begins_with_a_window_of_its_own(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    _fill_window(lanes, worker)
    for _ in range(3):
        worker = lanes.succeed(lane, worker)
        assert worker.serial_published == 1
        count = _fill_window(lanes, worker)
        _apply(lanes, lane, count)
        assert lane.serial_applied == count + 1


def test_a_commit_can_wait_for_room_with_its_records(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    append_text(lane, b"request")
    lanes.flush_and_read(lane, worker)
    count = _fill_window(lanes, worker)
    reply = send_record(bytes(5_000))
    assert not worker.publish(after(1), [reply])
    _apply(lanes, lane, count)
    assert lane.log.committed == START
    lanes.flush(lane)
    lanes.push(worker, after(1), reply)
    payloads, freed = lanes.apply_next(lane)
    assert (len(payloads), len(freed)) == (1, 1)
    assert lane.log.committed == Commit(2, 0)
