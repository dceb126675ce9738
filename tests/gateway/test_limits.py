"""Clients that exceed `[limits]` end with its cause, those within them never; the others go on."""

import struct
from typing import Any

import pytest

from cluster.iocp import Cause as IocpCause
from cluster.iocp.packet_framing import make_packet
from cluster.shared.causes import Cause
from cluster.shared.config import LimitsConfig
from cluster.shared.records import CLOSED, OPENED, PACKETS, SEND, make_record
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, content, packets_in
from tests.iocp.peers import Peer

TICK_S = 1 / 32
"""Deadlines are noticed at most so late for a shortest timeout of 1 s."""

PACKET = make_packet(1, b"x" * 6)


def limits(**values: Any) -> LimitsConfig:
    return LimitsConfig(**values)


def say(world: GatewayWorld, peer: Peer, data: bytes = PACKET) -> None:
    """Send `data` and have the gateway receive it."""
    peer.send(data)
    world.run_until(lambda: peer.unsent_bytes == 0)
    world.settle()


def ended_causes(world: GatewayWorld) -> dict[str, int]:
    return {
        name.removeprefix("closed_"): count
        for name, count in world.counters.snapshot().items()
        if name.startswith("closed_")
    }


def drop(world: GatewayWorld, peer: Peer) -> None:
    """Close what the gateway has ended, and wait for the end of the session."""
    count = world.count("sessions_closed")
    world.wait_ended(peer)
    peer.close()
    world.run_until(lambda: world.count("sessions_closed") > count, "the end of the session")


# -- idle ------------------------------------------------------------------------------------------


