"""Real worker processes, killed at whatever instant it is while they publish in a tight loop."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.shared.lane import GatewayLane
from tests.contract.lane_harness import PROCESS_LANES, Grant, LaneHarness, lane_fixture
from tests.contract.lane_model import Gateway
from tests.contract.lane_records import InboundRecord, read_now

lanes = lane_fixture(*PROCESS_LANES)

ROOT = Path(__file__).parents[2]
LIVES = 8
BATCHES_PER_LIFE_MAX = 400
START_WAIT_S = 30.0
"""For a process to start, and its first batch."""


@pytest.mark.parametrize("seed", range(2))
def test_batches_of_killed_processes_are_whole_and_contiguous(
    lanes: LaneHarness, seed: int
) -> None:
    """`Gateway` compares each batch with what it commits: nothing lost, nothing done twice."""
    rng = random.Random(seed)
    lane = lanes.open_lane(capacity_bytes=16_384)
    gateway = Gateway(lane, rng)
    for _ in range(LIVES):
        process = _spawn(lanes, lanes.grant(lane))
        try:
            _run(lanes, lane, gateway, batch_count=rng.randint(1, BATCHES_PER_LIFE_MAX))
        finally:
            process.kill()
            process.wait()
        lanes.pump()
        _apply_what_came(gateway)
        lane.revoke()
        lane.log.check_invariants()

    worker = lanes.start_worker(lane)
    assert lane.log.position > 20 * LIVES
    assert lane.log.committed.position > 10 * LIVES
    # What is left is whole, and a last life gets exactly that. A full lane needs a reader to flush.
    left = lane.log.position - lane.log.committed.position + 1
    records: list[InboundRecord] = []

    def has_read() -> bool:
        lane.flush()
        records.extend(read_now(worker))
        return len(records) >= left

    lanes.wait(has_read, f"{left} records")
    assert len(records) == left


def _spawn(lanes: LaneHarness, grant: Grant) -> "subprocess.Popen[bytes]":
    module = "tests.contract.lane_worker_process"
    arguments = [sys.executable, "-m", module, *lanes.process_arguments(grant)]
    return subprocess.Popen(arguments, cwd=ROOT)


def _run(lanes: LaneHarness, lane: GatewayLane, gateway: Gateway, batch_count: int) -> None:
    def has_applied_another() -> bool:
        for _ in range(20):
            gateway.append()
        lane.flush()
        _apply_what_came(gateway)
        return lane.serial_applied > before

    before = lane.serial_applied
    lanes.wait(has_applied_another, "the first batch", START_WAIT_S)
    while (before := lane.serial_applied) < batch_count:
        lanes.wait(has_applied_another, f"a batch behind {before}")


def _apply_what_came(gateway: Gateway) -> None:
    while gateway.lane.has_received:
        gateway.receive()
        gateway.apply()
