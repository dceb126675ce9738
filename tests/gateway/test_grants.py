"""Who may have which shard, and what an incarnation is called."""

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.grants import Grants, NodeIdentity
from cluster.gateway.remote.remote_control import RemotePeer
from cluster.gateway.remote.remote_shards import RemoteShards
from cluster.gateway.shard import Shard, ShardBounds
from cluster.shared.lane import START
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.messages import Hello
from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import TELL_WINDOW_BYTES_MAX

HERE = None
ELSEWHERE = RemotePeer("berlin", "10.0.0.2")


@pytest.fixture
def shards() -> list[Shard]:
    counters = Counters()
    lanes = [LocalGatewayLane(1 << 20, 1 << 20) for _ in range(3)]
    bounds = ShardBounds(65_535, 1 << 20, TELL_WINDOW_BYTES_MAX, SAVED_BYTES_MAX)
    return [
        Shard(ShardId(3, index), lane, counters, bounds, lambda: 0.0)
        for index, lane in enumerate(lanes)
    ]


@pytest.fixture
def grants(shards: list[Shard]) -> Grants:
    """Grants of a node of whose shards 0 to 2 the last is for other machines."""
    identity = NodeIdentity(GatewayLife(3, 4, 5), 65_535, 1 << 20, 10.0)
    return Grants(identity, shards, "here", None, RemoteShards(frozenset({2}), "there"))


@pytest.mark.parametrize(
    ("shard", "peer", "reason"),
    [
        (0, HERE, None),
        (2, ELSEWHERE, None),
        (-1, HERE, "shard -1 does not exist; this node has shards 0 to 2 (workers.count)"),
        (3, ELSEWHERE, "shard 3 does not exist"),
        (2, HERE, "shard 2 is for a worker on another machine (remote.shards)"),
        (1, ELSEWHERE, "shard 1 is served on the gateway's machine; those for workers on others"),
    ],
)
def test_each_shard_is_for_one_kind_of_worker_if_there_is_such_a_shard(
    grants: Grants, shard: int, peer: RemotePeer | None, reason: str | None
):
    refusal = grants.refusal(Hello(shard=shard, pid=1, create_time=1.0), peer)
    if reason is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.startswith(reason)


def test_incarnations_are_numbered_across_shards_and_elsewhere_their_names_are_no_guess(
    grants: Grants, shards: list[Shard]
):
    assert grants.next_incarnation(shards[1]) == (1, b"4.1.1")
    number, name = grants.next_incarnation(shards[2])
    assert number == 2
    assert name.startswith(b"4.2.2.")
    assert len(name) == len(b"4.2.2.") + 16
    assert grants.next_incarnation(shards[2])[1][-16:] != name[-16:]


def test_a_grant_names_the_lanes_of_where_its_worker_is(grants: Grants, shards: list[Shard]):
    here, there = (grants.make(shards[index], 1, b"name", START, []) for index in (0, 2))
    assert (here.lane.endpoint, there.lane.endpoint) == ("here", "there")
    assert (here.lane.identity, here.position, here.index) == (b"name", *START)
