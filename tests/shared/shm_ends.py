"""Both ends of a lane in shared memory in one process, for tests. Linux only."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.shared.shm_hub import ShmLaneHub
from cluster.shared.shm_lane import ShmGatewayLane, ShmWorkerLane

__all__ = ["CAPACITY", "attending", "open_descriptors", "open_worker"]

CAPACITY = 65_536


@contextmanager
def attending(attend: Callable[[], None]) -> Iterator[None]:
    """Attend to peers in another thread, as a gateway does in its loop."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            attend()
            time.sleep(0.0005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def open_worker(hub: ShmLaneHub, lane: ShmGatewayLane, incarnation: int = 1) -> ShmWorkerLane:
    """Grant the lane and open the worker's end."""
    name = b"worker-%d" % incarnation
    commit = lane.grant(incarnation, name)
    with attending(lambda: hub.clear(hub.descriptors()[-1])):
        return ShmWorkerLane(hub.endpoint, name, incarnation, commit.position, CAPACITY, 10.0)


def open_descriptors() -> set[str]:
    """Return what this process has open, by descriptor."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}
