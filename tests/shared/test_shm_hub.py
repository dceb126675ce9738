"""The hub: whom it wakes, who wakes it, and which names are good there."""

import os
import sys
from contextlib import closing

import pytest

from cluster.shared.lane import START
from cluster.shared.lane_choice import choose_lane

if sys.platform != "linux" or choose_lane("auto") != "shm":
    pytest.skip("there is no lane in shared memory here", allow_module_level=True)

from cluster.shared.shm_handover import HandoverRefusedError
from cluster.shared.shm_hub import ShmLaneHub
from cluster.shared.shm_lane import ShmWorkerLane
from tests.shared.shm_ends import CAPACITY, attending, open_worker


def test_workers_ring_at_the_bell_that_a_hub_was_given(path: str):
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    hub = ShmLaneHub(path, bell)
    lane = hub.open_lane(CAPACITY, CAPACITY)
    try:
        assert len(hub.descriptors()) == 1
        with closing(open_worker(hub, lane)) as worker:
            assert worker.publish(START, [])
            with pytest.raises(BlockingIOError):
                os.eventfd_read(bell)  # nobody sleeps, so nobody rings
            assert lane.receive() is not None
            assert hub.may_wait()
            assert worker.publish(START, [])
            assert os.eventfd_read(bell) == 1
    finally:
        lane.close()
        hub.close()
        os.close(bell)  # raises if the hub has closed what is not its own


def test_a_worker_that_rings_all_the_time_makes_no_work_of_its_own(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    bell = hub.descriptors()[0]
    for _ in range(1_000):
        worker._gateway_bell.ring()
    hub.clear(bell)
    hub.clear(bell)  # also when there is nothing to clear
    assert hub.may_wait()
    hub.has_waited()
    os.eventfd_write(bell, (1 << 64) - 2)
    worker._gateway_bell.ring()  # full: nobody waits for room in a bell
    worker.close()
    lane.close()


def test_a_name_is_good_while_it_has_the_lane(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    lane.grant(1, b"first")
    lane.revoke()
    with attending(lambda: hub.clear(hub.descriptors()[-1])), pytest.raises(HandoverRefusedError):
        ShmWorkerLane(hub.endpoint, b"first", 1, 1, CAPACITY, 10.0)
    lane.close()
