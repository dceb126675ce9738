"""Commits, incarnations and successors: what is done, what comes again, who is heard."""

import pytest

from cluster.shared.lane import START, Commit, LaneState, LaneViolation, WorkerLane
from cluster.shared.records import OPENED
from tests.contract.lane_harness import LaneHarness, lane_fixture
from tests.contract.lane_records import after, append_packets, append_text, send_record, texts_of

lanes = lane_fixture()


# -- inside a record -------------------------------------------------------------------------------


def test_a_commit_may_end_inside_a_record_and_the_successor_starts_there(
    lanes: LaneHarness,
) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_packets(lane, [b"a", b"b", b"c"])
    append_packets(lane, [b"d"])
    first_life = lanes.flush_and_read(lane, worker)
    uncommitted_bytes = lane.log.uncommitted_bytes

    lanes.publish(worker, Commit(1, 2))
    assert lanes.apply_next(lane) == ([], [])
    assert lane.log.committed == Commit(1, 2)
    assert lane.log.uncommitted_bytes == uncommitted_bytes  # a record is freed as a whole

    worker.close()
    lane.revoke()
    grant = lanes.grant(lane)
    assert grant.commit == Commit(1, 2)
    successor = lanes.open_worker(grant)
    # Its first batch says no more than it was granted, before any record was sent to it.
    lanes.publish(successor, grant.commit)
    assert lanes.apply_next(lane) == ([], [])
    assert lanes.flush_and_read(lane, successor) == first_life
    lanes.publish(successor, after(2))
    assert len(lanes.apply_next(lane)[1]) == 2


def test_output_that_consumes_nothing_repeats_the_commit(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_packets(lane, [b"a", b"b"])
    lanes.flush_and_read(lane, worker)
    for commit in (START, START, Commit(1, 1), Commit(1, 1), after(1), after(1)):
        lanes.publish(worker, commit, send_record(b"tick"))
        assert lanes.apply_next(lane)[0] == [b"tick"]
        assert lane.log.committed == commit


# -- commits that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "commit",
    [
        pytest.param(Commit(1, 0), id="back"),
        pytest.param(Commit(2, 0), id="back-inside-the-record"),
        pytest.param(Commit(2, 1), id="back-by-a-packet"),
        pytest.param(Commit(5, 0), id="beyond-what-was-sent"),
        pytest.param(Commit(6, 0), id="beyond-what-was-appended"),
        pytest.param(Commit(1 << 63, 0), id="far-beyond"),
        pytest.param(Commit(2, 3), id="all-packets-done-is-the-next-record"),
        pytest.param(Commit(2, 4), id="more-packets-than-the-record-has"),
        pytest.param(Commit(2, 0xFFFF_FFFF), id="far-more-packets"),
        pytest.param(Commit(3, 1), id="inside-a-record-without-packets"),
        pytest.param(Commit(4, 1), id="inside-a-record-that-was-not-sent"),
    ],
)
def test_a_commit_that_cannot_be_is_a_violation(lanes: LaneHarness, commit: Commit) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_packets(lane, [b"a"])
    append_packets(lane, [b"b", b"c", b"d"])
    lane.append(OPENED, 8, b"address")
    lanes.flush_and_read(lane, worker)
    append_packets(lane, [b"e", b"f"])  # appended and not flushed
    lanes.publish(worker, Commit(2, 2))
    lanes.apply_next(lane)

    lanes.publish(worker, commit, send_record(b"must not be sent"))
    # Found before anything of the batch is carried out, not when it is applied.
    with pytest.raises(LaneViolation):
        lanes.receive_batch(lane)
    assert lane.log.committed == Commit(2, 2)
    lane.log.check_invariants()

    # The next life starts where the last good batch ended.
    successor = lanes.succeed(lane, worker)
    assert len(lanes.flush_and_read(lane, successor)) == 3


def test_serials_must_follow_one_another(lanes: LaneHarness) -> None:
    for serial in (2, 4, 1 << 40, 0):
        lane = lanes.open_lane()
        worker = lanes.start_worker(lane)
        lanes.publish(worker, START)
        lanes.apply_next(lane)
        lanes.forge_serial(worker, serial)  # 3 is the next
        lanes.publish(worker, START, send_record(b"must not be sent"))
        with pytest.raises(LaneViolation, match=str(serial)):
            lanes.receive_batch(lane)
        lane.revoke()


# -- grants ----------------------------------------------------------------------------------------


