"""What serves the clients of a node, wired: sessions, shards, lanes, and the lives of workers.

It has no process and no control plane: control messages leave through a function, and whoever
owns it turns it. So one wiring serves a gateway process, and a node inside one process that
applications are tested on.
"""

import logging
import time
from collections.abc import Callable, Sequence

from cluster.gateway.counters import Counters
from cluster.gateway.drain import DrainPhase, leaving_s, next_drain_phase
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.grants import Grants, NodeIdentity
from cluster.gateway.intake import Intake
from cluster.gateway.lane_hubs import LaneHubs
from cluster.gateway.lanes import LaneRunner
from cluster.gateway.limits import Limits
from cluster.gateway.node_broadcasts import NodeBroadcasts
from cluster.gateway.node_fan_outs import NodeFanOuts
from cluster.gateway.node_groups import NodeGroups
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.remote_shards import RemoteShards
from cluster.gateway.routing import make_routing
from cluster.gateway.service import GatewayService
from cluster.gateway.session_ids import SessionIds
from cluster.gateway.session_table import SessionTable
from cluster.gateway.shard import Shard, ShardBounds
from cluster.gateway.tell_router import TellRouter
from cluster.gateway.workers import Workers
from cluster.iocp import IocpCore, NetAddress, SessionSettings
from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.causes import Cause
from cluster.shared.config import Config
from cluster.shared.lane import LaneHub
from cluster.shared.messages import ControlMessage, ShardReport
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import tell_window_bytes

__all__ = ["GatewayCore"]

logger = logging.getLogger("cluster.gateway")


