"""Random lives of random workers: every packet is done once, and its output leaves once, in order.

A gateway appends, flushes and applies, a worker receives, handles and publishes, and dies at any
moment, with batches on the way. Each packet has one number and one
output that follows from it, so what the gateway applies can be compared with what it committed.
The seed is in the test's name.
"""

import random

import pytest

from cluster.shared.lane import Commit, GatewayLane, LaneViolation, OutboundBatch
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.lane_outbound import OutboundSequence
from cluster.shared.local_lane import LocalWorkerLane
from tests.contract.lane_harness import LaneHarness, LocalHarness, lane_fixture
from tests.contract.lane_model import Gateway, Worker

lanes = lane_fixture()

STEPS = 1_500
CAPACITY_BYTES = 2_048  # of some 50 records, so that both directions are often full
MAX_BATCH_BYTES = 1 << 20
ORDINARY_STEPS = (
    *("append", "flush", "pump", "take", "apply"),
    *("receive", "handle", "tick", "publish", "haunt"),
)


@pytest.mark.parametrize("seed", range(12))
def test_every_packet_is_done_once_whoever_dies(lanes: LaneHarness, seed: int) -> None:
    _live_and_die(lanes, seed)


@pytest.mark.parametrize("switched_off", ["fencing", "commit"])
def test_the_model_notices_when_it_is_not_so(
    monkeypatch: pytest.MonkeyPatch, switched_off: str
) -> None:
    """Without the fence a predecessor goes on; without the commit its successor repeats."""
    if switched_off == "fencing":
        take = OutboundSequence.take

        def take_anything(self: OutboundSequence, batch: OutboundBatch) -> None:
            self.incarnation, self.serial = batch.incarnation, batch.serial - 1
            take(self, batch)

        monkeypatch.setattr(OutboundSequence, "take", take_anything)
        # Whatever is set, a worker that was fenced stays one that is not.
        monkeypatch.setattr(
            LocalWorkerLane, "_fenced", property(lambda _: False, lambda *_: None), False
        )
        monkeypatch.setattr(InboundLog, "check", lambda *_: None)
    else:
        rewind = InboundLog.rewind

        def rewind_too_far(self: InboundLog) -> Commit:
            position, _ = rewind(self)
            return Commit(position, 0)  # what was done of the record is done again

        monkeypatch.setattr(InboundLog, "rewind", rewind_too_far)
        monkeypatch.setattr(InboundLog, "check", lambda *_: None)

    noticed = 0
    for seed in range(12):
        lanes = LocalHarness()
        try:
            _live_and_die(lanes, seed)
        except (AssertionError, LaneViolation, IndexError, ValueError):
            noticed += 1
        finally:
            lanes.close()
    assert noticed >= 3, noticed


def _live_and_die(lanes: LaneHarness, seed: int) -> None:
    rng = random.Random(seed)
    lane = lanes.open_lane(CAPACITY_BYTES, MAX_BATCH_BYTES)
    gateway = Gateway(lane, rng)
    worker = _start(lanes, lane)
    ghosts: list[Worker] = []  # fenced, but alive, and at work
    # Each seed has its own habits: some workers hardly live, some gateways hardly read.
    chances = {name: rng.uniform(0.2, 3) for name in ORDINARY_STEPS}
    chances["die"] = rng.uniform(0, 0.3)
    for _ in range(STEPS):
        match rng.choices(list(chances), list(chances.values()))[0]:
            case "append":
                gateway.append()
            case "flush":
                lane.flush()
            case "pump":
                lanes.pump()
            case "take":
                gateway.receive()
            case "apply":
                gateway.apply()
            case "receive":
                worker.receive()
            case "handle":
                for _ in range(rng.randint(1, 9)):
                    worker.handle()
            case "tick":
                worker.tick()
            case "publish":
                worker.publish()
            case "die":
                if rng.random() < 0.5:
                    worker.lane.close()
                else:
                    ghosts.append(worker)
                gateway.apply()  # what was received is carried out before the lane is given away
                lane.revoke()
                worker = _start(lanes, lane)
            case "haunt" if ghosts:
                ghost = rng.choice(ghosts)
                ghost.receive()
                ghost.handle()
                ghost.publish()
        lane.log.check_invariants()

    def is_done() -> bool:
        worker.receive()
        worker.handle()
        worker.publish()
        lane.flush()
        return gateway.is_done()

    lanes.wait(is_done, "the end of all packets")
    assert gateway.freed_count == lane.log.position > 20


def _start(lanes: LaneHarness, lane: GatewayLane) -> Worker:
    commit = lane.log.committed
    return Worker(lanes.start_worker(lane), commit)
