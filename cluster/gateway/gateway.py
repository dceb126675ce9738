"""Wires a gateway: completion port, sessions, lanes, control plane. One thread, one loop.

Everything that decides stands in a file of its own; this one only connects the parts. After
each batch of completions the lanes are flushed once.
"""

import logging
import os
import secrets
from collections.abc import Callable

import zmq

from cluster.gateway.control import ControlPlane
from cluster.gateway.counters import Counters
from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.gateway.drain import DrainPhase, next_drain_phase
from cluster.gateway.lanes import LaneRunner
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.note_files import NoteFiles
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.routing import make_routing
from cluster.gateway.service import GatewayService
from cluster.gateway.session_ids import SessionIds
from cluster.gateway.session_table import SessionTable
from cluster.gateway.shard import Shard
from cluster.gateway.spares import Spares
from cluster.gateway.supervisor_link import SupervisorLink
from cluster.gateway.workers import NodeIdentity, Workers
from cluster.iocp import EventType, IocpCore, IocpEvent, NetAddress, SessionSettings
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.timers import Timer
from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.causes import Cause
from cluster.shared.config import Config, parse_node
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.lane_choice import open_lane_hub
from cluster.shared.messages import (
    Assign,
    ControlMessage,
    Drain,
    GatewayReady,
    GatewayStatus,
    Hello,
    NodeStatus,
    SpareAlive,
    SpareGone,
    SpareHello,
    StatusReply,
    StatusRequest,
    SupervisorHello,
    WorkerGone,
    WorkerHeartbeat,
    WorkerReport,
    WorkerStatus,
)
from cluster.shared.run_directory import RunDirectory

__all__ = ["Gateway", "ListenError"]

logger = logging.getLogger("cluster.gateway")

DRAIN_TIMEOUT_MAX_S = 86_400
"""As the configuration allows; a message may say anything."""

LAST_WORDS_MS = 500
"""Time for the last control messages of a drain to leave, and for workers to act on them: a
connection that ends under IMMEDIATE takes with it what its peer has not read yet."""


class ListenError(Exception):
    """An address cannot be listened at; the message is one line with the key and the remedy."""

    def __init__(self, key: str, address: str, error: OSError) -> None:
        flag = "--listen or " if key == "node.listen" else ""
        super().__init__(
            f"cannot listen at {address}: {error.strerror}; choose another address with {flag}{key}"
        )