class GatewayCore:
    """The sessions of a node and the lanes of its shards. For the dispatching thread."""

    def __init__(
        self,
        config: Config,
        life: GatewayLife,
        core: IocpCore,
        hub: LaneHub,
        send: Callable[[bytes, ControlMessage], bool],
        report: Callable[[ShardReport], None],
        counters: Counters,
        quarantine: Quarantine | None = None,
        remote_hub: LaneHub | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the lanes in `hub`; OSError when there is no memory for them.

        Those of `remote.shards` are made in `remote_hub`, if there is one. Workers are answered
        by `send`, the supervisor is told by `report`; `quarantine` as for `Grants`, `wall_clock`
        as for `NodeUsers`. `core` and both hubs stay the caller's.
        """
        self.life = life
        self.core = core
        self.counters = counters
        self._config = config
        self._hub = hub
        self._remote_hub = remote_hub
        self._drain_deadline = self._leave_deadline = 0.0
        self.phase = DrainPhase.SERVING
        self._to_end: list[Shard] = []
        """Those that were given up, and whose sessions the drain has yet to end."""
        self.shards = [self._make_shard(index) for index in range(config.workers.count)]
        self.table = SessionTable(
            SessionIds(life.node, life.epoch, first=life.nonce >> 32),
            self.shards,
            make_routing(config.gateway.routing, config.workers.count),
            counters,
            Limits(
                core,
                config.limits,
                config.gateway.max_packet_bytes,
                counters,
                config.gateway.proxies,
            ),
        )
        self.traffic = NodeTraffic(config.node.id, counters)
        fan_outs = NodeFanOuts(self.traffic, core, counters)
        broadcasts = NodeBroadcasts(self.traffic, fan_outs, self.table.sessions, counters)
        groups = NodeGroups(self.traffic, fan_outs, core, self.table.groups, counters)
        self.users = NodeUsers(
            self.traffic,
            core,
            self.table.sessions,
            self.table.users,
            counters,
            config.links.timeout_s,
            wall_clock,
        )
        self._appliers = [
            OutboundApplier(
                shard,
                self.table.sessions,
                self.users,
                self.table.groups,
                counters,
                broadcasts,
                groups,
            )
            for shard in self.shards
        ]
        self.tells = TellRouter(self.shards, self.traffic, core, counters)
        self.workers = self._make_workers(send, report, quarantine)
        self.lanes = LaneRunner(
            core,
            hub if remote_hub is None else LaneHubs(hub, remote_hub),
            self.shards,
            self._appliers,
            self.workers.committed,
            self._violated,
        )
        self.service = self._make_service()
        self.intake = Intake(core, self.shards, self.table.limits)
        """What the core may deliver by, if the clients of this node are the only ones on it."""

    def _make_shard(self, index: int) -> Shard:
        config = self._config
        hub = self._hub
        if self._remote_hub is not None and index in config.remote.shards:
            hub = self._remote_hub
        return Shard(
            ShardId(config.node.id, index),
            hub.open_lane(config.lane.bytes, accepted_batch_bytes(config.lane.max_batch_bytes)),
            self.counters,
            ShardBounds(
                max_packet_bytes=config.gateway.max_packet_bytes,
                send_queue_bytes_max=config.gateway.send_queue_bytes_max,
                tell_window_bytes=tell_window_bytes(
                    config.links.retained_bytes_max, config.workers.count
                ),
                saved_bytes_max=config.workers.saved_bytes_max,
            ),
            self.core.now,
        )

    def _make_workers(
        self,
        send: Callable[[bytes, ControlMessage], bool],
        report: Callable[[ShardReport], None],
        quarantine: Quarantine | None,
    ) -> Workers:
        config = self._config
        identity = NodeIdentity(
            self.life,
            config.gateway.max_packet_bytes,
            config.lane.max_batch_bytes,
            config.workers.worker_timeout_s,
        )
        remote = RemoteShards()
        if self._remote_hub is not None:
            remote = RemoteShards(frozenset(config.remote.shards), self._remote_hub.endpoint)
        return Workers(
            Grants(identity, self.shards, self._hub.endpoint, quarantine, remote),
            self.counters,
            send,
            report,
            lambda shard: self._appliers[shard.index].abandon(),
            lambda shard: self.lanes.drain(shard),
            self.core.now,
            lambda callback: self.core.call_later(0, callback),
            self._config.limits.auth_timeout_s,
        )

    def _make_service(self) -> GatewayService:
        gateway, limits = self._config.gateway, self._config.limits
        blocked_bytes = limits.send_blocked_bytes or gateway.send_queue_bytes_max // 2
        return GatewayService(
            self.table,
            NetAddress.parse(self._config.node.listen),
            self.core,
            None,
            gateway.max_sessions,
            SessionSettings(
                close_timeout_s=gateway.close_timeout_s,
                send_queue_bytes_max=gateway.send_queue_bytes_max,
                send_stall_timeout_s=gateway.send_stall_timeout_s,
                send_blocked_bytes=blocked_bytes,
                send_ready_bytes=limits.send_ready_bytes or blocked_bytes // 2,
            ),
            gateway.accepts_outstanding_max,
            self._config.node.shared_port,
        )

    def _violated(self, shard: Shard, reason: str) -> None:
        self.counters.add("lane_violations")
        self.workers.fence(shard, reason)

    # -- serving -----------------------------------------------------------------------------------

    def turn(self, timeout_s: float | None) -> int:
        """Take one batch of completions, and what workers have published, and pass it all on.

        Waits up to `timeout_s` seconds for a completion, None: for ever. Returns how many
        completions there were.
        """
        count = self.core.dispatch(timeout_s)
        self.lanes.receive()
        self.lanes.flush()
        return count

    def close(self) -> None:
        """Reset the sessions that are left, and accept nobody."""
        self.service.close_service(Cause.DRAIN)
        for session in list(self.table.sessions.values()):
            session.abort(Cause.DRAIN)
        for _ in range(len(self.table.sessions) + 8):  # their ends come a few at a time
            self.core.dispatch(0)
            if not self.table.sessions:
                break

    def close_lanes(self) -> None:
        """Give the lanes back; the hub stays the caller's."""
        self.lanes.close()
        for shard in self.shards:
            shard.lane.close()

    # -- draining ----------------------------------------------------------------------------------

    def advance_drain(self, timeout_s: float) -> bool:
        """Go on with the drain, which begins with the first call; return whether it has ended.

        It may take `timeout_s` seconds from its begin. To be called after each turn.
        """
        if self.phase is DrainPhase.SERVING:
            self._begin_drain(timeout_s)
        while self._to_end:
            self._end_sessions(self._to_end.pop())
        while (phase := self._next_phase()) is not self.phase:
            self.phase = phase
            if phase is DrainPhase.FINISHING:
                self._read_no_more()
            elif phase is DrainPhase.CLOSING:
                for session in list(self.table.sessions.values()):
                    session.disconnect(Cause.DRAIN)
        return self.phase is DrainPhase.DRAINED

    @property
    def is_drain_late(self) -> bool:
        """Whether the time for the drain is up."""
        return self.core.now() >= self._drain_deadline

    def give_up(self, shard: Shard) -> None:
        """No worker will take `shard` over any more: a drain ends its sessions, and waits for
        nothing that is left to do there. To be followed by `advance_drain`."""
        if not shard.is_given_up:
            shard.is_given_up = True
            self._to_end.append(shard)

    def _end_sessions(self, shard: Shard) -> None:
        sessions = [session for session in self.table.sessions.values() if session.shard is shard]
        logger.warning(
            "shard %d gets no worker any more: sessions that are ended for that: %d",
            shard.index,
            len(sessions),
        )
        for session in sessions:
            session.disconnect(Cause.DRAIN)

    def _next_phase(self) -> DrainPhase:
        served = [shard for shard in self.shards if not shard.is_given_up]
        return next_drain_phase(
            self.phase,
            kept_count=self._kept_count(served),
            is_answered=all(shard.has_answered for shard in served),
            is_committed=all(shard.is_idle for shard in served),
            session_count=len(self.table.sessions),
            is_told=self.traffic.is_told,
            is_late=self.is_drain_late,
        )

    def _kept_count(self, shards: Sequence[Shard]) -> int:
        """How many sessions are their application's to let go."""
        if self.phase is not DrainPhase.LEAVING or self.core.now() >= self._leave_deadline:
            return 0
        counts = self.table.counts
        return sum(counts[shard.index] for shard in shards if shard.drain.keeps_sessions)

    def _begin_drain(self, timeout_s: float) -> None:
        logger.info("draining, at most %g s", timeout_s)
        self.phase = DrainPhase.LEAVING
        now = self.core.now()
        self._drain_deadline = now + timeout_s
        self._leave_deadline = now + leaving_s(timeout_s)
        for deadline in (self._leave_deadline, self._drain_deadline):
            self.core.call_later(deadline - now, lambda: None)  # to notice it
        self.service.stop_accepting()
        if self.table.limits.proxies:
            for connection in self.service.sessions - {*self.table.sessions.values()}:
                connection.abort(Cause.DRAIN)  # it awaits its header
        for shard in self.shards:
            shard.drain.begin(self._leave_deadline)
        self.lanes.flush()

    def _read_no_more(self) -> None:
        for shard in self.shards:
            shard.flow.reads_no_more = True
            shard.drain.end()
        for session in self.table.sessions.values():
            session.pause_recv()
