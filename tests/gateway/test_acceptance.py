"""Until a session is accepted only public packets get through; what waits is in order and whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.limited_session import public_front
from cluster.iocp import Cause
from cluster.iocp.packet_framing import iter_packets, make_packet
from cluster.shared.config import LimitsConfig
from cluster.shared.records import ACCEPT, BIND, CLOSED, OPENED, PACKETS, UNBIND, make_record
from cluster.shared.user_records import SecondLogin, pack_bind, pack_unbind
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, ScriptedWorker, content

LOGIN, GAME = 1, 2
login = make_packet(LOGIN, b"who I am")


def game(number: int) -> bytes:
    return make_packet(GAME, b"move %d" % number)


AUTH = LimitsConfig(auth_timeout_s=5)


def handled(worker: ScriptedWorker) -> list[bytes]:
    """Return every packet that has come to the worker, in order."""
    worker.read()
    records = [content(record) for record in worker.records if record.kind == PACKETS]
    expected = 1
    for first_sequence, packets in records:
        assert first_sequence == expected
        expected += len(packets)
    return [packet for _, packets in records for packet in packets]


def accept(session_id: int) -> bytes:
    return make_record(ACCEPT, session_id, b"")


def bind(session_id: int, policy: SecondLogin, user: bytes = b"ann") -> bytes:
    return make_record(BIND, session_id, pack_bind(policy, 1, user))


def test_a_client_that_pipelines_login_and_game_packets_loses_nothing(gateway: MakeGateway):
    world = gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    session_id = world.newest().id
    moves = [game(number) for number in range(20_000)]
    peer.send(login + b"".join(moves))
    world.wait_for(worker, PACKETS)
    world.settle()
    assert handled(worker) == [login]
    assert len(world.shards[0].flow.waiting) == 1
    # TCP pushes back: what is here is at most what a receive buffer holds.
    assert world.newest().unconsumed_bytes <= 131_072
    assert worker.commit(accept(session_id))
    world.echoing = [worker]
    world.run_until(lambda: len(handled(worker)) == 20_001, "all packets")
    assert handled(worker) == [login, *moves]
    assert len(world.shards[0].flow.waiting) == 0
    assert peer.ended is None


def test_packets_behind_a_bind_get_through_and_behind_a_rejected_one_do_not(gateway: MakeGateway):
    world = gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    first = world.connect()
    first_id = world.newest().id
    second = world.connect()
    second_id = world.newest().id
    for peer in (first, second):
        peer.send(login + game(1))
    world.wait_for(worker, PACKETS, 2)
    assert worker.commit(bind(first_id, SecondLogin.REJECT), bind(second_id, SecondLogin.REJECT))
    world.wait_for(worker, PACKETS, 3)
    world.settle()
    worker.read()
    by_session = {
        key: [
            packet
            for record in worker.records
            if record.kind == PACKETS and record.session == key
            for packet in content(record)[1]
        ]
        for key in (first_id, second_id)
    }
    assert by_session == {first_id: [login, game(1)], second_id: [login]}
    # Who is bound once may be unbound: the session stays accepted.
    assert worker.commit(make_record(UNBIND, first_id, pack_unbind(2)))
    first.send(game(2))
    world.wait_for(worker, PACKETS, 4)


def test_public_packets_get_through_as_often_as_they_come(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN, 7])
    peer = world.connect()
    peer.send(login + make_packet(7, b"") + login[:5])
    world.run_until(lambda: len(handled(worker)) == 2, "two packets")
    peer.send(login[5:])
    world.run_until(lambda: len(handled(worker)) == 3, "the third")
    assert len(world.shards[0].flow.waiting) == 0


def test_a_public_packet_behind_one_that_waits_waits_as_well(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    peer.send(game(1) + login)
    world.run_until(lambda: len(world.shards[0].flow.waiting) == 1, "the wait")
    world.settle()
    assert handled(worker) == []
    # The application may still accept it, by its address for one.
    assert worker.commit(accept(world.newest().id))
    world.run_until(lambda: handled(worker) == [game(1), login], "both in order")


def test_who_is_not_accepted_in_time_is_ended_whatever_it_sends(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    silent, talker, waiter, good = (world.connect() for _ in range(4))
    assert worker.commit(accept(world.newest().id))
    waiter.send(game(1) * 3)
    for _ in range(10):
        talker.send(login)
        world.pass_time(0.4)
        worker.read()
        assert worker.commit()
        world.pass_time(0.08)
    assert {peer.ended for peer in (silent, talker, waiter, good)} == {None}
    world.pass_time(0.5)
    assert [peer.ended for peer in (silent, talker, waiter, good)] == [Cause.EOF] * 3 + [None]
    for peer in (silent, talker, waiter):
        peer.close()
    world.wait_for(worker, CLOSED, 3)
    closed = [record.payload for record in worker.records if record.kind == CLOSED]
    assert closed == [b"auth_timeout"] * 3
    assert game(1) not in handled(worker)
    world.pass_time(10)
    assert good.ended is None


def test_a_login_that_the_worker_has_not_handled_has_twice_the_time(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    session_id = world.newest().id
    peer.send(login + game(1))
    world.pass_time(9)
    assert peer.ended is None
    world.wait_for(worker, PACKETS)
    assert worker.commit(accept(session_id))
    world.wait_for(worker, PACKETS, 2)
    world.pass_time(5)
    assert peer.ended is None
    late = world.connect()
    late.send(login)
    world.pass_time(10.5)
    assert late.ended is Cause.EOF


def test_a_login_for_which_the_lane_has_no_room_has_twice_the_time(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH, lane_bytes=1_024)
    worker = world.start_worker(public_ids=[LOGIN])
    peer, other = world.connect(), world.connect()
    other.send(make_packet(LOGIN, bytes(1_024)))
    world.wait_for(worker, PACKETS)
    peer.send(login)
    world.run_until(lambda: world.count("lane_full") == 1, "that the login is held")
    world.pass_time(9)
    assert peer.ended is None
    assert worker.commit()
    world.wait_for(worker, PACKETS, 2)
    world.pass_time(5)
    assert peer.ended is Cause.EOF


def test_an_end_of_the_stream_behind_what_waits_waits_too(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    peer.send(login + game(1))
    world.run_until(lambda: peer.unsent_bytes == 0)
    peer.shut_down()
    world.run_until(lambda: len(world.shards[0].flow.waiting) == 1, "the wait")
    world.settle()
    worker.read()
    assert worker.kinds() == [OPENED, PACKETS]
    assert worker.commit(accept(world.newest().id))
    world.wait_for(worker, CLOSED)
    assert worker.kinds() == [OPENED, PACKETS, PACKETS, CLOSED]
    assert handled(worker) == [login, game(1)]


def test_before_any_worker_has_said_what_is_public_everything_waits(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    peer = world.connect()
    peer.send(login + game(1))
    world.run_until(lambda: len(world.shards[0].flow.waiting) == 1, "the wait")
    worker = world.start_worker(public_ids=[LOGIN])
    world.run_until(lambda: handled(worker) == [login], "the login")
    assert len(world.shards[0].flow.waiting) == 1


def test_a_successor_that_declares_more_is_heard(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    peer.send(login + game(1))
    world.wait_for(worker, PACKETS)
    assert worker.commit()
    world.settle()
    world.kill()
    successor = world.start_worker(public_ids=[LOGIN, GAME])
    world.wait_for(successor, PACKETS)
    assert content(successor.records[-1]) == (2, [game(1)])


def test_an_accepted_session_stays_accepted_for_a_successor(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    peer.send(login)
    world.wait_for(worker, PACKETS)
    assert worker.commit(accept(world.newest().id))
    world.settle()
    world.kill()
    successor = world.start_worker(public_ids=[LOGIN])
    peer.send(game(1))
    world.wait_for(successor, PACKETS)
    world.pass_time(10)
    assert peer.ended is None


def test_who_was_not_accepted_when_the_worker_died_is_asked_about_again(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH)
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    session_id = world.newest().id
    peer.send(login + game(1))
    world.wait_for(worker, PACKETS)
    world.kill()
    world.settle()
    assert not world.newest().is_accepted
    successor = world.start_worker(public_ids=[LOGIN])
    world.wait_for(successor, PACKETS)
    assert content(successor.records[-1]) == (1, [login])
    assert successor.commit(accept(session_id))
    world.wait_for(successor, PACKETS, 2)
    assert content(successor.records[-1]) == (2, [game(1)])


def test_a_wait_that_the_client_ends_leaves_nothing(timed_gateway: MakeGateway):
    world = timed_gateway(limits=AUTH, accepts_outstanding_max=1)
    worker = world.start_worker(public_ids=[LOGIN])
    for _ in range(3):
        peer = world.connect()
        session_id = world.newest().id
        peer.send(game(1))
        world.run_until(lambda: len(world.shards[0].flow.waiting) == 1, "the wait")
        assert not world.newest().is_accepted
        peer.reset()
        world.newest().abort("reset")  # nobody reads it, so nobody hears
        world.run_until(lambda: not world.table.sessions, "the end")
        assert len(world.shards[0].flow.waiting) == 0
        assert worker.commit(accept(session_id))  # too late, and harmless
        world.settle()
    assert world.violations == []


def test_without_a_time_to_be_accepted_in_every_packet_gets_through(gateway: MakeGateway):
    world = gateway(limits=LimitsConfig(idle_timeout_s=60))
    worker = world.start_worker(public_ids=[LOGIN])
    peer = world.connect()
    peer.send(game(1))
    world.wait_for(worker, PACKETS)
    assert worker.commit(accept(world.newest().id))
    world.settle()
    assert peer.ended is None
    assert world.violations == []


def test_an_acceptance_with_a_payload_ends_that_worker(timed_gateway: MakeGateway):
    world: GatewayWorld = timed_gateway(limits=AUTH)
    worker = world.start_worker()
    world.connect()
    session_id = world.newest().id
    assert worker.publish(accept(session_id), make_record(ACCEPT, session_id, b"x"))
    world.run_until(lambda: world.violations, "the violation")
    assert "kind 26" in world.violations[0][1]
    assert not world.newest().is_accepted  # nothing of that batch was carried out


IDS = st.sampled_from([LOGIN, GAME, 7, 0xFFFF])


@given(st.lists(st.tuples(IDS, st.binary(max_size=20))), st.integers(0, 30), st.frozensets(IDS))
def test_the_front_is_all_that_is_public(
    packets: list[tuple[int, bytes]], cut: int, public_ids: frozenset[int]
):
    data = b"".join(make_packet(packet_id, payload) for packet_id, payload in packets)
    data = data[: len(data) - cut] if cut < len(data) else data
    front = public_front(data, public_ids, 100)
    complete, offset = [], 0
    while len(data) - offset >= 4 and (size := data[offset] | data[offset + 1] << 8):
        if size > len(data) - offset:
            break
        complete.append(data[offset : offset + size])
        offset += size
    waiting = [p for p in complete if p[2] | p[3] << 8 not in public_ids]
    if not waiting:
        assert front == len(data)
        return
    passed = list(iter_packets(data[:front]))
    assert all(p[2] | p[3] << 8 in public_ids for p in passed)
    assert complete[len(passed)] == waiting[0]


@pytest.mark.parametrize("bad", [b"\x03\x00\x02\x00", b"\x65\x00\x02\x00" + bytes(97)])
def test_what_cannot_be_is_left_to_who_ends_the_session_for_it(bad: bytes):
    assert public_front(login + bad, frozenset({LOGIN}), 100) == len(login + bad)
