"""A process that opens the worker's end of a lane, and works on it until it is killed.

It is never told to stop: the test kills it, at whatever instant that is.
"""

import random
import select
import sys

import zmq

from cluster.shared.lane import Commit, WorkerLane
from cluster.shared.zmq_lane import ZmqWorkerLane
from tests.contract.lane_model import Worker


def open_lane(kind: str, arguments: list[str]) -> tuple[WorkerLane, Commit]:
    """Open the end that `LaneHarness.process_arguments` describes."""
    endpoint, name, *numbers = arguments
    incarnation, position, index, capacity_bytes = map(int, numbers)
    identity = name.encode()
    lane: WorkerLane
    if kind == "zmq":
        lane = ZmqWorkerLane(
            zmq.Context.instance(), endpoint, identity, incarnation, position, capacity_bytes
        )
    else:
        assert kind == "shm", kind
        from cluster.shared.shm_lane import ShmWorkerLane

        lane = ShmWorkerLane(endpoint, identity, incarnation, position, capacity_bytes, 10.0)
    return lane, Commit(position, index)


def main() -> None:
    kind, *arguments = sys.argv[1:]
    lane, commit = open_lane(kind, arguments)
    rng = random.Random(commit.position)
    worker = Worker(lane, commit)
    while not lane.publish(commit, []):
        wait(lane)
    while True:
        before = worker.commit
        worker.receive()
        for _ in range(rng.randint(1, 20)):
            worker.handle()
        if worker.commit == before and rng.random() < 0.9:
            wait(lane)
        else:
            worker.publish()


def wait(lane: WorkerLane) -> None:
    if not lane.has_events():
        select.select([lane.fileno()], [], [], 0.1)


if __name__ == "__main__":
    main()
