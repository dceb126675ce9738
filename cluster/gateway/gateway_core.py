"""What serves the clients of a node, wired: sessions, shards, lanes, and the lives of workers.

It has no process and no control plane: control messages leave through a function, and whoever
owns it turns it. So one wiring serves a gateway process, and a node inside one process that
applications are tested on.
"""

import time
from collections.abc import Callable

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_drain import GatewayDrain
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
        self.tells = TellRouter(
            self.shards, self.traffic, core, counters, config.links.retained_bytes_max
        )
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
        self.drain = GatewayDrain(
            core, self.shards, self.table, self.service, self.lanes, self.traffic, self.tells
        )

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
            self.core,
            config.limits.auth_timeout_s,
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

    def count(self) -> dict[str, int]:
        """Return what was counted, and what the parts count themselves or can tell right now."""
        counts, shards, listener = self.counters.snapshot(), self.shards, self.service.listener
        counts["accept_errors"] = listener.accept_errors
        counts["connections_refused_full"] = listener.full_refusals
        counts["packets_received"] = sum(shard.log.packets_appended for shard in shards)
        counts["bytes_received"] = sum(shard.log.packet_bytes_appended for shard in shards)
        counts["uncommitted_bytes"] = sum(shard.lane.log.uncommitted_bytes for shard in shards)
        counts["deferred_calls"] = sum(shard.succession.deferred.count for shard in shards)
        counts["saved_bytes"] = sum(shard.succession.saves.num_bytes for shard in shards)
        counts["sessions_waiting"] = sum(len(shard.flow.waiting) for shard in shards)
        counts["sessions_held"] = sum(len(shard.flow.held) for shard in shards)
        counts["messages_waiting"] = sum(len(shard.tells.waiting) for shard in shards)
        counts["tells_on_the_way_bytes"] = sum(
            shard.tells.windows.on_the_way_bytes for shard in shards
        )
        return counts

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