def test_a_client_that_sends_nothing_is_ended_in_time(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    worker = world.start_worker()
    silent, talker = world.connect(), world.connect()
    for _ in range(9):
        world.pass_time(0.1)
        say(world, talker)
    assert silent.ended is None
    world.pass_time(0.1 + 2 * TICK_S)
    assert silent.ended is IocpCause.EOF
    assert talker.ended is None
    drop(world, silent)
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == b"idle_timeout"
    assert ended_causes(world) == {"idle_timeout": 1}


def test_who_comes_later_does_not_prolong_the_time_of_others(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    world.start_worker()
    first = world.connect()
    world.pass_time(0.5)
    second = world.connect()
    world.pass_time(0.5 + 2 * TICK_S)
    assert first.ended is IocpCause.EOF
    assert second.ended is None
    world.pass_time(0.5)
    assert second.ended is IocpCause.EOF


def test_a_client_that_speaks_now_and_then_is_never_idle(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    world.echoing = [world.start_worker()]
    peer = world.connect()
    for _ in range(20):
        world.pass_time(0.97)
        say(world, peer)
    assert peer.ended is None
    # A byte is a sign of life as well; that it makes no packet is another limit's affair.
    for byte in PACKET:
        world.pass_time(0.9)
        say(world, peer, bytes([byte]))
    assert peer.ended is None


def test_what_is_sent_to_a_client_is_no_sign_of_its_life(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    worker = world.start_worker()
    peer = world.connect()
    session_id = world.newest().id
    for _ in range(8):
        world.pass_time(0.1)
        assert worker.publish(make_record(SEND, session_id, PACKET))
        world.settle()
    world.pass_time(0.2)
    assert peer.ended is IocpCause.EOF
    # What was sent before is received all the same.
    assert packets_in(peer.received) == [PACKET] * 8


def test_a_client_that_is_not_read_is_not_idle(timed_gateway: MakeGateway):
    """A worker that does nothing fills its lane; that is not its clients' doing."""
    world = timed_gateway(limits=limits(idle_timeout_s=1), lane_bytes=4_096)
    worker = world.start_worker()
    peer = world.connect()
    packet = make_packet(1, b"y" * 1_000)
    say(world, peer, packet * 5)
    say(world, peer, packet)
    assert world.newest().is_recv_paused
    world.pass_time(5)
    assert peer.ended is None
    assert worker.echo()
    world.settle()
    worker.echo()
    world.settle()
    assert not world.newest().is_recv_paused
    # Its time begins where it is read again.
    world.pass_time(0.9)
    assert peer.ended is None
    world.pass_time(0.2)
    assert peer.ended is IocpCause.EOF


def test_a_client_whose_worker_has_not_answered_is_not_idle(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    worker = world.start_worker()
    peer = world.connect()
    worker.read()
    assert worker.commit()
    say(world, peer)
    world.pass_time(5.5)
    assert peer.ended is None
    assert worker.echo()
    world.pass_time(0.95)  # its time begins with the answer
    assert peer.ended is None
    assert len(peer.received) == len(PACKET)
    world.pass_time(0.15)
    assert peer.ended is IocpCause.EOF


def test_a_client_at_eof_whose_replies_take_long_is_not_idle(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1, packet_timeout_s=0.5))
    worker = world.start_worker()
    peer = world.connect()
    session_id = world.newest().id
    say(world, peer, PACKET + b"\x20")
    peer.shut_down()
    world.wait_for(worker, CLOSED)
    world.pass_time(5)
    assert peer.ended is None
    assert worker.commit(make_record(SEND, session_id, PACKET))
    world.wait_ended(peer)
    assert packets_in(peer.received) == [PACKET]
    world.run_until(lambda: not world.table.sessions, "the end of the session")
    assert ended_causes(world) == {"eof": 1}


def test_a_session_that_is_ending_keeps_its_cause(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1), close_timeout_s=3.0)
    world.start_worker()
    world.connect()
    world.newest().disconnect(Cause.LOCAL)
    world.pass_time(4)
    assert ended_causes(world) == {"local": 1}


# -- parts of packets ------------------------------------------------------------------------------


def test_drips_do_not_prolong_the_time_of_a_packet(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packet_timeout_s=1))
    worker = world.start_worker()
    peer = world.connect()
    packet = make_packet(1, b"z" * 100)
    for byte in packet[:9]:
        say(world, peer, bytes([byte]))
        world.pass_time(0.1)
    assert peer.ended is None
    say(world, peer, packet[9:10])
    world.pass_time(0.1 + 2 * TICK_S)
    drop(world, peer)
    world.wait_for(worker, CLOSED)
    assert worker.kinds() == [OPENED, CLOSED]
    assert worker.records[-1].payload == b"packet_timeout"
    assert ended_causes(world) == {"packet_timeout": 1}


def test_of_many_whose_time_is_up_at_once_a_few_are_ended_in_each_turn(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packet_timeout_s=1))
    world.start_worker()
    peers = [world.connect() for _ in range(20)]
    for peer in peers:
        say(world, peer, b"\x20")
    sessions = list(world.table.sessions.values())
    clock = world.core.driver.network.clock  # type: ignore[attr-defined]  # a MemoryDriver
    clock.advance(2)
    ended = [0]
    while ended[-1] < len(peers):
        world.turn()
        ended.append(sum(not session.is_connected for session in sessions))
        assert ended[-1] - ended[-2] <= 4
    for peer in peers:
        drop(world, peer)
    assert ended_causes(world) == {"packet_timeout": 20}


@pytest.mark.parametrize("count", [200, 1_500])  # of which one batch is not all
def test_what_came_while_the_gateway_stood_still_is_read_before_anybody_is_ended(
    timed_gateway: MakeGateway, count: int
):
    world = timed_gateway(
        limits=limits(idle_timeout_s=1), max_sessions=2_000, accepts_outstanding_max=64
    )
    world.echoing = [world.start_worker()]
    peers = world.connect_all(count)
    for peer in reversed(peers):  # whose time is up first is read last
        peer.send(PACKET)
    clock = world.core.driver.network.clock  # type: ignore[attr-defined]  # a MemoryDriver
    clock.advance(5)
    world.run_until(lambda: all(peer.unsent_bytes == 0 for peer in peers))
    world.settle()
    assert [peer for peer in peers if peer.ended is not None] == []
    world.pass_time(1.0 + 2 * TICK_S)
    world.run_until(lambda: all(peer.ended for peer in peers), "the end of all")


def test_who_is_silent_is_ended_though_others_never_pause(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(idle_timeout_s=1))
    world.echoing = [world.start_worker()]
    silent, talker = world.connect(), world.connect()
    session = world.table.sessions[min(world.table.sessions)]
    clock = world.core.driver.network.clock  # type: ignore[attr-defined]  # a MemoryDriver
    clock.advance(3)  # the gateway has stood still, and has much to read from now on
    for _ in range(150):
        talker.send(PACKET)
        clock.advance(0.01)
        assert world.turn()
    assert not session.is_connected
    drop(world, silent)
    assert ended_causes(world) == {"idle_timeout": 1}


def test_each_packet_has_a_time_of_its_own(timed_gateway: MakeGateway):
    """One that never stops to leave parts, but completes each in time, is served for ever."""
    world = timed_gateway(limits=limits(packet_timeout_s=1))
    worker = world.start_worker()
    peer = world.connect()
    say(world, peer, PACKET[:5])
    for _ in range(20):
        world.pass_time(0.8)
        say(world, peer, PACKET[5:] + PACKET[:5])
    assert peer.ended is None
    worker.read()
    assert worker.kinds().count(PACKETS) == 20
    world.pass_time(1 + 2 * TICK_S)
    assert peer.ended is IocpCause.EOF


def test_a_client_without_a_part_has_no_time_at_all(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packet_timeout_s=1))
    worker = world.start_worker()
    peer = world.connect()
    assert world.limits.deadlines.session_count == 0
    say(world, peer, PACKET[:5])
    assert world.limits.deadlines.session_count == 1
    say(world, peer, PACKET[5:])
    world.pass_time(10)
    assert peer.ended is None
    assert world.limits.deadlines.session_count == 0
    worker.read()
    assert worker.kinds() == [OPENED, PACKETS]


