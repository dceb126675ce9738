"""Clients that come and go while no worker commits: nobody is accepted before there is room."""

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import CLOSED, OPENED
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld
from tests.iocp.peers import Peer

LANE_BYTES = 4_096
NEWS_BYTES = 128
"""More than the two records take that tell of a session and of its end."""


def come_and_go(world: GatewayWorld, count: int) -> None:
    """Have so many clients, one after the other, that vanish."""
    for _ in range(count):
        _visit(world)


def _visit(world: GatewayWorld) -> None:
    peer = Peer(world.core, world.service.listener.local_address, reading=False)
    world.run_until(lambda: peer.is_connected, "a connection")
    world.turn()
    peer.reset()
    world.turn()


def test_clients_that_come_and_go_while_a_worker_hangs_do_not_fill_the_memory(
    gateway: MakeGateway,
):
    world = gateway(lane_bytes=LANE_BYTES, accepts_outstanding_max=4)
    worker = world.start_worker()
    come_and_go(world, 300)
    world.settle()
    log = world.lanes[0].log
    assert LANE_BYTES <= log.uncommitted_bytes <= LANE_BYTES + 8 * NEWS_BYTES
    assert world.service.listener.outstanding_accepts == 0
    assert world.count("accepting_paused") == 1
    opened = world.count("sessions_opened")
    waiting = Peer(world.core, world.service.listener.local_address)
    waiting.send(make_packet(1, b"let me in"))
    world.settle()
    assert world.count("sessions_opened") == opened

    world.echoing = [worker]
    world.wait_received(waiting, len(make_packet(1, b"let me in")))
    waiting.reset()
    world.run_until(lambda: not world.table.sessions and log.is_committed, "all to be told")
    assert world.service.listener.outstanding_accepts == 4
    assert worker.kinds().count(OPENED) == worker.kinds().count(CLOSED)
    assert worker.kinds().count(OPENED) == world.count("sessions_opened")


def test_no_session_is_given_to_a_shard_whose_lane_is_full_while_another_has_room(
    gateway: MakeGateway,
):
    world = gateway(shard_count=2, lane_bytes=LANE_BYTES)
    world.start_worker(0)
    serving = world.start_worker(1)
    world.echoing = [serving]
    while not world.lanes[0].is_full:
        come_and_go(world, 10)
    full_bytes = world.lanes[0].log.uncommitted_bytes
    peers = [world.connect() for _ in range(6)]
    assert {session.shard.index for session in world.table.sessions.values()} == {1}
    for peer in peers:
        peer.send(make_packet(1, b"x"))
    world.wait_received(peers, len(make_packet(1, b"x")))
    come_and_go(world, 100)
    world.settle()
    assert world.lanes[0].log.uncommitted_bytes <= full_bytes + 8 * NEWS_BYTES
    assert world.count("accepting_paused") == 0


def test_a_shard_without_a_worker_that_has_room_comes_before_one_that_is_full(
    gateway: MakeGateway,
):
    world = gateway(shard_count=2, lane_bytes=LANE_BYTES)
    world.start_worker(0)
    while not world.lanes[0].is_full:
        come_and_go(world, 10)
    world.connect()
    assert world.newest().shard.index == 1
    assert world.count("accepting_paused") == 0
