"""Which shards of a node are served from other machines, and how they are shown."""

from typing import NamedTuple

from cluster.gateway.worker_life import WorkerLife
from cluster.shared.node_status import RemoteWorker, WorkerState, WorkerStatus

__all__ = ["RemoteShards", "remote_worker_status"]


class RemoteShards(NamedTuple):
    """By default none."""

    indices: frozenset[int] = frozenset()
    lane_endpoint: str = ""
    """What their lanes' hub is bound to; workers take its port."""


def remote_worker_status(
    shard: int, lane: str, life: WorkerLife | None, lives_begun: int, is_draining: bool
) -> WorkerStatus:
    """Return the status of such a shard, whose `life` is the last of `lives_begun`, if it has one.

    What its worker has in hand is noted on that machine, and not known here.
    """
    state: WorkerState = "starting"
    if life is not None and life.is_ready:
        state = "draining" if is_draining else "ready"
    elif life is None and lives_begun:
        state = "backoff"
    peer = None if life is None else life.peer
    return WorkerStatus(
        shard=shard,
        pid=None if life is None else life.pid,
        state=state,
        restarts=max(0, lives_begun - 1),
        lane=lane,
        remote=RemoteWorker(
            key=None if peer is None else peer.key, address=None if peer is None else peer.address
        ),
    )
