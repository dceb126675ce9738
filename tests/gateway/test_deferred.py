"""What is committed and not done: kept, bounded, given to successors, and gone when it is done.

Real sessions and lanes; the workers are scripted.
"""

import pytest

from cluster.gateway.invocation import Invocation, find_invocation
from cluster.gateway.poison import DeathCount
from cluster.iocp.packet_framing import make_packet
from cluster.shared.deferred_bytes import deferred_bytes, deferred_bytes_max
from cluster.shared.lane import Commit
from cluster.shared.note import HandlerCall
from cluster.shared.records import (
    CLOSED,
    DEFER,
    DEFERRED,
    DISCONNECT,
    DONE,
    FINISHED,
    OPENED,
    PACKETS,
    SEND,
    make_record,
)
from cluster.shared.takeover import DeferredRecord
from tests.gateway.conftest import MakeGateway
from tests.gateway.test_succession import committed, successor, with_packets
from tests.record_reader import iter_records


def defer(session: int, position: int, index: int = 0, count: int = 1) -> bytes:
    return make_record(DEFER, session, DEFERRED.pack(position, index, count))


def done(session: int, position: int, index: int = 0) -> bytes:
    return make_record(DONE, session, FINISHED.pack(position, index))


def kept(session: int, index: int) -> DeferredRecord:
    """Return the packet with this index of those of `with_packets`."""
    return DeferredRecord(
        session=session,
        position=2,
        index=index,
        kind=PACKETS,
        sequence=index + 1,
        payload=make_packet(1, b"%d" % index),
    )


# -- what a successor gets -------------------------------------------------------------------------


def test_a_successor_gets_what_is_deferred_until_it_is_done(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 4)
    worker.commit(defer(session, 2, 1, 2), defer(session, 2, 3))
    committed(world, Commit(3, 0))
    assert not world.shards[0].is_idle
    worker = successor(world)
    assert worker.grant.deferred == [kept(session, index) for index in (1, 2, 3)]
    # Its last packet that is done is the one before them.
    assert [(told.id, told.sequence) for told in worker.grant.sessions] == [(session, 1)]
    worker.publish(done(session, 2, 1))
    worker.publish(done(session, 2, 2))
    world.run_until(lambda: world.shards[0].succession.deferred.count == 1, "two that are done")
    worker = successor(world)
    assert worker.grant.deferred == [kept(session, 3)]
    assert worker.grant.sessions[0].sequence == 3
    worker.publish(done(session, 2, 3))
    world.run_until(lambda: world.shards[0].is_idle, "all of it done")
    worker = successor(world)
    assert (worker.grant.deferred, worker.grant.sessions[0].sequence) == ([], 4)


def test_the_oldest_is_the_first_that_is_not_done_since_when_it_was_deferred(
    memory_gateway: MakeGateway,
):
    world = memory_gateway()
    worker, session = with_packets(world, 4)
    deferred = world.shards[0].succession.deferred
    assert deferred.oldest() is None
    worker.publish(defer(session, 2, 0, 2), commit=Commit(2, 2))
    committed(world, Commit(2, 2))
    first = world.core.now()
    world.pass_time(1.0)
    worker.publish(defer(session, 2, 2), commit=Commit(2, 3))
    committed(world, Commit(2, 3))

    def oldest() -> tuple[int, float]:
        told = deferred.oldest()
        assert told is not None
        return told[0].sequence, round(world.core.now() - told[1])

    assert oldest() == (1, 1)
    worker.publish(done(session, 2, 0), commit=Commit(2, 3))
    world.run_until(lambda: deferred.count == 2, "one that is done")
    assert oldest() == (2, 1)
    # A successor's life is another one; the wait of the client is not.
    worker = successor(world)
    assert oldest() == (2, round(world.core.now() - first))
    worker.publish(done(session, 2, 1))
    world.run_until(lambda: deferred.count == 1, "two that are done")
    assert oldest() == (3, 0)
    worker.publish(done(session, 2, 2))
    world.run_until(lambda: deferred.count == 0, "all that are done")
    assert deferred.oldest() is None


def test_a_commit_inside_a_record_may_defer_what_comes_before_it(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 3)
    worker.publish(defer(session, 2), commit=Commit(2, 1))
    worker.publish(defer(session, 2, 1), commit=Commit(2, 2))
    committed(world, Commit(2, 2))
    worker = successor(world)
    assert worker.grant.deferred == [kept(session, index) for index in (0, 1)]
    assert (worker.grant.position, worker.grant.index) == (2, 2)
    assert worker.grant.sessions[0].sequence == 0
    worker.publish(done(session, 2, 1), defer(session, 2, 2), commit=Commit(3, 0))
    committed(world, Commit(3, 0))
    assert successor(world).grant.deferred == [kept(session, index) for index in (0, 2)]


