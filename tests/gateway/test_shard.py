"""Full lanes and slow clients hold up whom they must and nobody else, and nothing is lost."""

import time
from typing import cast

import pytest

from cluster.gateway.session import GatewaySession
from cluster.gateway.shard import Shard
from cluster.iocp.packet_framing import make_packet
from cluster.shared.causes import Cause
from cluster.shared.config import LimitsConfig
from cluster.shared.lane import Commit
from cluster.shared.records import (
    BROADCAST,
    CLOSED,
    DISCONNECT,
    OPENED,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD_BYTES,
    SEND,
    make_record,
)
from cluster.shared.takeover import ReplayedSession
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import ScriptedWorker, content, packets_in

SMALL_LANE_BYTES = 4_000

ONE_RECV = 39
"""Packets of 104 bytes that fill a small lane and that one recv brings, whatever the driver."""


def received(worker: ScriptedWorker, session_id: int) -> list[bytes]:
    """Return the packets of one session, and check that their numbers have no gap."""
    packets: list[bytes] = []
    for record in worker.records:
        if record.kind == PACKETS and record.session == session_id:
            first_sequence, more = content(record)
            assert first_sequence == len(packets) + 1
            packets += more
    return packets


def numbered(count: int, size: int = 100) -> list[bytes]:
    return [make_packet(n & 0xFFFF, n.to_bytes(4, "little") * (size // 4)) for n in range(count)]


# -- a full lane -----------------------------------------------------------------------------------


def test_a_full_lane_holds_up_its_own_sessions_only(gateway: MakeGateway):
    world = gateway(shard_count=2, lane_bytes=SMALL_LANE_BYTES)
    stuck, busy = world.start_worker(0), world.start_worker(1)
    world.echoing = [busy]
    peers = [world.connect() for _ in range(4)]  # shards 0, 1, 0, 1
    by_shard = [[peers[0], peers[2]], [peers[1], peers[3]]]
    for peer in by_shard[0]:
        peer.send(b"".join(numbered(1_000)))
    world.run_until(lambda: len(world.shards[0].flow.held) == 2, "both to be held")
    world.settle()
    held = [session for session in world.table.sessions.values() if session.shard.index == 0]
    appended = world.lanes[0].log.position

    for peer in by_shard[1]:
        peer.send(b"".join(numbered(1_000)))
    whole = b"".join(numbered(1_000))
    world.run_until(lambda: all(peer.received == whole for peer in by_shard[1]), "the others")
    assert world.count("lane_full") >= 2
    assert world.lanes[0].log.position == appended
    for session in held:
        packets, _ = session.held_packets or (b"", 0)
        assert 0 < len(packets) <= 2 * 65_536  # a recv, and one that was in flight

    world.echoing.append(stuck)
    world.run_until(lambda: all(peer.received == whole for peer in peers), "everything")
    for session in held:
        assert received(stuck, session.id) == numbered(1_000)
        assert session.held_packets is None
        assert session.uncommitted_bytes == 0
    assert len(world.shards[0].flow.held) == 0


def test_what_is_held_goes_in_bit_by_bit_in_order_of_arrival(gateway: MakeGateway):
    world = gateway(lane_bytes=SMALL_LANE_BYTES)
    worker = world.start_worker()
    first = world.connect()
    ids = [world.newest().id]
    first.send(b"".join(numbered(ONE_RECV)))
    world.run_until(lambda: world.lanes[0].is_full, "a full lane")
    others = []
    for _ in range(3):
        others.append(world.connect())
        ids.append(world.newest().id)
        others[-1].send(b"".join(numbered(ONE_RECV)))
        world.run_until(lambda: len(world.shards[0].flow.held) == len(others), "it to be held")
    for left in (2, 1, 0):
        worker.read()
        assert worker.commit()
        world.wait_for(worker, PACKETS, 4 - left)
        # Each recv is as large as the lane, so each commit lets one more in.
        assert len(world.shards[0].flow.held) == left
    orders = [record.session for record in worker.records if record.kind == PACKETS]
    assert orders == ids
    for session_id in ids:
        assert received(worker, session_id) == numbered(ONE_RECV)


def test_who_is_first_of_those_that_are_held_is_known_at_once_however_many_there_were(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    class Held:
        held_packets: tuple[bytes, int] | None = b"", 0

    def take_s(count: int) -> float:
        shard.flow.held.update({cast("GatewaySession", Held()): None for _ in range(count)})
        began_at = time.thread_time()
        shard._take_held()
        assert len(shard.flow.held) == 0
        return (time.thread_time() - began_at) / count

    monkeypatch.setattr(Shard, "append_packets", lambda *_: None)
    shard = gateway().shards[0]
    of_few_s = take_s(1_000)
    assert take_s(40_000) < 5 * of_few_s
    shard.flow.to_reconsider.clear()


def test_a_session_that_ends_while_it_is_held_leaves_its_packets(gateway: MakeGateway):
    world = gateway(lane_bytes=SMALL_LANE_BYTES)
    worker = world.start_worker()
    filler = world.connect()
    filler.send(b"".join(numbered(ONE_RECV)))
    world.run_until(lambda: world.lanes[0].is_full, "a full lane")
    peer = world.connect()
    session_id = world.newest().id
    peer.send(b"".join(numbered(10)))
    world.run_until(lambda: len(world.shards[0].flow.held) == 1, "it to be held")
    world.newest().abort(Cause.KICKED)
    world.run_until(lambda: session_id not in world.table.sessions, "the end of the session")
    assert len(world.shards[0].flow.held) == 0
    world.wait_for(worker, CLOSED)
    mine = [record.kind for record in worker.records if record.session == session_id]
    assert mine == [OPENED, PACKETS, CLOSED]
    assert received(worker, session_id) == numbered(10)


@pytest.mark.parametrize("idle_timeout_s", [0, 60])
def test_a_session_that_was_held_with_more_than_it_may_cause_goes_on_later(
    gateway: MakeGateway, idle_timeout_s: float
):
    """It leaves the queue as a slow reader: what resumes it is the commit of its packets."""
    world = gateway(
        lane_bytes=SMALL_LANE_BYTES,
        send_queue_bytes_max=8_000,
        limits=LimitsConfig(idle_timeout_s=idle_timeout_s),
    )
    worker = world.start_worker()
    filler = world.connect()
    filler.send(b"".join(numbered(ONE_RECV)))
    world.run_until(lambda: world.lanes[0].is_full, "a full lane")
    peer = world.connect()
    session = world.newest()
    peer.send(b"".join(numbered(ONE_RECV)))  # 4,056 bytes: more than half of the queue
    world.run_until(lambda: len(world.shards[0].flow.held) == 1, "it to be held")
    assert not session.is_slow
    worker.read()
    assert worker.commit()
    world.run_until(lambda: len(world.shards[0].flow.held) == 0, "room")
    world.settle()
    assert session.is_slow
    worker.read()
    assert worker.commit()
    world.settle()
    assert not session.is_slow
    peer.send(make_packet(1, b"and on"))
    world.run_until(lambda: worker.read(), "the next packet")
    assert received(worker, session.id) == [*numbered(ONE_RECV), make_packet(1, b"and on")]


def test_a_lane_without_a_worker_fills_and_is_served_by_the_first_that_comes(gateway: MakeGateway):
    world = gateway(lane_bytes=SMALL_LANE_BYTES)
    peer = world.connect()
    session_id = world.newest().id
    peer.send(b"".join(numbered(2_000)))  # more than one recv brings
    world.run_until(lambda: len(world.shards[0].flow.held) == 1, "it to be held")
    world.settle()
    # Nothing but the opening of its end tells that there is something to be flushed.
    worker = world.start_worker()
    assert worker.grant.sessions == []
    world.echoing = [worker]
    world.run_until(lambda: peer.received == b"".join(numbered(2_000)), "the echo")
    assert received(worker, session_id) == numbered(2_000)


# -- slow readers ----------------------------------------------------------------------------------


def test_a_client_that_reads_slowly_is_not_read_and_loses_nothing(memory_gateway: MakeGateway):
    world = memory_gateway(send_queue_bytes_max=64 * 1_024)
    world.echoing = [world.start_worker()]
    slow, quick = world.connect(reading=False), world.connect()
    session = world.table.sessions[min(world.table.sessions)]
    packets = numbered(2_000)
    slow.send(b"".join(packets))
    world.run_until(lambda: session.is_slow, "the pause")
    world.settle()
    unread = slow.unsent_bytes
    assert unread > 0
    # Half of the queue, one recv that was in flight, and what the network holds.
    assert session.backlog_bytes <= 32 * 1_024 + 2 * 16_384
    quick.send(make_packet(1, b"quick"))
    world.run_until(lambda: quick.received == make_packet(1, b"quick"), "the quick one")
    world.settle()
    assert slow.unsent_bytes == unread
    assert session.is_slow

    slow.read()
    world.run_until(lambda: slow.received == b"".join(packets), "everything")
    assert slow.ended is None
    assert not session.is_slow
    assert world.count("slow_reader_paused") >= 1
    assert world.count("closed_send_overflow") == 0


def test_uncommitted_packets_count_against_their_sender(gateway: MakeGateway):
    world = gateway(send_queue_bytes_max=8_192)
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    packets = numbered(5_000)
    peer.send(b"".join(packets))
    world.run_until(lambda: session.is_slow, "the pause")
    world.settle()
    assert session.uncommitted_bytes > 4_096
    assert session.uncommitted_bytes < sum(map(len, packets))
    appended = world.lanes[0].log.position
    world.settle()
    assert world.lanes[0].log.position == appended
    world.echoing = [worker]
    world.run_until(lambda: peer.received == b"".join(packets), "everything")
    assert not session.is_slow
    assert session.backlog_bytes == 0


def test_pushes_beyond_the_queue_abort_that_client_alone(memory_gateway: MakeGateway):
    world = memory_gateway(send_queue_bytes_max=64 * 1_024)
    worker = world.start_worker()
    deaf, good = world.connect(reading=False), world.connect()
    packet = make_packet(9, b"x" * 1_000)
    for count in range(1, 121):
        assert worker.publish(make_record(BROADCAST, 0, packet))
        world.wait_received(good, count * len(packet))
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == Cause.SEND_OVERFLOW.encode()
    assert world.count("closed_send_overflow") == 1
    assert list(world.table.sessions) == [max(worker.records, key=lambda r: r.session).session]
    deaf.read()
    world.run_until(lambda: deaf.ended, "the reset")
    assert deaf.ended == Cause.RESET


def test_a_client_that_takes_nothing_for_too_long_is_aborted(memory_gateway: MakeGateway):
    world = memory_gateway(send_stall_timeout_s=0.2)
    worker = world.start_worker()
    deaf, good = world.connect(reading=False), world.connect()
    assert worker.publish(make_record(BROADCAST, 0, make_packet(9, b"x" * 60_000)))
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == Cause.SEND_STALLED.encode()
    assert deaf.ended is None  # it has not looked yet
    assert len(good.received) == 60_004
    assert good.ended is None


# -- commits and successors ------------------------------------------------------------------------


def test_a_commit_inside_a_record_frees_nothing_yet(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    packets = numbered(3)
    peer.send(b"".join(packets))
    world.wait_for(worker, PACKETS)
    assert worker.publish(commit=Commit(2, 2))
    world.run_until(lambda: world.lanes[0].log.committed == Commit(2, 2), "the commit")
    assert session.uncommitted_bytes == sum(map(len, packets))
    assert worker.commit()
    world.run_until(lambda: world.shards[0].is_idle, "the commit")
    assert session.uncommitted_bytes == 0


def test_a_successor_gets_the_sessions_as_of_the_commit_and_then_the_rest(gateway: MakeGateway):
    world = gateway()
    first = world.start_worker()
    peers = [world.connect() for _ in range(4)]
    ids = sorted(world.table.sessions)
    addresses = {i: str(session.address) for i, session in world.table.sessions.items()}
    world.wait_for(first, OPENED, 4)
    # Committed: the opening of all but the last, and the end of the first by the application.
    goodbye = make_record(DISCONNECT, ids[0], b"kicked")
    assert first.publish(goodbye, commit=Commit(4, 0))
    world.run_until(lambda: not world.table.sessions[ids[0]].is_connected, "the disconnect")
    peers[1].reset()  # nobody has heard of this end yet
    world.run_until(lambda: ids[1] not in world.table.sessions, "the end of a session")
    peers[2].send(make_packet(1, b"for whom it concerns"))
    world.run_until(lambda: world.lanes[0].log.position == 6, "the packet")
    world.kill()

    second = world.start_worker()
    assert (second.grant.position, second.grant.index) == (4, 0)
    assert second.grant.sessions == [
        ReplayedSession(id=ids[0], address=addresses[ids[0]], closing=True),
        ReplayedSession(id=ids[1], address=addresses[ids[1]], closing=False),
        ReplayedSession(id=ids[2], address=addresses[ids[2]], closing=False),
    ]
    world.wait_for(second, PACKETS)
    assert [(record.position, record.kind, record.session) for record in second.records] == [
        (4, OPENED, ids[3]),
        (5, CLOSED, ids[1]),
        (6, PACKETS, ids[2]),
    ]
    assert second.commit(make_record(SEND, ids[2], make_packet(1, b"for me")))
    world.run_until(lambda: peers[2].received, "the reply")
    world.kill()
    third = world.start_worker()
    assert [session.id for session in third.grant.sessions] == [ids[0], ids[2], ids[3]]


def test_a_successor_goes_on_inside_a_record(gateway: MakeGateway):
    world = gateway()
    first = world.start_worker()
    peer = world.connect()
    peer.send(b"".join(numbered(3)))
    world.wait_for(first, PACKETS)
    assert first.publish(commit=Commit(2, 1))
    world.run_until(lambda: world.lanes[0].log.committed == Commit(2, 1), "the commit")
    world.kill()
    second = world.start_worker()
    assert (second.grant.position, second.grant.index) == (2, 1)
    world.wait_for(second, PACKETS)
    assert content(second.records[0]) == (1, numbered(3))


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_published_before_a_death_counts(gateway: MakeGateway, dies: bool):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session_id = world.newest().id
    peer.send(make_packet(1, b"x"))
    world.wait_for(worker, PACKETS)
    worker.commit(make_record(SEND, session_id, make_packet(1, b"the last word")))
    if dies:
        world.kill()
        assert world.start_worker().grant.position == 3
    world.run_until(lambda: peer.received, "the reply")
    world.settle()
    assert packets_in(peer.received) == [make_packet(1, b"the last word")]


# -- draining --------------------------------------------------------------------------------------


def test_a_shard_that_drains_reads_nobody_again(gateway: MakeGateway):
    world = gateway(send_queue_bytes_max=8_192)
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    peer.send(b"".join(numbered(2_000)))
    world.run_until(lambda: session.is_slow, "the pause")
    world.shards[0].flow.reads_no_more = True
    world.echoing = [worker]
    world.run_until(lambda: world.shards[0].is_idle, "all that was received")
    world.settle()
    answered = len(peer.received)
    assert 0 < answered < 2_000 * len(numbered(1)[0])
    assert len(received(worker, session.id)) == answered // len(numbered(1)[0])


def test_the_bytes_of_a_record_are_packets_and_overhead(gateway: MakeGateway):
    """What a session is charged for is what it has sent, whatever a lane adds to it."""
    assert PACKETS_OVERHEAD == RECORD_BYTES + 8
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    for packets in ([b""], [b"a", b"bc"], [b"x" * 1_000]):
        data = b"".join(make_packet(1, payload) for payload in packets)
        before = session.uncommitted_bytes
        peer.send(data)
        world.wait_for(worker, PACKETS, worker.kinds().count(PACKETS) + 1)
        assert session.uncommitted_bytes == before + len(data)
    assert worker.commit()
    world.run_until(lambda: world.shards[0].is_idle)
    assert session.uncommitted_bytes == 0
