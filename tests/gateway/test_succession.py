"""What a successor is told, as of the commit: every session there is, and nothing of what was not
committed. Real sessions and lanes; the workers are scripted."""

import pytest

from cluster.gateway.replay import Replay
from cluster.gateway.succession import Succession
from cluster.iocp.packet_framing import make_packet
from cluster.shared.causes import Cause
from cluster.shared.lane import Commit
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.records import (
    BROADCAST,
    CLOSED,
    DISCONNECT,
    OPENED,
    PACKETS,
    SAVE,
    SEND,
    make_record,
)
from cluster.shared.takeover import ReplayedSession
from tests.gateway.conftest import MakeGateway
from tests.gateway.fake_session import FakeSession
from tests.gateway.world import GatewayWorld, ScriptedWorker

BYE = b"kicked"


def committed(world: GatewayWorld, commit: Commit) -> None:
    world.run_until(lambda: world.lanes[0].log.committed == commit, f"{commit}")


def successor(world: GatewayWorld) -> ScriptedWorker:
    world.kill()
    return world.start_worker()


def told_now(succession: Succession, log: InboundLog) -> list[ReplayedSession]:
    """Return what a successor would be told of the sessions, all at once."""
    replay = Replay(succession, log)
    assert replay.advance(1_000)
    return replay.told


def taken_over(world: GatewayWorld) -> dict[int, ReplayedSession]:
    """Let a successor begin; return what it was told of each session."""
    return {session.id: session for session in successor(world).grant.sessions}


def with_packets(world: GatewayWorld, count: int) -> tuple[ScriptedWorker, int]:
    """Have a worker that was sent a session, record 1, and its packets in one record, number 2."""
    worker = world.start_worker()
    peer = world.connect()
    peer.send(b"".join(make_packet(1, b"%d" % number) for number in range(count)))
    world.wait_for(worker, PACKETS)
    return worker, world.newest().id


# -- saved -----------------------------------------------------------------------------------------