def test_a_part_that_waits_while_its_client_is_not_read_has_time(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packet_timeout_s=1), lane_bytes=4_096)
    worker = world.start_worker()
    peer = world.connect()
    packet = make_packet(1, b"y" * 1_000)
    say(world, peer, packet * 5 + packet[:500])
    say(world, peer, packet[500:] + packet + packet[:500])
    assert world.newest().is_recv_paused
    peer.send(packet[500:])
    world.pass_time(5)
    assert peer.ended is None
    for _ in range(4):
        worker.echo()
        world.settle()
    world.pass_time(2)
    assert peer.ended is None
    received = [record for record in worker.records if record.kind == PACKETS]
    assert [packet for record in received for packet in content(record)[1]] == [packet] * 8


def test_zero_is_off(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packet_timeout_s=0))
    world.start_worker()
    peer = world.connect()
    say(world, peer, PACKET[:5])
    world.pass_time(40)
    assert peer.ended is None


@pytest.mark.parametrize(
    ("idle", "auth", "packet", "cause"),
    [
        (1, 5, 5, "idle_timeout"),
        (1, 5, 0, "idle_timeout"),
        (1, 0, 0, "idle_timeout"),
        (5, 1, 5, "auth_timeout"),
        (5, 1, 0, "auth_timeout"),
        (0, 1, 5, "auth_timeout"),
        (5, 5, 1, "packet_timeout"),
        (5, 0, 1, "packet_timeout"),
        (0, 5, 1, "packet_timeout"),
    ],
)
def test_of_several_times_that_run_the_first_counts(
    timed_gateway: MakeGateway, idle: float, auth: float, packet: float, cause: str
):
    world = timed_gateway(
        limits=limits(idle_timeout_s=idle, auth_timeout_s=auth, packet_timeout_s=packet)
    )
    world.start_worker(public_ids=(1,))
    peer = world.connect()
    say(world, peer, PACKET[:5])
    world.pass_time(0.9)
    assert peer.ended is None
    world.pass_time(0.1 + 2 * TICK_S)
    drop(world, peer)
    assert ended_causes(world) == {cause: 1}


def test_a_session_object_that_serves_again_begins_anew(timed_gateway: MakeGateway):
    world = timed_gateway(
        limits=limits(idle_timeout_s=5, packet_timeout_s=1, packets_per_s=1, packets_burst=3),
        accepts_outstanding_max=1,
    )
    world.echoing = [world.start_worker()]
    for _ in range(8):
        peer = world.connect()
        assert world.limits.deadlines.session_count == 1
        say(world, peer, PACKET * 3 + PACKET[:5])
        world.pass_time(0.3)
        assert peer.ended is None
        peer.reset()
        world.run_until(lambda: not world.table.sessions, "the end of the session")
        assert world.limits.deadlines.session_count == 0
        world.run_until(lambda: world.lanes[0].log.is_committed, "the commit")
    assert world.sessions_made <= 4


# -- on every driver -------------------------------------------------------------------------------


def test_times_run_on_every_driver(gateway: MakeGateway):
    world = gateway(limits=limits(idle_timeout_s=0.4, packet_timeout_s=0.2))
    worker = world.start_worker()
    idle, dripping, good = (world.connect() for _ in range(3))
    dripping.send(PACKET[:6])
    while not (idle.ended and dripping.ended):
        good.send(PACKET)
        world.turn(0.02)
    assert good.ended is None
    for peer in (idle, dripping):
        peer.close()
    world.wait_for(worker, CLOSED, 2)
    causes = {record.payload for record in worker.records if record.kind == CLOSED}
    assert causes == {b"idle_timeout", b"packet_timeout"}


