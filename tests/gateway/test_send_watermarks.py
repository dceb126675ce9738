"""A worker hears when much waits for a client and when it is over, and the lane stays bounded."""

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import (
    CLOSED,
    SEND,
    SEND_BLOCKED,
    SEND_READY,
    make_record,
)
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, ScriptedWorker
from tests.iocp.peers import Peer

QUEUE = 100_000
PACKET = make_packet(1, b"w" * 9_996)


def start(make: MakeGateway) -> tuple[GatewayWorld, ScriptedWorker, Peer]:
    """Return a world whose client does not read, with its worker; it holds 16 KiB by itself."""
    world = make(
        send_queue_bytes_max=QUEUE, send_blocked_bytes=QUEUE // 2, send_ready_bytes=QUEUE // 4
    )
    worker = world.start_worker()
    return world, worker, world.connect(reading=False)


def push(world: GatewayWorld, worker: ScriptedWorker, count: int) -> None:
    session_id = world.newest().id
    assert worker.publish(*[make_record(SEND, session_id, PACKET)] * count)
    world.settle()


def states(worker: ScriptedWorker) -> list[int]:
    worker.read()
    return [kind for kind in worker.kinds() if kind in (SEND_BLOCKED, SEND_READY)]


def test_a_queue_past_its_mark_is_told_before_the_limit_and_its_end_once(
    memory_gateway: MakeGateway,
):
    world, worker, peer = start(memory_gateway)
    push(world, worker, 6)
    assert states(worker) == []
    push(world, worker, 1)
    assert states(worker) == [SEND_BLOCKED]
    assert worker.commit()
    push(world, worker, 2)
    assert states(worker) == [SEND_BLOCKED]
    assert peer.ended is None
    peer.read()
    world.wait_received(peer, 9 * len(PACKET))
    assert states(worker) == [SEND_BLOCKED, SEND_READY]
    assert worker.commit()
    world.settle()
    assert states(worker) == [SEND_BLOCKED, SEND_READY]
    assert world.count("sends_blocked") == world.count("sends_ready") == 1


def test_ready_comes_at_the_lower_mark_only(memory_gateway: MakeGateway):
    world, worker, peer = start(memory_gateway)
    push(world, worker, 8)
    assert states(worker) == [SEND_BLOCKED]
    assert worker.commit()
    session = world.newest()
    peer.read()
    world.run_until(lambda: session.queued_bytes <= QUEUE // 2 - 10_000, "some of it")
    peer.read_no_more()
    if session.queued_bytes > QUEUE // 4:
        assert states(worker) == [SEND_BLOCKED]
    peer.read()
    world.wait_received(peer, 8 * len(PACKET))
    assert states(worker) == [SEND_BLOCKED, SEND_READY]


def test_a_worker_that_hangs_has_one_record_a_session_however_often_it_changes(
    memory_gateway: MakeGateway,
):
    world, worker, peer = start(memory_gateway)
    session = world.newest()
    for round_number in range(1, 6):
        assert session.send_now(PACKET * 8)
        world.settle()
        peer.read()
        world.wait_received(peer, round_number * 8 * len(PACKET))
        world.settle()
        peer.read_no_more()
    assert states(worker) == [SEND_BLOCKED]
    assert worker.commit()
    world.settle()
    assert states(worker) == [SEND_BLOCKED, SEND_READY]
    assert worker.commit()
    world.settle()
    assert states(worker) == [SEND_BLOCKED, SEND_READY]
    assert world.lanes[0].log.is_committed


def test_what_a_session_has_gone_back_to_meanwhile_is_not_told(memory_gateway: MakeGateway):
    world, worker, peer = start(memory_gateway)
    push(world, worker, 8)
    assert states(worker) == [SEND_BLOCKED]
    peer.read()
    world.wait_received(peer, 8 * len(PACKET))
    world.settle()
    peer.read_no_more()
    world.settle()
    assert world.newest().send_now(PACKET * 9)
    world.settle()
    assert worker.commit()
    world.settle()
    assert states(worker) == [SEND_BLOCKED]


def test_a_session_that_ends_while_it_is_blocked_tells_its_end_only(memory_gateway: MakeGateway):
    world, worker, peer = start(memory_gateway)
    push(world, worker, 8)
    peer.reset()
    world.wait_for(worker, CLOSED)
    assert states(worker) == [SEND_BLOCKED]
    assert worker.commit()
    world.settle()
    assert states(worker) == [SEND_BLOCKED]
    assert worker.kinds()[-1] == CLOSED


def test_a_successor_is_told_what_the_commit_says(memory_gateway: MakeGateway):
    world, worker, peer = start(memory_gateway)
    assert worker.read()
    assert worker.commit()
    world.settle()
    push(world, worker, 8)
    assert states(worker) == [SEND_BLOCKED]
    world.kill()
    second = world.start_worker()  # the record was not committed: it comes again
    assert [session.send_blocked for session in second.grant.sessions] == [False]
    world.settle()
    assert states(second) == [SEND_BLOCKED]
    assert second.commit()
    world.settle()
    world.kill()
    third = world.start_worker()
    assert [session.send_blocked for session in third.grant.sessions] == [True]
    peer.read()
    world.wait_received(peer, 8 * len(PACKET))
    world.settle()
    assert states(third) == [SEND_READY]
    world.kill()
    fourth = world.start_worker()
    assert [session.send_blocked for session in fourth.grant.sessions] == [True]
    world.settle()
    assert states(fourth) == [SEND_READY]


def test_a_burst_past_the_limit_at_once_ends_the_session_as_ever(memory_gateway: MakeGateway):
    world, worker, peer = start(memory_gateway)
    push(world, worker, 14)
    peer.read()
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == b"send_overflow"