class Gateway(IocpObject):
    """One life of a gateway. `serve` runs it; `request_drain` may come from a signal handler."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        core: IocpCore,
        epoch: int,
        links_secret: bytes | None = None,
    ) -> None:
        """Bind everything for `config`, and tell where.

        `links_secret` is needed where `config` has `links.listen`. Raises OSError, zmq.ZMQError
        or RunDirectoryError when that cannot be. `core` and `directory` stay the caller's.
        """
        self.handle = None
        self._config = config
        self._core = core
        self._epoch = epoch
        self._drain_event = IocpEvent(EventType.POST)
        self._drain_timeout_s = config.supervisor.drain_timeout_s
        self._drain_requested = False
        self._drain_deadline = 0.0
        self._phase = DrainPhase.SERVING
        self._counters = Counters()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoints = choose_endpoints(directory)
        (control_address, curve), lane_endpoint = endpoints.open()
        socket_path = directory.lane_socket()
        self._hub = open_lane_hub(config.lane.kind, socket_path, self._context, lane_endpoint)
        self._shards = [self._make_shard(index) for index in range(config.workers.count)]
        ids = SessionIds(config.node.id, epoch)
        routing = make_routing(config.gateway.routing, config.workers.count)
        self._table = SessionTable(ids, self._shards, routing, self._counters)
        self._traffic = NodeTraffic(core, self._table, self._counters)
        self._appliers = [
            OutboundApplier(
                shard.lane,
                self._table.sessions,
                self._table.users,
                self._counters,
                shard.succession,
                self._traffic.broadcast,
            )
            for shard in self._shards
        ]
        self._control = ControlPlane(
            self._context, control_address, core, self._take_message, curve
        )
        endpoints.publish(self._control.endpoint)
        self._supervisor = SupervisorLink(self._control.send, config.workers.count)
        self._quarantine = Quarantine(
            config.node.id,
            epoch,
            config.workers.count,
            config.workers.max_redeliveries,
            NoteFiles(directory.path),
            DeadLetterFile(directory.path, self._counters),
            self._counters,
        )
        life = secrets.randbits(64)
        self._workers = self._make_workers(life)
        self._links = None if links_secret is None else self._make_links(life, links_secret)
        self._traffic.links = self._links
        self._spares = Spares(
            config.workers.spares,
            config.workers.count,
            config.workers.worker_timeout_s,
            self._counters,
            self._control.send,
            self._supervisor.report,
            self._workers.hello,
            core.now,
        )
        self._lanes = LaneRunner(
            core, self._hub, self._shards, self._appliers, self._workers.committed, self._violated
        )
        self._service = self._make_service()
        self._beat_interval_s = min(1.0, config.workers.worker_timeout_s / 4)
        self._beat_timer: Timer | None = None

    def _make_shard(self, index: int) -> Shard:
        gateway, lane = self._config.gateway, self._config.lane
        return Shard(
            index,
            self._hub.open_lane(lane.bytes, accepted_batch_bytes(lane.max_batch_bytes)),
            self._counters,
            gateway.max_packet_bytes,
            gateway.send_queue_bytes_max,
        )

    def _make_links(self, life: int, secret: bytes) -> Links:
        links = self._config.links
        assert links.listen is not None
        nodes = [parse_node(node) for node in links.nodes]
        return Links(
            LinkIdentity(self._config.node.id, life, links.cluster, secret),
            NetAddress.parse(links.listen),
            [(node, NetAddress(host, port)) for node, host, port in nodes],
            self._core,
            self._counters,
            self._traffic,
            timeout_s=links.timeout_s,
            retained_bytes_max=links.retained_bytes_max,
        )

    def _make_workers(self, life: int) -> Workers:
        config = self._config
        identity = NodeIdentity(
            config.node.id,
            self._epoch,
            life,
            config.gateway.max_packet_bytes,
            config.lane.max_batch_bytes,
            config.workers.worker_timeout_s,
        )
        return Workers(
            identity,
            self._shards,
            self._hub.endpoint,
            self._counters,
            self._control.send,
            self._supervisor.report,
            lambda shard: self._appliers[shard.index].abandon(),
            lambda shard: self._lanes.drain(shard),
            self._core.now,
            self._quarantine,
        )

    def _make_service(self) -> GatewayService:
        gateway = self._config.gateway
        return GatewayService(
            self._table,
            NetAddress.parse(self._config.node.listen),
            self._core,
            None,
            gateway.max_sessions,
            SessionSettings(
                close_timeout_s=gateway.close_timeout_s,
                send_queue_bytes_max=gateway.send_queue_bytes_max,
                send_stall_timeout_s=gateway.send_stall_timeout_s,
            ),
            gateway.accepts_outstanding_max,
        )

    # -- serving -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; raises ListenError when an address cannot be had."""
        self._listen("node.listen", self._config.node.listen, self._service.start)
        if self._links is not None:
            listen = self._config.links.listen
            self._listen("links.listen", str(listen), self._links.start)
            logger.info("links of node %d at %s", self._config.node.id, self._links.address)
        self._beat()
        ready = GatewayReady(
            pid=os.getpid(),
            node=self._config.node.id,
            epoch=self._epoch,
            listen=str(self._service.listener.local_address),
            driver=self._core.driver.name,
            lane=self._shards[0].lane.kind,
        )
        logger.info("listening at %s, epoch %d", ready.listen, ready.epoch)
        self._supervisor.set_ready(ready)

    @staticmethod
    def _listen(key: str, address: str, start: Callable[[], object]) -> None:
        try:
            start()
        except OSError as error:
            raise ListenError(key, address, error) from error

    def serve(self) -> None:
        """Dispatch until a drain is through."""
        core, lanes, shards, control = self._core, self._lanes, self._shards, self._control
        service, links = self._service, self._links
        while self._phase is not DrainPhase.DRAINED:
            core.dispatch(None)
            lanes.receive()
            for shard in shards:
                shard.resume_sessions()
            lanes.flush()
            control.check()
            lanes.flush()  # what the control plane brought: a death applies what was published
            control.check()
            service.resume_accepting()
            if links is not None:
                links.flush()
            if self._drain_requested:
                self._advance_drain()

    def close(self) -> None:
        """Give everything back. The sessions that are left are reset."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._service.close_service(Cause.DRAIN)
        if self._links is not None:
            self._links.close()
        for session in list(self._table.sessions.values()):
            session.abort(Cause.DRAIN)
        for _ in range(len(self._table.sessions) // 64 + 8):
            self._core.dispatch(0)
        if self._phase is DrainPhase.DRAINED:
            deadline = self._core.now() + LAST_WORDS_MS / 1_000
            while self._stop_all() and self._core.now() < deadline:
                self._core.dispatch(0.01)
                self._lanes.receive()
                self._control.check()
        self._quarantine.close()
        self._lanes.close()
        for shard in self._shards:
            shard.lane.close()
        self._hub.close()
        self._control.close(LAST_WORDS_MS)
        self._context.term()

    def _beat(self) -> None:
        self._workers.beat()
        self._spares.beat()
        self._supervisor.beat()
        self._beat_timer = self._core.call_later(self._beat_interval_s, self._beat)

    def _violated(self, shard: Shard, reason: str) -> None:
        self._counters.add("lane_violations")
        self._workers.fence(shard, reason)

    # -- draining ----------------------------------------------------------------------------------

    def request_drain(self, timeout_s: float | None = None) -> None:
        """Begin to drain, within `timeout_s` seconds (default: the configured time).

        May be called from a signal handler: it only sets a flag and wakes the loop.
        """
        if timeout_s is not None:
            self._drain_timeout_s = timeout_s
        self._drain_requested = True
        if self._drain_event.owner is None:
            self._drain_event.owner = self
            self._core.post(self._drain_event)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Only wakes the loop, which looks at the drain after each batch."""

    def _advance_drain(self) -> None:
        if self._phase is DrainPhase.SERVING:
            self._begin_drain()
        phase = next_drain_phase(
            self._phase,
            is_committed=all(shard.is_idle for shard in self._shards),
            session_count=len(self._table.sessions),
            is_late=self._core.now() >= self._drain_deadline,
        )
        if phase is self._phase:
            return
        self._phase = phase
        if phase is DrainPhase.CLOSING:
            for session in list(self._table.sessions.values()):
                session.disconnect(Cause.DRAIN)
            self._advance_drain()
        elif phase is DrainPhase.DRAINED:
            self._finish_drain()

    def _begin_drain(self) -> None:
        logger.info("draining, at most %g s", self._drain_timeout_s)
        self._phase = DrainPhase.FINISHING
        self._drain_deadline = self._core.now() + self._drain_timeout_s
        self._core.call_later(self._drain_timeout_s, lambda: None)  # to notice the deadline
        self._service.stop_accepting()
        for shard in self._shards:
            shard.is_draining = True
        for session in self._table.sessions.values():
            session.pause_recv()

    def _finish_drain(self) -> None:
        sessions = len(self._table.sessions)
        logs = [shard.lane.log for shard in self._shards]
        records = sum(log.position + 1 - log.committed.position for log in logs)
        if sessions or records:
            logger.warning(
                "the time to drain is up: sessions cut off: %d, records that no worker has "
                "finished: %d",
                sessions,
                records,
            )
        self._stop_all()
        self._supervisor.drained()

    def _stop_all(self) -> bool:
        """Tell workers and spares that all is done; return whether any is still there."""
        workers, spares = self._workers.stop_all(), self._spares.stop_all()
        return workers or spares

    # -- control plane -----------------------------------------------------------------------------

    def _take_message(self, identity: bytes, message: ControlMessage) -> None:
        match message:
            case WorkerHeartbeat():
                self._workers.heartbeat(identity, message)
            case Hello():
                self._workers.hello(identity, message)
            case SpareAlive():
                self._spares.alive(identity)
            case SpareHello():
                self._spares.hello(identity, message)
            case WorkerGone(shard=index, pid=pid):
                self._spares.gone(pid)
                self._workers.gone(index, pid)
            case SpareGone(pid=pid):
                self._spares.gone(pid)
            case Assign(shard=index, pid=pid):
                self._spares.assign(index, pid)
            case WorkerReport():
                self._supervisor.worker_report(message)
            case SupervisorHello():
                self._supervisor.hello(identity)
                for shard in self._shards:
                    self._workers.tell(shard.index)
                self._spares.tell_all()
            case StatusRequest():
                self._control.send(identity, StatusReply(status=self.status()))
            case Drain(timeout_s=timeout_s) if 0 <= timeout_s <= DRAIN_TIMEOUT_MAX_S:
                self.request_drain(timeout_s)
            case _:
                self._counters.add("control_refused")

    def status(self) -> NodeStatus:
        """Return the state of the node as `cluster status` shows it."""
        counters = self._counters.snapshot()
        counters["accept_errors"] = self._service.listener.accept_errors
        counters["control_refused"] = counters.get("control_refused", 0) + self._control.refused
        counters["packets_received"] = sum(s.log.packets_appended for s in self._shards)
        counters["bytes_received"] = sum(s.log.packet_bytes_appended for s in self._shards)
        counters["dropped_batches"] = self._hub.dropped_batches
        counters["uncommitted_bytes"] = sum(s.lane.log.uncommitted_bytes for s in self._shards)
        counters["sessions_held"] = sum(shard.held_count for shard in self._shards)
        return NodeStatus(
            node=self._config.node.id,
            epoch=self._epoch,
            gateway=GatewayStatus(
                pid=os.getpid(),
                driver=self._core.driver.name,
                sessions=len(self._table.sessions),
            ),
            workers=[self._worker_status(shard) for shard in self._shards],
            spares=self._spares.status(),
            links=[] if self._links is None else self._links.status(),
            counters=dict(sorted(counters.items())),
        )

    def _worker_status(self, shard: Shard) -> WorkerStatus:
        return self._supervisor.worker_status(
            shard.index,
            shard.lane.kind,
            self._workers.life(shard.index),
            self._phase is not DrainPhase.SERVING,
            self._quarantine.in_hand(shard),
        )
