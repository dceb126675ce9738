"""From the gateway to the worker: positions, order, wholeness, and what frees room."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.shared.lane import START, Commit, LaneState
from cluster.shared.records import CLOSED, OPENED, PACKETS, PACKETS_OVERHEAD, RECORD_BYTES
from tests.contract.lane_harness import LaneHarness, lane_fixture
from tests.contract.lane_records import after, append_packets, append_text, texts_of

lanes = lane_fixture()


def test_positions_start_at_one_and_count_records(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    assert lane.log.position == 0
    assert lane.append(OPENED, 7, b"127.0.0.1:5") == 1
    lane.append_packets(7, 1, b"abc", 1, None)
    assert lane.append(CLOSED, 7, b"eof") == 3
    worker = lanes.start_worker(lane)

    records = lanes.flush_and_read(lane, worker)

    assert [record.position for record in records] == [1, 2, 3]
    assert [record.kind for record in records] == [OPENED, PACKETS, CLOSED]
    assert [record.packet_count for record in records] == [0, 1, 0]
    assert records[0].payload == b"127.0.0.1:5"


def test_a_lane_is_drained_only_when_nothing_is_there_to_receive(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    may_know = worker.is_drained
    for text in (b"one", b"two"):
        append_text(lane, text)
        assert worker.is_drained is may_know  # what is not flushed is not there
        lane.flush()
        lanes.wait(lambda: not worker.is_drained, "a record that is there")
        assert texts_of(lanes.flush_and_read(lane, worker)) == [text]
        assert worker.is_drained is may_know
    worker.close()
    assert worker.is_drained is may_know


def test_positions_go_on_over_incarnations(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    for life in range(1, 4):
        assert append_text(lane, b"x") == life
        assert [record.position for record in lanes.flush_and_read(lane, worker)] == [life]
        lanes.publish(worker, after(life))
        lanes.apply_next(lane)
        worker = lanes.succeed(lane, worker)
        assert worker.position_received == life


@pytest.mark.parametrize("seed", range(3))
def test_records_arrive_once_in_order_and_whole(lanes: LaneHarness, seed: int) -> None:
    rng = random.Random(seed)
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    sizes = [rng.choice([0, 1, 15, 16, 17, rng.randrange(2_000), rng.randrange(65_600)])]
    sizes += [rng.choice([0, 1, 7, 8, 9, rng.randrange(300), 65_535, 65_536, 70_000])]
    sizes += [int(rng.paretovariate(0.4)) % 66_000 for _ in range(300)]
    texts = [rng.randbytes(size) for size in sizes]
    seen: list[bytes] = []
    pending = texts[:]
    while pending:
        burst = rng.randint(1, 12)
        append_text(lane, *pending[:burst])
        del pending[:burst]
        seen += texts_of(lanes.flush_and_read(lane, worker))
        lanes.publish(worker, after(lane.log.position))
        lanes.apply_next(lane)
    assert seen == texts
    assert lane.log.uncommitted_bytes == 0
    lane.log.check_invariants()


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bursts=st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=9), max_size=9))
def test_any_bursts_arrive_once_in_order_and_whole(
    lanes: LaneHarness, bursts: list[list[bytes]]
) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    seen: list[bytes] = []
    for burst in bursts:
        append_text(lane, *burst)
        lanes.flush(lane)
    if bursts:
        seen = texts_of(lanes.read(worker, lane.log.position))
    assert seen == [text for burst in bursts for text in burst]
    worker.close()
    lane.close()


def test_a_backlog_of_several_megabytes_arrives(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=16 << 20)
    texts = [bytes([number]) * 60_000 for number in range(100)]
    append_text(lane, *texts)
    worker = lanes.start_worker(lane)
    assert texts_of(lanes.flush_and_read(lane, worker)) == texts


def test_flush_before_the_worker_has_opened_its_end_keeps_everything(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    append_text(lane, b"a", b"b")
    assert not lane.flush()
    grant = lanes.grant(lane)
    append_text(lane, b"c")
    lane.flush()
    worker = lanes.open_worker(grant)
    lane.flush()
    lanes.publish(worker, grant.commit)
    lanes.apply_next(lane)
    assert texts_of(lanes.flush_and_read(lane, worker)) == [b"a", b"b", b"c"]


def test_a_lane_with_records_for_a_worker_that_has_opened_its_end_asks_for_a_flush(
    lanes: LaneHarness,
) -> None:
    """A client that waits for its answer sends nothing that would bring one about."""
    lane = lanes.open_lane()
    append_text(lane, b"to the first life")
    assert not lane.flush()
    assert not lane.needs_flush
    worker = lanes.start_worker(lane)
    assert lane.needs_flush
    assert texts_of(lanes.flush_and_read(lane, worker)) == [b"to the first life"]
    assert not lane.needs_flush
    worker.close()
    append_text(lane, b"to nobody")
    lane.flush()
    lane.revoke()
    append_text(lane, b"to the second life")
    lane.flush()
    assert not lane.needs_flush
    worker = lanes.start_worker(lane)
    assert lane.needs_flush
    assert texts_of(lanes.flush_and_read(lane, worker)) == [
        b"to the first life",
        b"to nobody",
        b"to the second life",
    ]


def test_a_flush_of_nothing_is_complete(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    assert lane.flush()
    worker = lanes.start_worker(lane)
    assert lane.flush()
    assert worker.receive() is None


def test_what_is_appended_is_not_seen_before_the_flush(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"first")
    lanes.flush(lane)
    append_text(lane, b"second")
    assert texts_of(lanes.read(worker, 1)) == [b"first"]
    assert worker.receive() is None
    assert texts_of(lanes.flush_and_read(lane, worker)) == [b"second"]


def test_reading_frees_nothing(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"abc", b"de")
    uncommitted_bytes = lane.log.uncommitted_bytes
    assert uncommitted_bytes > 0
    lanes.flush_and_read(lane, worker)
    # A batch that commits nothing of it proves that the gateway heard of the worker since.
    lanes.publish(worker, START)
    assert lanes.apply_next(lane) == ([], [])
    assert lane.log.uncommitted_bytes == uncommitted_bytes
    assert lane.log.committed == START


def test_only_an_applied_commit_frees(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"abc", b"de")
    lanes.flush_and_read(lane, worker)
    lanes.publish(worker, after(2))
    batch = lanes.receive_batch(lane)
    assert not lane.log.is_committed
    assert len(lane.apply(batch)) == 2
    assert lane.log.is_committed
    assert lane.log.uncommitted_bytes == 0


def test_freed_tells_owner_kind_and_bytes(lanes: LaneHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    owners = [object() for _ in range(3)]
    lane.append(OPENED, 7, b"address", owner=owners[0])
    append_packets(lane, [b"abcd", b"efg"], owner=owners[1])
    lane.append(CLOSED, 7, b"eof", owner=owners[2])
    lanes.flush_and_read(lane, worker)

    lanes.publish(worker, Commit(2, 1))
    _, freed = lanes.apply_next(lane)
    assert [entry[:4] for entry in freed] == [(OPENED, owners[0], RECORD_BYTES + 7, 0)]

    lanes.publish(worker, after(3))
    _, freed = lanes.apply_next(lane)
    assert [entry[:4] for entry in freed] == [
        (PACKETS, owners[1], PACKETS_OVERHEAD + 7, 2),
        (CLOSED, owners[2], RECORD_BYTES + 3, 0),
    ]


def test_full_at_capacity_and_not_before(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=4_096)
    worker = lanes.start_worker(lane)
    append_text(lane, bytes(2_048 - PACKETS_OVERHEAD), bytes(2_047 - PACKETS_OVERHEAD))
    assert lane.log.uncommitted_bytes == 4_095
    assert not lane.is_full
    lane.append(OPENED, 7, b"")
    assert lane.is_full
    # Append never refuses: whoever fills the lane holds back by itself.
    assert append_text(lane, bytes(10_000)) == 4
    assert lane.is_full
    assert len(lanes.flush_and_read(lane, worker)) == 4
    assert lane.is_full

    lanes.publish(worker, after(3))
    lanes.apply_next(lane)
    assert lane.is_full  # the last record alone is more than the capacity
    lanes.publish(worker, after(4))
    lanes.apply_next(lane)
    assert not lane.is_full


def test_a_vacant_lane_takes_records_and_fills(lanes: LaneHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=100)
    assert lane.state is LaneState.VACANT
    assert not lane.is_open
    append_text(lane, bytes(100))
    assert lane.is_full


def test_two_shards_do_not_mix(lanes: LaneHarness) -> None:
    first, second = lanes.open_lane(), lanes.open_lane()
    workers = [lanes.start_worker(first), lanes.start_worker(second)]
    for round_number in range(1, 20):
        for name, lane in ((b"first", first), (b"second", second)):
            append_text(lane, b"%s %d" % (name, round_number))
            lane.flush()
        for name, lane, worker in zip((b"first", b"second"), (first, second), workers, strict=True):
            lanes.flush(lane)
            got = texts_of(lanes.read(worker, round_number))
            assert got == [b"%s %d" % (name, round_number)]
            lanes.publish(worker, after(round_number))
        for lane in (second, first):
            lanes.apply_next(lane)
    assert first.log.is_committed
    assert second.log.is_committed
    # The end of one worker is nothing to the other.
    lanes.succeed(first, workers[0])
    append_text(second, b"more")
    assert texts_of(lanes.flush_and_read(second, workers[1])) == [b"more"]