def test_what_is_deferred_and_done_in_one_batch_was_never_deferred(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 1)
    worker.commit(defer(session, 1), done(session, 1), defer(session, 2), done(session, 2))
    committed(world, Commit(3, 0))
    assert world.shards[0].is_idle
    assert successor(world).grant.deferred == []


def test_a_batch_that_is_not_committed_defers_nothing_and_ends_nothing(
    memory_gateway: MakeGateway,
):
    world = memory_gateway()
    worker, session = with_packets(world, 2)
    worker.publish(defer(session, 2), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    changes = (done(session, 2), defer(session, 2, 1))
    # The last record of the batch is a mistake that shows only when it is carried out.
    worker.publish(*changes, done(session, 77), commit=Commit(3, 0))
    world.run_until(lambda: world.violations, "the violation")
    worker = world.start_worker()
    assert worker.grant.deferred == [kept(session, 0)]
    assert (worker.grant.position, worker.grant.index) == (2, 1)


def test_an_opening_that_is_deferred_is_replayed_with_its_session(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    world.connect()
    session = world.newest()
    world.wait_for(worker, OPENED)
    worker.commit(defer(session.id, 1))
    committed(world, Commit(2, 0))
    worker = successor(world)
    assert [told.id for told in worker.grant.sessions] == [session.id]
    (call,) = worker.grant.deferred
    assert (call.kind, call.payload, call.sequence) == (OPENED, str(session.address).encode(), 0)


def test_a_life_that_ends_a_deferred_call_has_made_progress(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 1)
    worker.commit(defer(session, 2))
    committed(world, Commit(3, 0))
    worker = successor(world)
    assert [report.committed for report in world.reports][-1] is False
    worker.publish(make_record(SEND, session, make_packet(1, b"step")))
    world.settle()
    assert [report.committed for report in world.reports][-1] is False
    worker.publish(done(session, 2))
    world.run_until(lambda: world.reports[-1].committed, "the report")


# -- the end of a session --------------------------------------------------------------------------


def test_a_session_whose_end_is_deferred_stays_and_can_be_sent_to(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest().id
    peer.send(make_packet(1, b"0"))
    world.wait_for(worker, PACKETS)
    peer.shut_down()
    world.wait_for(worker, CLOSED)
    worker.commit(defer(session, 2), defer(session, 3))
    committed(world, Commit(4, 0))
    worker = successor(world)
    assert [told.id for told in worker.grant.sessions] == [session]
    assert [(call.position, call.kind) for call in worker.grant.deferred] == [
        (2, PACKETS),
        (3, CLOSED),
    ]
    assert worker.grant.deferred[1].payload == b"eof"
    worker.publish(make_record(SEND, session, make_packet(9, b"late")), done(session, 2))
    world.wait_received(peer, 8)
    assert not peer.ended
    worker.publish(done(session, 3))
    world.wait_ended(peer)
    world.run_until(lambda: not world.table.sessions, "the end of the session")
    worker = successor(world)
    assert (worker.grant.sessions, worker.grant.deferred) == ([], [])


def test_an_end_that_is_deferred_and_done_in_one_batch_is_an_end(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest().id
    peer.shut_down()
    world.wait_for(worker, CLOSED)
    worker.commit(defer(session, 2), done(session, 2))
    world.wait_ended(peer)
    assert successor(world).grant.sessions == []


# -- backpressure and bounds -----------------------------------------------------------------------


def test_what_a_client_has_deferred_counts_as_its_backlog(memory_gateway: MakeGateway):
    world = memory_gateway(send_queue_bytes_max=2_000)
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    peer.send(make_packet(1, b"x" * 496) * 2)
    world.wait_for(worker, PACKETS)
    worker.commit(defer(session.id, 2, 0, 2))
    committed(world, Commit(3, 0))
    assert session.uncommitted_bytes == 2 * (500 + 64)
    peer.send(make_packet(1, b"read once more"))
    world.wait_for(worker, PACKETS, 2)
    assert world.count("slow_reader_paused") == 1
    peer.send(make_packet(1, b"not read"))
    world.settle()
    worker.commit()
    world.settle()
    assert worker.kinds().count(PACKETS) == 2
    worker.publish(done(session.id, 2))
    world.wait_for(worker, PACKETS, 3)
    worker.publish(done(session.id, 2, 1))
    world.run_until(lambda: world.shards[0].succession.deferred.count == 0, "all done")
    worker.commit()
    world.run_until(lambda: session.uncommitted_bytes == 0, "nothing left")


def test_more_than_may_be_deferred_ends_the_worker(memory_gateway: MakeGateway):
    world = memory_gateway(lane_bytes=4_096)
    worker, session = with_packets(world, 40)
    one = deferred_bytes(make_packet(1, b"10"))
    count = -(-deferred_bytes_max(4_096) // one)
    assert 20 < count < 40
    worker.publish(defer(session, 2, 0, count), commit=Commit(2, count))
    committed(world, Commit(2, count))
    worker.publish(defer(session, 2, count), commit=Commit(2, count + 1))
    world.run_until(lambda: world.violations, "the violation")
    assert world.violations == [(0, "more is deferred than the 2048 bytes that may be")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (defer(0, 3), "of no record that session"),
        (defer(0, 1 << 63), "of no record that session"),
        (defer(99, 2), "of no record that session 0x63 has sent"),
        (defer(0, 2, 1, 0), "of a record of 3 packets"),
        (defer(0, 2, 3, 1), "of a record of 3 packets"),
        (defer(0, 2, 1, 3), "of a record of 3 packets"),
        (defer(0, 1), "of no record that session"),
        (defer(0, 2, 2, 1), "not committed by"),
        (defer(0, 2, 0, 1), "behind Commit"),
        (defer(0, 2, 1) * 2, "is deferred twice"),
        (done(0, 2, 1), "was not deferred"),
        (done(0, 1), "was not deferred"),
        (done(99, 2), "but not of session 0x63"),
        (make_record(DEFER, 0, b""), "a defer record of 0 bytes"),
        (make_record(DONE, 0, b"123"), "a done record of 3 bytes"),
        (make_record(DEFER, 0, bytes(13)), "an outbound record of 29 bytes"),
        (make_record(DONE, 0, bytes(11)), "an outbound record of 27 bytes"),
    ],
)
def test_a_record_that_cannot_be_ends_its_worker_and_changes_nothing(
    memory_gateway: MakeGateway, record: bytes, reason: str
):
    world = memory_gateway()
    worker, session = with_packets(world, 3)
    worker.publish(defer(session, 2), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    # Where it names no session, it is that one.
    changes = [
        make_record(kind, named or session, bytes(payload))
        for kind, _, named, payload in iter_records(record)
    ]
    worker.publish(*changes, commit=Commit(2, 2))
    world.run_until(lambda: world.violations, "the violation")
    assert reason in world.violations[0][1]
    assert world.start_worker().grant.deferred == [kept(session, 0)]


def test_what_a_batch_with_a_mistake_deferred_or_did_is_forgotten(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 3)
    worker.publish(defer(session, 2), commit=Commit(2, 1))
    committed(world, Commit(2, 1))
    mistake = done(session, 1)
    worker.publish(done(session, 2), defer(session, 2, 1), mistake, commit=Commit(2, 2))
    world.run_until(lambda: world.violations, "the violation")
    worker = world.start_worker()
    worker.publish(commit=Commit(2, 2))
    committed(world, Commit(2, 2))
    assert successor(world).grant.deferred == [kept(session, 0)]


def test_a_call_is_done_once(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 1)
    worker.commit(defer(session, 2))
    worker.publish(done(session, 2), done(session, 2))
    world.run_until(lambda: world.violations, "the violation")
    assert "is done, and was not deferred" in world.violations[0][1]


def test_what_is_committed_cannot_be_deferred_any_more(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 3)
    worker.publish(commit=Commit(2, 2))
    committed(world, Commit(2, 2))
    worker.publish(defer(session, 2, 1, 2), commit=Commit(3, 0))
    world.run_until(lambda: world.violations, "the violation")
    assert "behind Commit(position=2, packet_index=2)" in world.violations[0][1]


# -- what kills ------------------------------------------------------------------------------------


def test_what_a_deferred_call_is_about_is_found_after_its_commit(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 3)
    worker.commit(defer(session, 1), defer(session, 2, 1))
    committed(world, Commit(3, 0))
    shard = world.shards[0]
    gateway_session = world.newest()
    assert find_invocation(shard, HandlerCall(2, 1)) == Invocation(
        "packet", gateway_session, 1, 2, b"1"
    )
    assert find_invocation(shard, HandlerCall(1, 0)) == Invocation("opened", gateway_session)
    assert find_invocation(shard, HandlerCall(2, 0)) is None  # done with the commit
    worker.publish(done(session, 2, 1))
    world.run_until(lambda: shard.succession.deferred.count == 1, "one done")
    assert find_invocation(shard, HandlerCall(2, 1)) is None


def test_deaths_count_over_a_call_before_and_after_it_was_deferred():
    count = DeathCount(3)
    call = HandlerCall(5, 1)
    assert [count.died(call), count.died(call)] == [False, False]
    commit, deferred = Commit(9, 0), {Commit(5, 1)}
    assert count.suspects(commit, deferred) == [(call, False)]
    assert count.died(call)
    assert count.suspects(commit, deferred) == [(call, True)]
    assert count.suspects(commit, deferred) == [(call, True)]
    assert count.suspects(commit) == []  # done
    assert count.suspects(commit, deferred) == []


def test_a_session_may_be_ended_and_its_calls_stay_deferred(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker, session = with_packets(world, 2)
    worker.commit(make_record(DISCONNECT, session, b"bye"), defer(session, 2, 0, 2))
    committed(world, Commit(3, 0))
    grant = successor(world).grant
    assert [told.closing for told in grant.sessions] == [True]
    assert grant.deferred == [kept(session, index) for index in (0, 1)]