def test_a_flood_of_packets_ends_its_own_session(gateway: MakeGateway):
    world = gateway(limits=limits(packets_per_s=10, packets_burst=20))
    worker = world.start_worker()
    flood, good = world.connect(), world.connect()
    flood.send(PACKET * 1_000)
    good.send(PACKET * 20)
    world.run_until(lambda: flood.ended or flood.send_error, "the end of the flood")
    world.wait_for(worker, CLOSED)
    (closed,) = [record for record in worker.records if record.kind == CLOSED]
    assert closed.payload == b"rate_limited"
    # Of what was too much the worker has seen nothing.
    assert sum(r.packet_count for r in worker.records if r.session == closed.session) <= 20
    world.settle()
    assert good.ended is None
    assert world.count("rate_limited_packets_per_s") == 1
    assert ended_causes(world) == {"rate_limited": 1}


# -- rates -----------------------------------------------------------------------------------------


def test_a_client_within_its_rate_is_never_limited(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packets_per_s=10, packets_burst=5))
    world.echoing = [world.start_worker()]
    peer = world.connect()
    say(world, peer, PACKET * 5)
    for _ in range(50):
        world.pass_time(0.11)
        say(world, peer)
    assert peer.ended is None
    say(world, peer, PACKET * 6)
    assert peer.ended is not None


def test_packets_that_come_one_by_one_are_counted_together(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packets_per_s=1, packets_burst=3))
    world.start_worker()
    peer = world.connect()
    for _ in range(3):
        say(world, peer)
    assert peer.ended is None
    say(world, peer)
    assert peer.ended is not None
    assert world.count("rate_limited_packets_per_s") == 1


def test_bytes_have_a_rate_of_their_own(timed_gateway: MakeGateway):
    packet = make_packet(1, b"b" * 996)
    world = timed_gateway(
        limits=limits(bytes_per_s=1_000, bytes_burst=3_000), max_packet_bytes=3_000
    )
    worker = world.start_worker()
    peer = world.connect()
    say(world, peer, packet * 3)
    world.pass_time(1.01)
    say(world, peer, packet)
    assert peer.ended is None
    say(world, peer, packet)
    assert peer.ended is not None
    assert world.count("rate_limited_bytes_per_s") == 1
    world.wait_for(worker, CLOSED)
    passed = [content(record)[1] for record in worker.records if record.kind == PACKETS]
    assert sum(map(len, passed)) == 4, "what was past the rate was passed on"


def test_a_part_costs_when_it_is_complete_and_once(timed_gateway: MakeGateway):
    world = timed_gateway(
        limits=limits(packets_per_s=1, packets_burst=2, bytes_per_s=1, bytes_burst=20),
        max_packet_bytes=20,
    )
    world.start_worker()
    peer = world.connect()
    for byte in PACKET + PACKET:
        say(world, peer, bytes([byte]))
    assert peer.ended is None
    say(world, peer)
    assert peer.ended is not None


def test_the_largest_packet_always_fits_a_burst(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(bytes_per_s=10), max_packet_bytes=5_000)
    world.start_worker()
    peer = world.connect()
    say(world, peer, make_packet(1, b"l" * 4_996))
    assert peer.ended is None


def test_what_comes_at_once_after_a_pause_of_the_gateway_is_not_held_against_a_client(
    timed_gateway: MakeGateway,
):
    """It sends 10 packets of 1,000 bytes a second all along, and is not read for 5 seconds."""
    world = timed_gateway(limits=limits(packets_per_s=12, packets_burst=12), lane_bytes=2_048)
    worker = world.start_worker()
    peer = world.connect()
    packet = make_packet(1, b"p" * 996)
    sent = 0
    for _ in range(50):
        peer.send(packet)
        sent += 1
        world.pass_time(0.1)
    assert world.newest().is_recv_paused
    world.echoing = [worker]
    world.run_until(lambda: len(peer.received) == sent * len(packet), "all that was sent")
    for _ in range(50):  # and it goes on as before
        peer.send(packet)
        sent += 1
        world.pass_time(0.1)
    assert peer.ended is None
    world.run_until(lambda: len(peer.received) == sent * len(packet), "all that was sent")
    # What was kept for it is gone by now.
    world.pass_time(60)
    say(world, peer, packet * 14)
    assert peer.ended is not None


