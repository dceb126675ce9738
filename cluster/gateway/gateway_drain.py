"""Carries out the orderly end of a gateway: what `next_drain_phase` says, on its sessions.

The listener closes first. Whoever turns the gateway calls `advance` after each turn.
"""

import logging
from collections.abc import Sequence

from cluster.gateway.drain import DrainPhase, finishing_s, leaving_s, next_drain_phase
from cluster.gateway.lanes import LaneRunner
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.service import GatewayService
from cluster.gateway.session_table import SessionTable
from cluster.gateway.shard import Shard
from cluster.gateway.tell_router import TellRouter
from cluster.iocp import IocpCore
from cluster.shared.causes import Cause

__all__ = ["GatewayDrain"]

logger = logging.getLogger("cluster.gateway")


class GatewayDrain:
    """The drain of one gateway. For the dispatching thread."""

    def __init__(
        self,
        core: IocpCore,
        shards: Sequence[Shard],
        table: SessionTable,
        service: GatewayService,
        lanes: LaneRunner,
        traffic: NodeTraffic,
        tells: TellRouter,
    ) -> None:
        """End the sessions of `table`, which `service` has accepted and `shards` serve by `lanes`,
        and what `traffic` and `tells` have for other nodes."""
        self._core = core
        self._shards = shards
        self._table = table
        self._service = service
        self._lanes = lanes
        self._traffic = traffic
        self._tells = tells
        self.phase = DrainPhase.SERVING
        self._deadline = self._leave_deadline = self._finish_deadline = 0.0
        self._served = list(shards)
        """Those that were not given up."""
        self._to_end: list[Shard] = []
        """Those that were given up, and whose sessions are yet to be ended."""

    def advance(self, timeout_s: float) -> bool:
        """Go on with the drain, which begins with the first call; return whether it has ended.

        It may take `timeout_s` seconds from its begin.
        """
        if self.phase is DrainPhase.SERVING:
            self._begin(timeout_s)
        while self._to_end:
            self._end_sessions(self._to_end.pop())
        while (phase := self._next_phase()) is not self.phase:
            self.phase = phase
            if phase is DrainPhase.FINISHING:
                self._read_no_more()
            elif phase is DrainPhase.CLOSING:
                for session in list(self._table.sessions.values()):
                    session.disconnect(Cause.DRAIN)
        return self.phase is DrainPhase.DRAINED

    def log_undone(self) -> None:
        """Log what the drain, which has ended, has left undone, if anything."""
        sessions = len(self._table.sessions)
        logs = [shard.log for shard in self._shards]
        records = sum(log.position + 1 - log.committed.position for log in logs)
        deferred = sum(shard.succession.deferred.count for shard in self._shards)
        waiting = sum(len(shard.tells.waiting) for shard in self._shards)
        moved, untold = self._tells.moved_count, self._untold_count
        if sessions or records or deferred or waiting or moved or untold:
            logger.warning(
                "%s: sessions cut off: %d, records that no worker has "
                "finished: %d, handler calls in coroutines that are not done: %d, messages without "
                "room in a lane: %d, messages that wait for the owner of their key: %d, records "
                "that linked nodes have not taken: %d",
                "the time to drain is up"
                if self._is_late
                else "the drain has left undone what was for shards without a worker",
                sessions,
                records,
                deferred,
                waiting,
                moved,
                untold,
            )

    @property
    def _untold_count(self) -> int:
        return self._tells.untold_count + self._traffic.untold_count

    @property
    def _is_late(self) -> bool:
        return self._core.now() >= self._deadline

    def give_up(self, shard: Shard) -> None:
        """No worker will take `shard` over any more: a drain ends its sessions, and waits for
        nothing that is left to do there. To be followed by `advance`."""
        if shard in self._served:
            self._served.remove(shard)
            self._to_end.append(shard)

    def _begin(self, timeout_s: float) -> None:
        logger.info("draining, at most %g s", timeout_s)
        self.phase = DrainPhase.LEAVING
        now = self._core.now()
        self._deadline = now + timeout_s
        self._leave_deadline = now + leaving_s(timeout_s)
        self._finish_deadline = now + finishing_s(timeout_s)
        for deadline in (self._leave_deadline, self._finish_deadline, self._deadline):
            self._core.call_later(deadline - now, lambda: None)  # to notice it
        self._service.stop_accepting()
        if self._table.limits.proxies:
            for connection in self._service.sessions - {*self._table.sessions.values()}:
                connection.abort(Cause.DRAIN)  # it awaits its header
        for shard in self._shards:
            shard.drain.begin(self._leave_deadline)
        self._lanes.flush()

    def _end_sessions(self, shard: Shard) -> None:
        sessions = [session for session in self._table.sessions.values() if session.shard is shard]
        logger.warning(
            "shard %d gets no worker any more: sessions that are ended for that: %d",
            shard.index,
            len(sessions),
        )
        for session in sessions:
            session.disconnect(Cause.DRAIN)

    def _next_phase(self) -> DrainPhase:
        return next_drain_phase(
            self.phase,
            kept_count=self._kept_count(),
            owns_keys=self._owns_keys(),
            is_answered=all(shard.has_answered for shard in self._served),
            is_committed=all(shard.is_idle for shard in self._served),
            session_count=len(self._table.sessions),
            is_told=not (self._tells.moved_count or self._untold_count),
            closes_anyway=self._core.now() >= self._finish_deadline,
            is_late=self._is_late,
        )

    def _owns_keys(self) -> bool:
        """Whether workers are yet to hear that keys have other owners, and to hand over."""
        traffic = self._traffic
        if not traffic.gives_keys_away or self._core.now() >= self._leave_deadline:
            return False
        return traffic.node in traffic.members.nodes

    def _kept_count(self) -> int:
        """How many sessions are their application's to let go."""
        if self.phase is not DrainPhase.LEAVING or self._core.now() >= self._leave_deadline:
            return 0
        counts = self._table.counts
        return sum(counts[shard.index] for shard in self._served if shard.drain.keeps_sessions)

    def _read_no_more(self) -> None:
        for shard in self._shards:
            shard.flow.reads_no_more = True
            shard.drain.end()
        self._tells.end()
        for session in self._table.sessions.values():
            session.pause_recv()
