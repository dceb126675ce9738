"""The lane in shared memory: what its lives leave behind, and what a hostile worker can do."""

import resource
import sys
from pathlib import Path

import pytest

from cluster.shared.lane import START, LaneState, LaneViolation
from cluster.shared.lane_choice import choose_lane
from cluster.shared.lane_inbound import InboundLog
from tests.support import wait_until

if sys.platform != "linux" or choose_lane("auto") != "shm":
    pytest.skip("there is no lane in shared memory here", allow_module_level=True)

from cluster.shared.shm_hub import ShmLaneHub
from cluster.shared.shm_lane import ShmGatewayLane
from tests.shared.shm_ends import CAPACITY, open_descriptors, open_worker

TAIL, HEAD = 128 // 8, 256 // 8
"""Words of a ring: how far it is written, how far it is freed."""


def test_lives_leave_no_descriptor_and_no_memory_behind(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    assert isinstance(lane, ShmGatewayLane)
    before: set[str] = set()
    for incarnation in range(1, 6):
        worker = open_worker(hub, lane, incarnation)
        assert worker.publish(START, [])
        batch = lane.receive()
        assert batch is not None
        lane.apply(batch)
        lane.revoke()
        worker.close()
        before = before or open_descriptors()
        assert open_descriptors() == before
    lane.close()
    assert lane.state is LaneState.CLOSED
    maps = Path("/proc/self/maps").read_text()
    assert "iocp-cluster-lane" not in maps


def test_a_grant_without_memory_leaves_the_lane_vacant(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    assert isinstance(lane, ShmGatewayLane)
    lane.grant(1, b"first")
    lane.revoke()  # the segment that was made at the start is gone
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            lane.grant(2, b"second")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert lane.state is LaneState.VACANT
    lane.grant(3, b"third")
    lane.close()


@pytest.mark.parametrize("word", [TAIL, HEAD])
@pytest.mark.parametrize("value", [1, 7, 1 << 20, (1 << 64) - 8, (1 << 64) - 1])
def test_no_word_that_a_worker_writes_harms_its_gateway(hub: ShmLaneHub, word: int, value: int):
    """The tail of what it publishes, and the head of what it has read: all else is checked too."""
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    assert worker.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    for number in range(20):
        lane.append(1, number, b"payload")
        assert lane.flush()
    segment = worker._segment
    for ring in (segment.inbound, segment.outbound):
        ring.cast("Q")[word] = value

    def is_found_out() -> bool:
        lane.append(1, 1, bytes(CAPACITY // 16))
        lane.flush()
        hub.may_wait()
        hub.has_waited()
        assert lane.has_received in (True, False)
        try:
            while (batch := lane.receive()) is not None:
                lane.apply(batch)
        except LaneViolation:
            return True
        return False

    wait_until(is_found_out, what="the violation")
    lane.revoke()
    worker.close()
    # The lane serves a successor, and lost nothing.
    successor = open_worker(hub, lane, 2)
    assert successor.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    while not lane.flush() or successor.position_received < lane.log.position:
        successor.receive()
    assert lane.log.committed == START
    successor.close()
    lane.close()


def test_the_segment_of_a_worker_survives_its_gateways_end(path: str):
    """A gateway that was killed must not end its workers by a signal in the middle of a store."""
    hub = ShmLaneHub(path)
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    lane.close()
    hub.close()
    published = 0
    while worker.publish(START, [bytes(1_000)]):
        published += 1
    assert published > 10
    assert worker.receive() is None
    worker.close()
    worker.close()
    assert worker.receive() is None
    assert not worker.has_events()


@pytest.mark.parametrize("bad", ["an empty fragment", "a short fragment", "a good and a bad one"])
def test_a_lane_can_be_revoked_while_its_violation_is_handled(hub: ShmLaneHub, bad: str):
    """The error must not hold on to memory that is closed now."""
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    writer = worker._writer
    if bad == "an empty fragment":
        writer.append(b"", is_fragment=True)
    elif bad == "a short fragment":
        writer.append(b"x" * 100, is_fragment=True)
    else:
        writer.append(bytes(writer.message_bytes_max), is_fragment=True)
        writer.append(b"x", is_fragment=True)
    writer.publish()
    try:
        lane.receive()
    except LaneViolation:
        lane.revoke()
    assert lane.state is LaneState.VACANT
    worker.close()
    lane.close()


def test_a_flush_that_found_no_room_gathers_nothing_until_there_is_some(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    assert worker.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    while True:
        lane.append(1, 1, b"x" * 100)
        if not lane.flush():
            break
    sent = lane.log.sent_position
    gathered = []
    unsent = lane.log.unsent

    def count(log: InboundLog, bytes_max: int) -> list[bytes]:
        gathered.append(log)
        return unsent(bytes_max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InboundLog, "unsent", count)
        for _ in range(100):
            assert not lane.flush()
        assert gathered == []
        while worker.receive() is not None:
            pass
        assert lane.flush()
    assert gathered
    assert lane.log.sent_position == sent + 1
    worker.close()
    lane.close()
