"""The runner drains what workers publish, in slices where that is long, and flushes to them."""

import pytest

from cluster.gateway.fan_out import FAN_OUT_SLICE
from cluster.iocp import Cause
from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit, OutboundBatch
from cluster.shared.records import BROADCAST, OPENED, PACKETS, SEND, make_record
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, packets_in

TO_ALL = make_packet(9, b"to all")


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Serve 2 receivers in a slice, so that few clients make a long fan-out."""
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 2)
    return 2


def fan_out_in_part(world: GatewayWorld) -> None:
    world.run_until(lambda: world.appliers[0].batch is not None, "the fan-out")


def test_a_slice_is_long_enough_to_be_worth_its_turn():
    assert FAN_OUT_SLICE >= 64


def test_a_fan_out_holds_up_its_own_lane_only(gateway: MakeGateway, short_slices: int):
    world = gateway(shard_count=2)
    workers = [world.start_worker(shard) for shard in range(2)]
    peers = [world.connect() for _ in range(12)]
    other = world.table.sessions[min(world.table.sessions) + 1]  # of shard 1
    peers[1].send(make_packet(1, b"x"))
    world.wait_for(workers[1], PACKETS)
    workers[0].publish(make_record(BROADCAST, 0, TO_ALL))
    workers[0].publish(make_record(SEND, other.id, b"behind"))
    workers[1].commit(make_record(SEND, other.id, b"between"))
    fan_out_in_part(world)
    world.run_until(lambda: b"between" in peers[1].received, "the other lane")
    world.run_until(lambda: b"behind" in peers[1].received, "the end of the fan-out")
    received = bytes(peers[1].received)
    # Session 2 is in the first slice, so it had the broadcast before the other lane's output.
    assert received == TO_ALL + b"between" + b"behind"
    world.run_until(lambda: all(TO_ALL in peer.received for peer in peers), "everybody")
    assert world.lanes[0].serial_applied == 3


def test_a_fan_out_counts_as_applied_with_its_last_slice(gateway: MakeGateway, short_slices: int):
    world = gateway()
    worker = world.start_worker()
    peers = [world.connect() for _ in range(7)]
    world.wait_for(worker, OPENED, 7)
    worker.publish(make_record(BROADCAST, 0, TO_ALL), commit=Commit(8, 0))
    fan_out_in_part(world)
    assert world.lanes[0].log.committed == Commit(1, 0)
    world.run_until(lambda: world.lanes[0].log.committed == Commit(8, 0), "the commit")
    world.run_until(lambda: all(peer.received == TO_ALL for peer in peers), "everybody")


def test_a_fan_out_of_a_worker_that_died_is_finished_before_its_successor(
    gateway: MakeGateway, short_slices: int
):
    """Else the successor would do it again, and some would have it twice."""
    world = gateway()
    worker = world.start_worker()
    peers = [world.connect() for _ in range(7)]
    world.wait_for(worker, OPENED, 7)
    worker.publish(make_record(BROADCAST, 0, TO_ALL), commit=Commit(8, 0))
    worker.publish(make_record(BROADCAST, 0, make_packet(1, b"and its last word")))
    fan_out_in_part(world)
    world.kill()
    successor = world.start_worker()
    assert successor.grant.position == 8
    assert len(successor.grant.sessions) == 7
    everything = TO_ALL + make_packet(1, b"and its last word")
    world.run_until(lambda: all(peer.received == everything for peer in peers), "everybody")
    world.settle()
    assert all(peer.received == everything for peer in peers)


def test_the_fan_out_of_a_worker_that_is_fenced_is_given_up(
    gateway: MakeGateway, short_slices: int
):
    world = gateway()
    worker = world.start_worker()
    peers = [world.connect() for _ in range(7)]
    worker.publish(make_record(BROADCAST, 0, TO_ALL))
    fan_out_in_part(world)
    world.workers.fence(world.shards[0], "a test")
    assert world.appliers[0].batch is None
    assert world.start_worker().grant.position == 1
    world.settle()
    assert sum(peer.received == TO_ALL for peer in peers) < 7
    assert all(peer.received in (b"", TO_ALL) for peer in peers)


def test_a_receiver_that_overflows_is_aborted_alone(memory_gateway: MakeGateway, short_slices: int):
    world = memory_gateway(send_queue_bytes_max=20_000)
    worker = world.start_worker()
    peers = [world.connect(reading=number != 2) for number in range(5)]
    large = make_packet(1, b"x" * 10_000)
    for count in range(1, 6):
        worker.publish(make_record(BROADCAST, 0, large))
        world.wait_received([peer for peer in peers if peer.reading], count * len(large))
    peers[2].read()
    world.run_until(lambda: peers[2].ended, "the reset")
    assert peers[2].ended is Cause.RESET
    world.run_until(lambda: len(world.table.sessions) == 4, "its end")
    assert world.count("closed_send_overflow") == 1
    assert packets_in(peers[0].received) == [large] * 5


@pytest.mark.parametrize(
    ("records", "commit", "reason"),
    [
        (b"no record", None, "after the last record"),
        (make_record(OPENED, 1, b""), None, "unknown kind"),
        (b"", Commit(99, 0), "records were sent"),
        (b"", Commit(1, 1), "not inside a record"),
    ],
)
def test_a_worker_that_breaks_the_contract_is_fenced(
    gateway: MakeGateway, records: bytes, commit: Commit | None, reason: str
):
    world = gateway(shard_count=2)
    worker, bystander = world.start_worker(0), world.start_worker(1)
    peer = world.connect()
    worker.publish(records, commit=commit)
    world.run_until(lambda: world.violations, "the violation")
    assert world.violations[0][0] == 0
    assert reason in world.violations[0][1]
    assert world.count("workers_fenced") == 1
    assert world.lanes[0].log.committed == Commit(1, 0)
    assert peer.ended is None

    # What it still says is dropped; its successor starts where it was.
    worker.publish(make_record(BROADCAST, 0, TO_ALL))
    world.echoing = [world.start_worker(0), bystander]
    assert world.echoing[0].grant.position == 1
    peer.send(make_packet(1, b"x"))
    world.run_until(lambda: peer.received, "the echo")
    assert peer.received == make_packet(1, b"x")


def test_the_last_words_of_a_dead_worker_may_be_a_violation(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    worker.publish(b"no record")
    world.kill()
    assert len(world.violations) == 1
    assert world.workers.life(0) is None
    assert world.start_worker().grant.position == 1


def test_a_flush_that_finds_no_room_is_tried_again(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    world = gateway()
    worker = world.start_worker()
    lane = world.lanes[0]
    flush = lane.flush
    refusals = [False] * 3
    monkeypatch.setattr(lane, "flush", lambda: refusals.pop() if refusals else flush())
    peer = world.connect()
    peer.send(make_packet(1, b"x"))
    world.echoing = [worker]
    world.run_until(lambda: peer.received, "the echo")
    assert refusals == []


def test_many_batches_at_once_are_applied_in_order(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session_id = world.newest().id
    packets = [make_packet(number, b"x") for number in range(500)]
    for packet in packets:
        assert worker.publish(make_record(SEND, session_id, packet))
    world.run_until(lambda: peer.received == b"".join(packets), "everything")
    assert world.lanes[0].serial_applied == 501


def test_a_drain_ends_though_a_worker_goes_on_publishing(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    """What a living worker publishes while it is drained waits for its turn."""
    world = gateway()
    worker = world.start_worker()
    session = world.connect()
    world.wait_for(worker, OPENED)
    lane = world.lanes[0]
    receive = lane.receive
    record = make_record(SEND, world.newest().id, make_packet(1, bytes(10_000)))
    published = 0

    def receive_and_publish_on() -> OutboundBatch | None:
        nonlocal published
        batch = receive()
        published += 1
        assert published < 10_000, "there is no end to it"
        worker.publish(record)
        return batch

    worker.publish(record)
    with monkeypatch.context() as patch:
        patch.setattr(lane, "receive", receive_and_publish_on)
        world.runner.drain(world.shards[0])
    assert published > lane.log.capacity_bytes // 20_000
    assert lane.has_received
    world.run_until(lambda: not lane.has_received, "the rest, in its turn")
    assert not session.ended
