"""The table routes new sessions, and counts every end by its cause."""

from cluster.shared.records import CLOSED, OPENED
from tests.gateway.conftest import MakeGateway


def test_sessions_are_spread_over_the_shards_that_have_workers(gateway: MakeGateway):
    world = gateway(shard_count=3)
    world.start_worker(1)
    world.start_worker(2)
    for _ in range(4):
        world.connect()
    assert [session.shard.index for session in world.table.sessions.values()] == [1, 2, 1, 2]
    world.start_worker(0)
    for _ in range(2):
        world.connect()
    assert [session.shard.index for session in world.table.sessions.values()][4:] == [0, 0]


def test_by_turns_sessions_go_to_each_shard_whatever_the_others_have(gateway: MakeGateway):
    world = gateway(shard_count=2, routing="round_robin")
    for shard in range(2):
        world.start_worker(shard)
    peers = [world.connect() for _ in range(3)]
    peers[1].reset()
    world.run_until(lambda: len(world.table.sessions) == 2, "the end of the second")
    for _ in range(2):
        world.connect()
    assert [session.shard.index for session in world.table.sessions.values()] == [0, 0, 1, 0]


def test_a_session_stays_with_its_shard_whoever_serves_that(gateway: MakeGateway):
    world = gateway(shard_count=2)
    for shard in range(2):
        world.start_worker(shard)
    peer = world.connect()
    world.kill(0)
    successor = world.start_worker(0)
    peer.reset()
    world.wait_for(successor, CLOSED)
    assert successor.kinds() == [OPENED, CLOSED]


def test_no_more_sessions_than_allowed_at_one_time(gateway: MakeGateway):
    world = gateway(max_sessions=2, accepts_outstanding_max=8)
    worker = world.start_worker()
    peers = [world.connect() for _ in range(2)]
    world.settle()
    assert world.service.listener.outstanding_accepts == 0
    peers[0].reset()
    world.run_until(lambda: len(world.table.sessions) == 1, "a free slot")
    world.connect()
    world.wait_for(worker, OPENED, 3)
    assert world.count("sessions_opened") == 3
    assert len(world.table.sessions) == 2
