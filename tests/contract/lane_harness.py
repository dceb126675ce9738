"""Opens every kind of lane for the lane suite, and waits where a lane is asynchronous.

A kind is one subclass of `LaneHarness`; the tests know nothing else of it. What is published or
flushed may take its time to arrive, so tests wait for it here, with a deadline, and never for a
guessed time.
"""

import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import pytest
import zmq

from cluster.shared.lane import Commit, Freed, GatewayLane, OutboundBatch, WorkerLane
from cluster.shared.lane_choice import choose_lane
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.zmq_lane import ZmqLaneHub, ZmqWorkerLane
from tests.contract.lane_records import InboundRecord, outbound_payloads, read_now
from tests.support import wait_until

T = TypeVar("T")

CAPACITY_BYTES = 1 << 20
MAX_BATCH_BYTES = 4 << 20
WAIT_S = 10.0


class Grant(NamedTuple):
    """One incarnation's right to a lane, and what it needs to open its end."""

    lane: GatewayLane
    incarnation: int
    identity: bytes
    commit: Commit


class LaneHarness(ABC):
    """Lanes of one kind, all for the thread of the test."""

    sees_ghosts = True
    """Whether what a fenced incarnation publishes still comes here, to be counted."""

    def __init__(self) -> None:
        self._incarnation = 0
        self._resources = ExitStack()

    # -- what a kind defines -----------------------------------------------------------------------

    @abstractmethod
    def open_lane(
        self, capacity_bytes: int = CAPACITY_BYTES, max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> GatewayLane:
        """Return a new vacant lane."""

    @abstractmethod
    def open_worker(self, grant: Grant) -> WorkerLane:
        """Open the worker's end of a grant; it has published nothing yet."""

    def process_arguments(self, grant: Grant) -> list[str]:
        """Return what `lane_worker_process` needs to open the worker's end in a process."""
        raise NotImplementedError(f"{type(self).__name__} has both ends in one process")

    @abstractmethod
    def pump(self) -> None:
        """Let the gateway see what has come."""

    @property
    @abstractmethod
    def dropped_batches(self) -> int:
        """Batches of fenced incarnations that came and were dropped."""

    # -- what all kinds share ----------------------------------------------------------------------

    def close(self) -> None:
        """Close every lane and end that was opened."""
        self._resources.close()

    def grant(self, lane: GatewayLane) -> Grant:
        """Give the lane to a new incarnation."""
        self._incarnation += 1
        identity = f"lane-{self._incarnation}".encode()
        commit = lane.grant(self._incarnation, identity)
        return Grant(lane, self._incarnation, identity, commit)

    def start_worker(self, lane: GatewayLane) -> WorkerLane:
        """Grant the lane, open the worker's end, and wait until the gateway knows of it."""
        grant = self.grant(lane)
        worker = self.open_worker(grant)
        self.publish(worker, grant.commit)
        self.apply_next(lane)
        assert lane.is_open
        return worker

    def succeed(self, lane: GatewayLane, predecessor: WorkerLane) -> WorkerLane:
        """Let `predecessor` die, and start its successor."""
        predecessor.close()
        lane.revoke()
        return self.start_worker(lane)

    def wait(self, predicate: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Pump until `predicate` returns something true; return that."""

        def pumped() -> T:
            self.pump()
            return predicate()

        return wait_until(pumped, timeout_s=timeout_s, interval_s=0.0005, what=what)

    def publish(self, worker: WorkerLane, commit: Commit, *records: bytes) -> None:
        """Publish as soon as there is room."""
        self.wait(lambda: worker.publish(commit, list(records)), "room for a batch")

    def push(self, worker: WorkerLane, commit: Commit, *records: bytes) -> None:
        """Publish as soon as there is room, of which the worker hears; no records are coming."""

        def has_gone() -> bool:
            assert worker.receive() is None
            return worker.publish(commit, list(records))

        self.wait(has_gone, "room for a batch")

    def receive_batch(self, lane: GatewayLane) -> OutboundBatch:
        """Return the next batch, once it has come."""
        return self.wait(lane.receive, "a batch")  # type: ignore[return-value]

    def apply_next(self, lane: GatewayLane) -> tuple[list[bytes], list[Freed]]:
        """Receive and apply the next batch; return its payloads, and what it freed."""
        batch = self.receive_batch(lane)
        payloads = outbound_payloads(batch)
        return payloads, lane.apply(batch)

    def flush(self, lane: GatewayLane) -> None:
        """Flush until everything has gone."""
        self.wait(lane.flush, "a complete flush")

    def read(self, worker: WorkerLane, last_position: int) -> list[InboundRecord]:
        """Return the worker's records up to `last_position`, once they have come."""
        records: list[InboundRecord] = []

        def has_all() -> bool:
            records.extend(read_now(worker))
            return worker.position_received >= last_position

        self.wait(has_all, f"record {last_position}")
        assert worker.position_received == last_position
        return records

    def flush_and_read(self, lane: GatewayLane, worker: WorkerLane) -> list[InboundRecord]:
        """Flush, and return what that brings the worker."""
        self.flush(lane)
        return self.read(worker, lane.log.position)

    def forge_serial(self, worker: WorkerLane, serial: int) -> None:
        """Make the worker's next batch carry `serial`."""
        worker._window.serial_published = serial - 1  # type: ignore[attr-defined]


class LocalHarness(LaneHarness):
    """Both ends in one thread; everything arrives at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lanes: list[LocalGatewayLane] = []

    def open_lane(
        self, capacity_bytes: int = CAPACITY_BYTES, max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> GatewayLane:
        lane = LocalGatewayLane(capacity_bytes, max_batch_bytes)
        self._lanes.append(lane)
        self._resources.callback(lane.close)
        return lane

    def open_worker(self, grant: Grant) -> WorkerLane:
        assert isinstance(grant.lane, LocalGatewayLane)
        worker = grant.lane.open_worker()
        self._resources.callback(worker.close)
        return worker

    def pump(self) -> None:
        pass

    @property
    def dropped_batches(self) -> int:
        return sum(lane.dropped_batches for lane in self._lanes)


class ZmqHarness(LaneHarness):
    """A hub on a local socket, and workers that connect to it."""

    def __init__(self) -> None:
        super().__init__()
        self.context = self._resources.enter_context(zmq.Context())
        self.hub = ZmqLaneHub(self.context, self._endpoint())
        self._resources.callback(self.hub.close)

    def _endpoint(self) -> str:
        if sys.platform == "win32":
            return "tcp://127.0.0.1:*"
        # Not pytest's directory, whose path can be too long for a socket.
        directory = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="lane-"))
        return f"ipc://{directory}/hub"

    def open_lane(
        self, capacity_bytes: int = CAPACITY_BYTES, max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> GatewayLane:
        lane = self.hub.open_lane(capacity_bytes, max_batch_bytes)
        self._resources.callback(lane.close)
        return lane

    def open_worker(self, grant: Grant) -> WorkerLane:
        worker = ZmqWorkerLane(
            self.context,
            self.hub.endpoint,
            grant.identity,
            grant.incarnation,
            grant.commit.position,
            grant.lane.log.capacity_bytes,
        )
        self._resources.callback(worker.close)
        return worker

    def process_arguments(self, grant: Grant) -> list[str]:
        numbers = (grant.incarnation, *grant.commit, grant.lane.log.capacity_bytes)
        return ["zmq", self.hub.endpoint, grant.identity.decode(), *map(str, numbers)]

    def pump(self) -> None:
        more = True
        while more:
            more = self.hub.pump(64)

    @property
    def dropped_batches(self) -> int:
        return self.hub.dropped_batches


class ShmHarness(LaneHarness):
    """A hub with its socket, and workers that get their segments there."""

    sees_ghosts = False

    def __init__(self) -> None:
        super().__init__()
        directory = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="lane-"))
        self.hub = ShmLaneHub(f"{directory}/hub")
        self._resources.callback(self.hub.close)
        self._workers: list[ShmWorkerLane] = []

    def open_lane(
        self, capacity_bytes: int = CAPACITY_BYTES, max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> GatewayLane:
        lane = self.hub.open_lane(capacity_bytes, max_batch_bytes)
        self._resources.callback(lane.close)
        return lane

    def open_worker(self, grant: Grant) -> WorkerLane:
        capacity_bytes = grant.lane.log.capacity_bytes
        with self._serving():
            worker = ShmWorkerLane(
                self.hub.endpoint,
                grant.identity,
                grant.incarnation,
                grant.commit.position,
                capacity_bytes,
                WAIT_S,
            )
        self._resources.callback(worker.close)
        self._workers.append(worker)
        return worker

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Hand over segments in another thread: opening a worker's end waits for its own."""
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                self._hand_over()
                time.sleep(0.0005)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _hand_over(self) -> None:
        self.hub.clear(self.hub.descriptors()[1])

    def process_arguments(self, grant: Grant) -> list[str]:
        numbers = (grant.incarnation, *grant.commit, grant.lane.log.capacity_bytes)
        return ["shm", self.hub.endpoint, grant.identity.decode(), *map(str, numbers)]

    def pump(self) -> None:
        self._hand_over()
        self.hub.pump(64)
        for worker in self._workers:
            if worker._sender.rest and not worker._closed:  # as a worker does that waits for room
                worker.has_events()

    @property
    def dropped_batches(self) -> int:
        return self.hub.dropped_batches


LANE_KINDS: dict[str, type[LaneHarness]] = {
    "local": LocalHarness,
    "zmq": ZmqHarness,
}
PROCESS_LANES = ["zmq"]
"""Those whose ends are in two processes."""

if choose_lane("auto") == "shm":
    from cluster.shared.shm_hub import ShmLaneHub
    from cluster.shared.shm_lane import ShmWorkerLane

    LANE_KINDS["shm"] = ShmHarness
    PROCESS_LANES.append("shm")


def lane_fixture(*kinds: str) -> Any:
    """Return a fixture: one harness of each kind, of every kind if none is named."""

    @pytest.fixture(params=kinds or tuple(LANE_KINDS))
    def lanes(request: pytest.FixtureRequest) -> Iterator[LaneHarness]:
        harness = LANE_KINDS[request.param]()
        yield harness
        harness.close()

    return lanes
