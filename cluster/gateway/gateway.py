"""Wires a gateway: completion port, sessions, lanes, control plane. One thread, one loop.

Everything that decides stands in a file of its own; this one only connects the parts. After
each batch of completions the lanes are flushed once.
"""

import logging
import os
import secrets
from collections.abc import Callable

import zmq
from msgspec import UNSET

from cluster.gateway.control import ControlPlane
from cluster.gateway.counters import Counters
from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.gateway.drain import DrainPhase
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.gateway.membership.cluster_members import ClusterMembers
from cluster.gateway.membership.membership import Membership
from cluster.gateway.note_files import NoteFiles
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.door import RemoteDoor, RemoteKeys
from cluster.gateway.remote.remote_control import RemoteControl
from cluster.gateway.remote.remote_shards import remote_worker_status
from cluster.gateway.shard import Shard
from cluster.gateway.spares import Spares
from cluster.gateway.supervisor_link import SupervisorLink
from cluster.iocp import EventType, IocpCore, IocpEvent, NetAddress
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.timers import Timer
from cluster.shared.config import Config, parse_node
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.lane_choice import open_lane_hub
from cluster.shared.messages import (
    Assign,
    ControlMessage,
    Drain,
    EndWorker,
    GatewayReady,
    Hello,
    Reloaded,
    SpareAlive,
    SpareGone,
    SpareHello,
    StatusReply,
    StatusRequest,
    SupervisorHello,
    WorkerGone,
    WorkerHeartbeat,
    WorkerReport,
)
from cluster.shared.node_status import GatewayStatus, MembershipStatus, NodeStatus, WorkerStatus
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
        membership: Membership | None = None,
        remote_keys: RemoteKeys | None = None,
    ) -> None:
        """Bind everything for `config`, and tell where.

        `links_secret` is needed where `config` has `links.listen`, `membership`, which is the
        gateway's from then on, where its list is not static, and `remote_keys` where it has
        `remote.listen`. Raises ListenError for that address, and OSError, zmq.ZMQError or
        RunDirectoryError for what else cannot be. `core` and `directory` stay the caller's.
        """
        self.handle = None
        self._config = config
        self._core = core
        self._epoch = epoch
        self._drain_event = IocpEvent(EventType.POST)
        self._drain_timeout_s = config.supervisor.drain_timeout_s
        self._drain_requested = False
        self._counters = Counters()
        # The first, because its address is the one that somebody else may have.
        self._door = None if remote_keys is None else self._open_door(remote_keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoints = choose_endpoints(directory)
        (control_address, curve), lane_endpoint = endpoints.open()
        socket_path = directory.lane_socket()
        self._hub = open_lane_hub(
            config.lane.kind, socket_path, self._context, lane_endpoint, core.driver.wake_descriptor
        )
        self._control = ControlPlane(
            self._context, control_address, core, self._take_message, curve
        )
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
        self._serving = GatewayCore(
            config,
            epoch,
            life,
            core,
            self._hub,
            self._send,
            self._supervisor.report,
            self._counters,
            self._quarantine,
            None if self._door is None else self._door.hub,
        )
        endpoints.publish(self._control.endpoint)
        self._workers = self._serving.workers
        self._membership = membership
        links_life = life if membership is None else membership.life
        self._links = None if links_secret is None else self._make_links(links_life, links_secret)
        self._serving.traffic.links = self._links
        self._own_keys()
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
        self._beat_interval_s = min(1.0, config.workers.worker_timeout_s / 4)
        self._beat_timer: Timer | None = None

    def _open_door(self, keys: RemoteKeys) -> RemoteDoor:
        try:
            return RemoteDoor(
                self._config,
                keys,
                self._core,
                self._counters,
                lambda identity, hello, peer: self._workers.hello(identity, hello, peer),
                lambda identity, heartbeat: self._workers.heartbeat(identity, heartbeat),
            )
        except OSError as error:
            raise ListenError("remote.listen", str(self._config.remote.listen), error) from error

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        """Send to a peer on whichever control plane it is; False when it takes nothing."""
        if self._door is not None and RemoteControl.has(identity):
            return self._door.control.send(identity, message)
        return self._control.send(identity, message)

    def _check_control(self) -> bool:
        """Look for messages whose announcement a send may have swallowed, if any was made."""
        has_looked = self._control.check()
        if self._door is not None and self._door.control.check():
            return True
        return has_looked

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
            self._serving.traffic,
            timeout_s=links.timeout_s,
            retained_bytes_max=links.retained_bytes_max,
        )

    def _own_keys(self) -> None:
        """Say whose the keys are: of all nodes of the list, or as the membership says."""
        links, traffic = self._links, self._serving.traffic
        if links is not None:
            if self._membership is not None:
                ClusterMembers(self._membership, links, traffic, self._counters)
            else:
                traffic.change_members([traffic.node, *links.nodes])

    # -- serving -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; raises ListenError when an address cannot be had."""
        service = self._serving.service
        self._listen("node.listen", self._config.node.listen, service.start)
        if self._links is not None:
            listen = self._config.links.listen
            self._listen("links.listen", str(listen), self._links.start)
            logger.info("links of node %d at %s", self._config.node.id, self._links.address)
        self._announce(takes_keys=True)
        self._beat()
        ready = GatewayReady(
            pid=os.getpid(),
            node=self._config.node.id,
            epoch=self._epoch,
            listen=str(service.listener.local_address),
            driver=self._core.driver.name,
            lane=self._hub.kind,
        )
        if self._door is not None:
            shards = ", ".join(map(str, sorted(self._config.remote.shards)))
            logger.info("workers of shards %s connect at tcp://%s", shards, self._door.listen)
        logger.info("listening at %s, epoch %d", ready.listen, ready.epoch)
        self._supervisor.set_ready(ready)

    def _announce(self, takes_keys: bool) -> None:
        """Tell the other nodes where this one is, where a store does that."""
        if self._membership is not None and self._links is not None:
            links = self._config.links
            assert links.listen is not None
            host = NetAddress.parse(links.listen).host
            address = links.advertise or str(NetAddress(host, self._links.address.port))
            self._membership.announce(address, takes_keys)

    @staticmethod
    def _listen(key: str, address: str, start: Callable[[], object]) -> None:
        try:
            start()
        except OSError as error:
            raise ListenError(key, address, error) from error

    def serve(self) -> None:
        """Dispatch until a drain is through."""
        serving, check_control = self._serving, self._check_control
        lanes, service, links = serving.lanes, serving.service, self._links
        while serving.phase is not DrainPhase.DRAINED:
            serving.turn(None)
            if check_control():
                lanes.flush()  # what that brought: a death applies what was published
                check_control()
            service.resume_accepting()
            if links is not None:
                links.flush()
            if self._drain_requested:
                if serving.phase is DrainPhase.SERVING:
                    self._announce(takes_keys=False)
                if serving.advance_drain(self._drain_timeout_s):
                    self._finish_drain()

    def close(self) -> None:
        """Give everything back. The sessions that are left are reset."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._serving.close()
        if self._serving.phase is DrainPhase.DRAINED:
            deadline = self._core.now() + LAST_WORDS_MS / 1_000
            while self._stop_all() and self._core.now() < deadline:
                self._core.dispatch(0.01)
                self._serving.lanes.receive()
                self._check_control()
            self._end_links(deadline)
        elif self._links is not None:
            self._links.close()
        if self._membership is not None:
            self._membership.close()
        self._quarantine.close()
        self._serving.close_lanes()
        self._hub.close()
        if self._door is not None:
            self._door.close(LAST_WORDS_MS)
        self._control.close(LAST_WORDS_MS)
        self._context.term()

    def _end_links(self, deadline: float) -> None:
        """Give other nodes what the last batches had for them, and end all connections."""
        links = self._links
        if links is None:
            return
        while not links.is_told and self._core.now() < deadline:
            links.flush()
            self._core.dispatch(0.01)
        links.close()
        while not links.is_over and self._core.now() < deadline:
            self._core.dispatch(0.01)

    def _beat(self) -> None:
        self._workers.beat()
        self._spares.beat()
        self._supervisor.beat()
        self._beat_timer = self._core.call_later(self._beat_interval_s, self._beat)

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

    def _finish_drain(self) -> None:
        sessions = len(self._serving.table.sessions)
        logs = [shard.lane.log for shard in self._serving.shards]
        records = sum(log.position + 1 - log.committed.position for log in logs)
        deferred = sum(s.succession.deferred.count for s in self._serving.shards)
        if sessions or records or deferred:
            logger.warning(
                "the time to drain is up: sessions cut off: %d, records that no worker has "
                "finished: %d, handler calls in coroutines that are not done: %d",
                sessions,
                records,
                deferred,
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
            case WorkerGone(shard=index, pid=pid, was_replaced=was_replaced):
                self._spares.gone(pid)
                self._workers.gone(index, pid, was_replaced)
            case EndWorker(shard=index, pid=pid):
                self._workers.ask_to_end(index, pid)
            case Reloaded(succeeded=succeeded):
                self._counters.add("reloads" if succeeded else "reloads_failed")
            case SpareGone(pid=pid):
                self._spares.gone(pid)
            case Assign(shard=index, pid=pid):
                self._spares.assign(index, pid)
            case WorkerReport():
                self._supervisor.worker_report(message)
            case SupervisorHello():
                self._supervisor.hello(identity)
                self._spares.allow_candidates(message.candidates_max)
                for shard in self._serving.shards:
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
        counters, shards = self._counters.snapshot(), self._serving.shards
        listener = self._serving.service.listener
        counters["accept_errors"] = listener.accept_errors
        counters["connections_refused_full"] = listener.full_refusals
        counters["control_refused"] = counters.get("control_refused", 0) + self._control.refused
        counters["packets_received"] = sum(s.log.packets_appended for s in shards)
        counters["bytes_received"] = sum(s.log.packet_bytes_appended for s in shards)
        counters["dropped_batches"] = self._hub.dropped_batches
        if self._door is not None:
            counters["control_refused"] += self._door.control.refused
            counters["dropped_batches"] += self._door.hub.dropped_batches
        counters["uncommitted_bytes"] = sum(s.lane.log.uncommitted_bytes for s in shards)
        counters["deferred_calls"] = sum(s.succession.deferred.count for s in shards)
        counters["sessions_waiting"] = sum(shard.waiting_count for shard in shards)
        counters["messages_waiting"] = sum(shard.tells.waiting_count for shard in shards)
        counters["tells_on_the_way_bytes"] = sum(
            shard.tells.windows.on_the_way_bytes for shard in shards
        )
        counters["sessions_held"] = sum(shard.held_count for shard in shards)
        return NodeStatus(
            node=self._config.node.id,
            epoch=self._epoch,
            gateway=GatewayStatus(
                pid=os.getpid(),
                driver=self._core.driver.name,
                sessions=len(self._serving.table.sessions),
                remote_listen=UNSET if self._door is None else self._door.listen,
            ),
            workers=[self._worker_status(shard) for shard in shards],
            spares=self._spares.status(),
            links=[] if self._links is None else self._links.status(),
            membership=self._membership_status(),
            counters=dict(sorted(counters.items())),
        )

    def _membership_status(self) -> MembershipStatus | None:
        if self._membership is not None:
            return self._membership.status()
        if self._links is None:
            return None
        members = sorted([self._config.node.id, *self._links.nodes])
        return MembershipStatus(source="static", state="member", members=members)

    def _worker_status(self, shard: Shard) -> WorkerStatus:
        life = self._workers.life(shard.index)
        is_draining = self._serving.phase is not DrainPhase.SERVING
        if self._workers.is_remote(shard.index):
            lives = self._workers.lives_begun(shard.index)
            return remote_worker_status(shard.index, shard.lane.kind, life, lives, is_draining)
        return self._supervisor.worker_status(
            shard.index, shard.lane.kind, life, is_draining, self._quarantine.in_hand(shard)
        )