@pytest.mark.parametrize(("count", "is_ended"), [(15, False), (18, True)])
def test_what_is_kept_is_that_of_pauses_alone_however_they_follow_each_other(
    timed_gateway: MakeGateway, count: int, is_ended: bool
):
    """Each pause comes while tokens of the one before are kept: half a second of pauses in all."""
    world = timed_gateway(limits=limits(packets_per_s=10, packets_burst=10))
    world.echoing = [world.start_worker()]
    peer = world.connect()
    session = world.newest()
    for _ in range(5):
        session.pause_recv()
        world.pass_time(0.1)
        session.resume_recv()
        world.pass_time(0.09)
    say(world, peer, PACKET * count)
    assert bool(peer.ended) is is_ended


def test_short_pauses_far_apart_keep_nothing_of_the_time_between(timed_gateway: MakeGateway):
    world = timed_gateway(limits=limits(packets_per_s=10, packets_burst=10))
    world.echoing = [world.start_worker()]
    peer = world.connect()
    session = world.newest()
    apart_s = 0.1
    for _ in range(8):
        world.pass_time(0.9 * apart_s)
        apart_s *= 2
        session.pause_recv()
        world.pass_time(0.1)
        session.resume_recv()
    say(world, peer, PACKET * 12)
    assert peer.ended is not None


# -- connections -----------------------------------------------------------------------------------


def refused(world: GatewayWorld) -> Peer:
    """Connect once more, and wait until the gateway has closed that."""
    count = world.count("connections_refused")
    peer = Peer(world.core, world.service.listener.local_address)
    world.run_until(
        lambda: peer.ended and world.count("connections_refused") > count, "the refusal"
    )
    return peer


def test_one_connection_too_many_of_an_address_is_closed_at_once(gateway: MakeGateway):
    world = gateway(limits=limits(connections_per_address=3))
    worker = world.start_worker()
    peers = [world.connect() for _ in range(3)]
    for _ in range(3):
        refused(world)
    assert world.service.current_session_count == 3
    assert world.count("rate_limited_connections_per_address") == 3
    peers[0].reset()
    world.wait_for(worker, CLOSED)
    world.connect()
    worker.read()
    assert worker.kinds().count(OPENED) == 4
    assert [peer.ended for peer in peers[1:]] == [None, None]


@pytest.mark.parametrize("which", ["accepts_per_address", "accepts"])
def test_connections_that_come_too_fast_are_closed_at_once(timed_gateway: MakeGateway, which: str):
    world = timed_gateway(limits=limits(**{f"{which}_per_s": 1, f"{which}_burst": 4}))
    worker = world.start_worker()
    peers = [world.connect() for _ in range(4)]
    for _ in range(4):
        refused(world)
    assert world.count(f"rate_limited_{which}_per_s") == 4
    world.pass_time(1.1)
    peers.append(world.connect())
    refused(world)
    worker.read()
    assert worker.kinds() == [OPENED] * 5
    assert {peer.ended for peer in peers} == {None}


def test_an_id_that_cannot_be_given_is_not_counted_as_a_connection(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    world = gateway(limits=limits(connections_per_address=1))
    world.start_worker()
    with monkeypatch.context() as patch:
        patch.setattr(world.table._ids, "_counter", 0xFFFF_FFFF)
        failed = Peer(world.core, world.service.listener.local_address)
        world.run_until(lambda: failed.ended, "the failure")
    world.run_until(lambda: world.service.current_session_count == 0)
    assert world.connect().is_connected


# -- what is not limited costs nothing -------------------------------------------------------------


def test_sessions_without_limits_on_recvs_are_plain_ones(timed_gateway: MakeGateway):
    plain = timed_gateway(limits=limits(connections_per_address=9, accepts_per_s=9))
    plain.start_worker()
    plain.connect()
    assert type(plain.newest()).__name__ == "GatewaySession"
    limited = timed_gateway(limits=limits(idle_timeout_s=9))
    limited.start_worker()
    limited.connect()
    assert type(limited.newest()).__name__ == "LimitedSession"


def test_a_size_that_cannot_be_is_a_bad_size_under_every_limit(timed_gateway: MakeGateway):
    world = timed_gateway(
        limits=limits(idle_timeout_s=9, packets_per_s=9, bytes_per_s=100_000, auth_timeout_s=9)
    )
    world.start_worker()
    peer = world.connect()
    say(world, peer, struct.pack("<HH", 3, 1))
    assert peer.ended is IocpCause.RESET
    assert ended_causes(world) == {"bad_size": 1}
