"""What `cluster status` shows of a node, put together from all that knows a part of it.

It only looks: nothing is kept here, and nothing is changed by being shown.
"""

import os

import msgspec
from msgspec import UNSET

from cluster.gateway.drain import DrainPhase
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.invocation import deferred_invocation
from cluster.gateway.local_door import LocalDoor
from cluster.gateway.other_nodes import OtherNodes
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.door import RemoteDoor
from cluster.gateway.remote.remote_shards import remote_worker_status
from cluster.gateway.shard import Shard
from cluster.gateway.supervisor_link import SupervisorLink
from cluster.gateway.waiting_spares import WaitingSpares
from cluster.shared.node_status import GatewayStatus, InHand, NodeStatus, WorkerStatus

__all__ = ["StatusReport"]


class StatusReport:
    """That of one gateway. For the dispatching thread."""

    def __init__(
        self,
        serving: GatewayCore,
        local_door: LocalDoor,
        remote_door: RemoteDoor | None,
        supervisor: SupervisorLink,
        quarantine: Quarantine,
        spares: WaitingSpares,
        others: OtherNodes,
    ) -> None:
        self._serving = serving
        self._local_door = local_door
        self._remote_door = remote_door
        self._supervisor = supervisor
        self._quarantine = quarantine
        self._spares = spares
        self._others = others

    def make(self) -> NodeStatus:
        """Return the state of the node."""
        return NodeStatus(
            node=self._serving.life.node,
            epoch=self._serving.life.epoch,
            gateway=GatewayStatus(
                pid=os.getpid(),
                driver=self._serving.core.driver.name,
                sessions=len(self._serving.table.sessions),
                remote_listen=UNSET if self._remote_door is None else self._remote_door.listen,
            ),
            workers=[self._worker(shard) for shard in self._serving.shards],
            spares=self._spares.status(),
            links=self._others.link_status(),
            membership=self._others.membership_status(),
            counters=dict(sorted(self._count().items())),
        )

    def _worker(self, shard: Shard) -> WorkerStatus:
        workers, index, lane = self._serving.workers, shard.index, shard.lane.kind
        life = workers.life(index)
        is_draining = self._serving.drain.phase is not DrainPhase.SERVING
        if workers.is_remote(index):
            lives = workers.lives_begun(index)
            status = remote_worker_status(index, lane, life, lives, is_draining)
        else:
            in_hand = self._quarantine.in_hand(shard)
            status = self._supervisor.worker_status(index, lane, life, is_draining, in_hand)
        waits = shard.commit_times.told(self._serving.core.now())
        return msgspec.structs.replace(status, awaiting=self._awaiting(shard), waits=waits)

    def _awaiting(self, shard: Shard) -> InHand | None:
        oldest = shard.succession.deferred.oldest()
        if oldest is None:
            return None
        call, since = oldest
        invocation = deferred_invocation(call)
        assert invocation is not None, "only what asks for a call is deferred"
        return invocation.shown(self._serving.core.now() - since)

    def _count(self) -> dict[str, int]:
        """Return what the gateway counts, and what its doors do."""
        counts = self._serving.count()
        counts.setdefault("control_refused", 0)
        counts["dropped_batches"] = 0
        counts["lanes_refused"] = self._local_door.hub.lanes_refused
        for door in (self._local_door, self._remote_door):
            if door is not None:
                counts["control_refused"] += door.control.refused
                counts["dropped_batches"] += door.hub.dropped_batches
        return counts