def test_a_granted_lane_cannot_be_granted(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    lanes.grant(lane)
    assert lane.state is LaneState.GRANTED
    with pytest.raises(ValueError, match="granted"):
        lanes.grant(lane)
    lane.revoke()
    assert lane.state is LaneState.VACANT
    lanes.grant(lane)


def test_incarnations_only_grow(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    lane.grant(5, b"five")
    lane.revoke()
    for incarnation in (5, 4, 1):
        with pytest.raises(ValueError, match=str(incarnation)):
            lane.grant(incarnation, b"other")
    assert lane.state is LaneState.VACANT
    lane.grant(6, b"six")


def test_a_closed_lane_cannot_be_granted(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    lane.close()
    with pytest.raises(ValueError, match="closed"):
        lanes.grant(lane)


def test_revoking_a_vacant_lane_does_nothing(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    lane.revoke()
    lanes.start_worker(lane)
    lane.revoke()
    lane.revoke()
    assert lane.state is LaneState.VACANT
    assert not lane.is_open


# -- succession ------------------------------------------------------------------------------------


def test_a_successor_gets_exactly_what_is_not_committed(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    lane.append(OPENED, 7, b"address")
    append_text(lane, b"one", b"two", b"three")
    first_life = lanes.flush_and_read(lane, worker)
    append_text(lane, b"four")  # never sent to the first life
    lanes.publish(worker, after(2))
    lanes.apply_next(lane)
    lanes.publish(worker, after(3))  # published, and not applied before the end

    successor = lanes.succeed(lane, worker)
    append_text(lane, b"five")
    records = lanes.flush_and_read(lane, successor)

    assert records[:2] == first_life[2:]
    assert [record.position for record in records] == [3, 4, 5, 6]
    assert texts_of(records) == [b"two", b"three", b"four", b"five"]


def test_what_was_published_before_the_death_is_applied(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"one", b"two")
    lanes.flush_and_read(lane, worker)
    lanes.publish(worker, after(1), send_record(b"reply one"))
    lanes.wait(lambda: lane.has_received, "the batch")
    worker.close()
    assert lanes.apply_next(lane)[0] == [b"reply one"]
    successor = lanes.succeed(lane, worker)
    assert texts_of(lanes.flush_and_read(lane, successor)) == [b"two"]


def test_many_lives_that_commit_nothing_lose_nothing(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"one", b"two")
    records = lanes.flush_and_read(lane, worker)
    for _ in range(5):
        worker = lanes.succeed(lane, worker)
        assert lanes.flush_and_read(lane, worker) == records
    lane.log.check_invariants()


# -- fencing ---------------------------------------------------------------------------------------


def test_nothing_of_a_fenced_incarnation_is_applied(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    fenced = lanes.start_worker(lane)
    append_text(lane, b"one", b"two")
    lanes.flush_and_read(lane, fenced)
    lane.revoke()
    dropped = lanes.dropped_batches
    _publish_ghosts(lanes, fenced, 3)
    _wait_for_ghosts(lanes, dropped + 3)

    successor = lanes.start_worker(lane)
    _publish_ghosts(lanes, fenced, 3)
    _wait_for_ghosts(lanes, dropped + 6)
    lanes.flush_and_read(lane, successor)
    lanes.publish(successor, after(1), send_record(b"true"))

    assert lanes.apply_next(lane)[0] == [b"true"]
    assert lane.receive() is None
    assert lane.log.committed == after(1)


def test_what_came_of_a_fenced_incarnation_and_was_not_received_is_dropped(
    lanes: LaneHarness,
) -> None:
    lane = lanes.open_lane()
    fenced = lanes.start_worker(lane)
    _publish_ghosts(lanes, fenced, 1)
    lanes.wait(lambda: lane.has_received, "the batch")
    dropped = lanes.dropped_batches
    lane.revoke()
    assert lanes.dropped_batches == dropped + 1
    assert not lane.has_received
    assert lane.receive() is None
    successor = lanes.start_worker(lane)
    assert successor.serial_published == 1


def test_a_batch_of_a_fenced_incarnation_cannot_be_applied(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"one")
    lanes.flush_and_read(lane, worker)
    lanes.publish(worker, after(1))
    batch = lanes.receive_batch(lane)
    lane.revoke()
    with pytest.raises(ValueError, match="fenced"):
        lane.apply(batch)
    lanes.start_worker(lane)
    with pytest.raises(ValueError, match="fenced"):
        lane.apply(batch)
    assert lane.log.committed == START


def test_a_batch_is_applied_once_and_before_the_next_one(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    for _ in range(2):
        lanes.publish(worker, START)
    batch = lanes.receive_batch(lane)
    lanes.wait(lambda: lane.has_received, "the second batch")
    with pytest.raises(ValueError, match="still to be applied"):
        lane.receive()
    lane.apply(batch)
    with pytest.raises(ValueError, match="not received last"):
        lane.apply(batch)


def _publish_ghosts(lanes: LaneHarness, fenced: WorkerLane, count: int) -> None:
    for _ in range(count):
        lanes.publish(fenced, START, send_record(b"ghost"))


def _wait_for_ghosts(lanes: LaneHarness, count: int) -> None:
    if lanes.sees_ghosts:
        lanes.wait(lambda: lanes.dropped_batches == count, "the fenced batches to be dropped")