def test_a_successor_gets_what_was_saved_last(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 2)
    assert taken_over(world) == {}
    worker = successor(world)
    worker.publish(make_record(SAVE, session_id, b"one"), commit=Commit(2, 0))
    worker.publish(make_record(SAVE, session_id, b""), commit=Commit(2, 0))
    committed(world, Commit(2, 0))
    assert taken_over(world)[session_id].saved == b""
    assert taken_over(world)[session_id].saved == b""
    worker = successor(world)
    world.wait_for(worker, PACKETS)
    worker.publish(make_record(SAVE, session_id, b"two"), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    assert taken_over(world)[session_id].saved == b"two"


def test_nothing_was_saved_until_something_is(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 1)
    worker.commit()
    committed(world, Commit(3, 0))
    assert taken_over(world)[session_id].saved is None


def test_what_a_batch_with_a_mistake_saved_or_ended_is_forgotten(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 1)
    worker.publish(make_record(SAVE, session_id, b"good"), commit=Commit(2, 0))
    committed(world, Commit(2, 0))
    worker.publish(
        make_record(SAVE, session_id, b"bad"),
        make_record(DISCONNECT, session_id, BYE),
        make_record(SEND, session_id, make_packet(1, b"never")),
        make_record(OPENED, session_id, b""),
        commit=Commit(3, 0),
    )
    world.run_until(lambda: world.violations, "the violation")
    assert world.newest().is_connected
    assert world.count("sends") == 0
    second = world.start_worker()
    (told,) = second.grant.sessions
    assert (told.saved, told.closing, told.sequence) == (b"good", False, 0)


def test_a_blob_goes_with_its_session_and_does_not_reach_the_next(memory_gateway: MakeGateway):
    world = memory_gateway(max_sessions=1)
    worker = world.start_worker()
    peer = world.connect()
    old = world.newest().id
    world.wait_for(worker, OPENED)
    worker.commit(make_record(SAVE, old, b"of the old one"))
    peer.reset()
    world.wait_for(worker, CLOSED)
    worker.commit()
    committed(world, Commit(3, 0))
    world.connect()
    new = world.newest().id
    world.wait_for(worker, OPENED, 2)
    # A save for the one that is closed comes too late to be kept.
    worker.commit(make_record(SAVE, old, b"too late"))
    committed(world, Commit(4, 0))
    assert taken_over(world) == {new: ReplayedSession(id=new, address=_address(world, new))}


def _address(world: GatewayWorld, session_id: int) -> str:
    return str(world.table.sessions[session_id].address)


def test_a_session_that_lost_its_connection_can_be_saved_for_its_end(memory_gateway: MakeGateway):
    """Its last packets are still handled, and a successor may have to handle its end."""
    world = memory_gateway()
    worker, session_id = with_packets(world, 1)
    session = world.newest()
    address = str(session.address)
    session.abort(Cause.SEND_OVERFLOW)
    del session
    world.wait_for(worker, CLOSED)
    assert world.table.sessions == {}
    worker.publish(make_record(SAVE, session_id, b"last"), commit=Commit(3, 0))
    committed(world, Commit(3, 0))
    told = taken_over(world)[session_id]
    assert told == ReplayedSession(id=session_id, address=address, sequence=1, saved=b"last")
    worker = successor(world)
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == Cause.SEND_OVERFLOW.encode()
    worker.commit()
    committed(world, Commit(4, 0))
    assert taken_over(world) == {}


# -- opened, closing, closed -----------------------------------------------------------------------


def test_an_opening_that_is_not_committed_comes_again_and_is_not_replayed(
    memory_gateway: MakeGateway,
):
    world = memory_gateway()
    with_packets(world, 1)
    for _ in range(3):
        worker = successor(world)
        assert worker.grant.sessions == []
        world.wait_for(worker, PACKETS)
        assert worker.kinds() == [OPENED, PACKETS]


def test_an_end_that_is_committed_inside_a_record_is_an_end(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 3)
    worker.publish(make_record(DISCONNECT, session_id, BYE), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    second = successor(world)
    (told,) = second.grant.sessions
    assert (second.grant.position, second.grant.index) == (2, 1)
    assert (told.closing, told.sequence) == (True, 1)


def test_the_end_of_a_session_that_has_lost_its_connection_is_an_end(memory_gateway: MakeGateway):
    """Or a successor would handle what its client sent behind the packet that ended it."""
    world = memory_gateway()
    worker, session_id = with_packets(world, 3)
    world.newest().abort(Cause.LOCAL)
    world.wait_for(worker, CLOSED)
    worker.publish(make_record(DISCONNECT, session_id, BYE), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    assert taken_over(world)[session_id].closing


def test_what_is_opened_ended_and_closed_in_one_batch_leaves_nothing(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 1)
    world.newest().abort(Cause.LOCAL)
    world.wait_for(worker, CLOSED)
    worker.commit(
        make_record(SAVE, session_id, b"x"),
        make_record(DISCONNECT, session_id, BYE),
    )
    committed(world, Commit(4, 0))
    assert taken_over(world) == {}
    world.shards[0].succession.check_invariants()


def test_what_is_opened_saved_and_ended_in_one_batch_is_told(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session_id = with_packets(world, 2)
    worker.publish(
        make_record(SAVE, session_id, b"x"),
        make_record(DISCONNECT, session_id, BYE),
        commit=Commit(2, 1),
    )
    committed(world, Commit(2, 1))
    told = taken_over(world)[session_id]
    assert (told.saved, told.closing, told.sequence) == (b"x", True, 1)


def test_a_batch_with_a_long_fan_out_counts_when_it_is_through(
    memory_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 1)
    world = memory_gateway()
    worker, session_id = with_packets(world, 1)
    world.connect()
    worker.publish(
        make_record(SAVE, session_id, b"x"),
        make_record(BROADCAST, 0, make_packet(1, b"all")),
        make_record(DISCONNECT, session_id, BYE),
        commit=Commit(3, 0),
    )
    world.runner.receive()
    assert world.appliers[0].batch is not None
    assert told_now(world.shards[0].succession, world.shards[0].lane.log) == []
    told = taken_over(world)[session_id]  # the death brings it to its end
    assert (told.saved, told.closing, told.sequence) == (b"x", True, 1)


# -- how far a session is --------------------------------------------------------------------------


def test_the_sequence_is_that_of_the_last_packet_that_is_committed(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    peers = [world.connect(), world.connect()]
    ids = sorted(world.table.sessions)
    world.wait_for(worker, OPENED, 2)
    for round_number, counts in enumerate([(3, 1), (2, 4)], 1):
        for peer, count in zip(peers, counts, strict=True):
            peer.send(make_packet(1, b"x") * count)
            world.settle()
        world.wait_for(worker, PACKETS, 2 * round_number)
    # Records 3 to 6: three and one packets, then two and four.
    for commit, expected in [
        (Commit(3, 0), [0, 0]),
        (Commit(3, 2), [2, 0]),
        (Commit(5, 0), [3, 1]),
        (Commit(5, 1), [4, 1]),
        (Commit(6, 3), [5, 4]),
        (Commit(7, 0), [5, 5]),
    ]:
        worker.publish(commit=commit)
        committed(world, commit)
        world.kill()
        worker = world.start_worker()
        assert [session.sequence for session in worker.grant.sessions] == expected
        assert [session.id for session in worker.grant.sessions] == ids
        world.settle()
        worker.read()


def test_a_grant_tells_how_far_any_predecessor_was_sent(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, _ = with_packets(world, 1)
    assert worker.grant.redelivered_through == 0
    world.kill()
    world.connect()  # nobody was sent this one
    second = world.start_worker()
    assert second.grant.redelivered_through == 2
    world.wait_for(second, OPENED, 2)
    third = successor(world)
    assert third.grant.redelivered_through == 3
    # One that dies before it was sent anything does not make the others unheard of.
    world.kill()
    world.lanes[0].grant(1_000, b"dies at once")
    world.lanes[0].revoke()
    assert world.lanes[0].log.sent_position == 0
    world.workers._grants._incarnation = 1_000
    assert world.start_worker().grant.redelivered_through == 3


# -- the object alone ------------------------------------------------------------------------------


def test_what_is_abandoned_never_counts():
    succession = Succession()
    succession.opened(FakeSession(1))  # type: ignore[arg-type]
    succession.save(1, b"abandoned")
    succession.end(1)
    assert told_now(succession, InboundLog(1)) == [ReplayedSession(id=1, address="address")]
    succession.abandon()
    succession.commit()
    assert told_now(succession, InboundLog(1)) == [ReplayedSession(id=1, address="address")]


def test_what_concerns_nobody_is_dropped():
    succession = Succession()
    succession.save(1, b"x")
    succession.end(1)
    succession.join_asked(1, 5, b"room")
    succession.abandon()
    succession.check_invariants()
    succession.save(1, b"x")
    succession.end(1)
    succession.join_asked(1, 5, b"room")
    succession.closed(FakeSession(1))  # type: ignore[arg-type]
    succession.commit()
    succession.opened(FakeSession(1))  # type: ignore[arg-type]
    assert told_now(succession, InboundLog(1)) == [ReplayedSession(id=1, address="address")]
    assert succession.pending == []
