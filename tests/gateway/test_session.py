"""What a client does becomes records of its shard, and what its worker commits reaches it."""

import struct

import pytest

from cluster.iocp import Cause
from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import CLOSED, DISCONNECT, OPENED, PACKETS, SEND, make_record
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import content, packets_in
from tests.iocp.peers import Peer


def test_a_session_begins_with_its_address_and_ends_with_the_cause(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    peer.reset()
    world.wait_for(worker, CLOSED)
    opened, closed = worker.records
    assert (opened.kind, opened.session) == (OPENED, session.id)
    assert opened.payload.startswith(b"127.0.0.1:")
    assert (closed.kind, closed.session, closed.payload) == (CLOSED, session.id, b"reset")
    assert world.table.sessions == {}
    assert world.count("closed_reset") == 1


def test_all_complete_packets_of_a_recv_are_one_record(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    packets = [make_packet(n, bytes([n]) * n) for n in range(5)]
    peer.send(b"".join(packets[:4]) + packets[4][:5])
    world.wait_for(worker, PACKETS)
    assert content(worker.records[1]) == (1, packets[:4])
    peer.send(packets[4][5:])
    world.wait_for(worker, PACKETS, 2)
    assert content(worker.records[2]) == (5, packets[4:])
    assert sum(shard.log.packets_appended for shard in world.shards) == 5
    received = sum(shard.log.packet_bytes_appended for shard in world.shards)
    assert received == sum(map(len, packets))


def test_a_packet_may_come_one_byte_at_a_time(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    packet = make_packet(7, b"slowly")
    for number in packet[:-1]:
        peer.send(bytes([number]))
        world.run_until(lambda: peer.unsent_bytes == 0)
    world.settle()
    worker.read()
    assert worker.kinds() == [OPENED]
    peer.send(packet[-1:])
    world.wait_for(worker, PACKETS)
    assert content(worker.records[1]) == (1, [packet])


def test_replies_reach_their_own_session(gateway: MakeGateway):
    world = gateway(shard_count=2)
    world.echoing = [world.start_worker(shard) for shard in range(2)]
    peers = [world.connect() for _ in range(6)]
    for index, peer in enumerate(peers):
        peer.send(make_packet(index, b"mine") * 3)
    world.run_until(lambda: all(len(peer.received) == 24 for peer in peers), "the replies")
    for index, peer in enumerate(peers):
        assert packets_in(peer.received) == [make_packet(index, b"mine")] * 3
    assert world.count("bytes_sent") == 6 * 24


def test_replies_reach_a_client_that_has_ended_its_side(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session_id = world.newest().id
    peer.send(make_packet(1, b"a") + make_packet(2, b"b"))
    world.run_until(lambda: peer.unsent_bytes == 0)
    peer.shut_down()
    world.wait_for(worker, CLOSED)
    assert worker.kinds() == [OPENED, PACKETS, CLOSED]
    assert worker.records[-1].payload == Cause.EOF.encode()

    # Output without the commit of `closed`: the socket stays open for more.
    assert worker.publish(make_record(SEND, session_id, make_packet(1, b"first")))
    world.run_until(lambda: peer.received, "the first reply")
    world.settle()
    assert peer.ended is None
    assert world.table.sessions[session_id].is_connected

    assert worker.commit(make_record(SEND, session_id, make_packet(2, b"second")))
    world.run_until(lambda: peer.ended, "the end of the stream")
    assert peer.ended is Cause.EOF
    assert packets_in(peer.received) == [make_packet(1, b"first"), make_packet(2, b"second")]
    peer.close()
    world.run_until(lambda: not world.table.sessions, "the end of the session")
    worker.read()
    assert worker.kinds() == [OPENED, PACKETS, CLOSED]
    assert world.count("closed_eof") == 1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 101, 65_535])
def test_a_size_that_cannot_be_ends_the_session_after_its_good_packets(
    gateway: MakeGateway, size: int
):
    world = gateway(max_packet_bytes=100)
    worker = world.start_worker()
    bystander = world.connect()
    peer = world.connect()
    session_id = world.newest().id
    good = make_packet(1, b"x" * 96)
    peer.send(good * 2 + struct.pack("<H", size) + b"whatever follows")
    world.run_until(lambda: peer.ended, "the end")
    assert peer.ended is Cause.RESET
    world.wait_for(worker, CLOSED)
    mine = [record for record in worker.records if record.session == session_id]
    assert [record.kind for record in mine] == [OPENED, PACKETS, CLOSED]
    assert content(mine[1]) == (1, [good, good])
    assert mine[2].payload == Cause.BAD_SIZE.encode()
    assert world.count("closed_bad_size") == 1
    assert bystander.ended is None
    assert len(world.table.sessions) == 1


def test_a_worker_ends_a_session_after_what_it_sent_to_it(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    peer = world.connect()
    session = world.newest()
    packet = make_packet(1, b"x" * 60_000)
    records = [make_record(SEND, session.id, packet)] * 5
    assert worker.publish(*records, make_record(DISCONNECT, session.id, b"kicked"))
    world.run_until(lambda: peer.ended, "the end")
    assert peer.ended is Cause.EOF
    assert packets_in(peer.received) == [packet] * 5
    peer.close()
    world.run_until(lambda: not world.table.sessions, "the end of the session")
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == b"kicked"
    assert world.count("closed_kicked") == 1


def test_a_cause_of_the_application_has_one_counter_for_all(gateway: MakeGateway):
    world = gateway()
    worker = world.start_worker()
    for text in ("the game is over", "and another"):
        peer = world.connect()
        assert worker.publish(make_record(DISCONNECT, world.newest().id, text.encode()))
        world.wait_ended(peer)
        peer.close()
        world.run_until(lambda: not world.table.sessions, "the end of the session")
    assert world.count("closed_application") == 2
    assert world.count("sessions_closed") == 2


def test_session_objects_serve_again_and_ids_do_not(gateway: MakeGateway):
    world = gateway(accepts_outstanding_max=2)
    world.echoing = [world.start_worker()]
    ids = []
    for _ in range(12):
        peer = world.connect()
        session = world.newest()
        ids.append(session.id)
        assert session.next_sequence == 1
        assert session.uncommitted_bytes == 0
        assert not any((session.is_slow, session.closed_appended))
        del session
        peer.send(make_packet(1, b"x"))
        world.wait_received(peer, 1)
        peer.reset()
        world.run_until(lambda: not world.table.sessions, "the end of the session")
        world.run_until(lambda: world.lanes[0].log.is_committed, "the commit")
    assert len(set(ids)) == 12
    assert ids == sorted(ids)
    # Those that wait to be accepted were made before the first one ended.
    assert world.sessions_made <= 6
    assert world.service.current_session_count == 0


def test_an_id_that_cannot_be_given_ends_that_connection_only(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    world = gateway()
    world.start_worker()
    good = world.connect()
    ids = world.table._ids
    monkeypatch.setattr(ids, "_counter", 0xFFFF_FFFF)
    refused = Peer(world.core, world.service.listener.local_address)
    world.run_until(lambda: refused.ended, "the refusal")
    world.run_until(lambda: world.service.current_session_count == 1)
    assert "used up its session ids" in caplog.text
    assert "last callback" not in caplog.text
    assert good.ended is None
    assert len(world.table.sessions) == 1
