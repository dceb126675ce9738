"""Wires a gateway: completion port, sessions, lanes, control plane. One thread, one loop.

Everything that decides stands in a file of its own; this one only connects the parts. After
each batch of completions the lanes are flushed once.
"""

import logging
import os
import secrets

from cluster.gateway.counters import Counters
from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.gateway.drain import DrainPhase
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.listen_error import told_as
from cluster.gateway.local_door import LocalDoor
from cluster.gateway.membership.membership import Membership
from cluster.gateway.next_turn import NextTurn
from cluster.gateway.note_files import NoteFiles
from cluster.gateway.other_nodes import OtherNodes
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.door import RemoteDoor, RemoteKeys
from cluster.gateway.remote.remote_control import RemoteControl
from cluster.gateway.status_report import StatusReport
from cluster.gateway.supervisor_link import SupervisorLink
from cluster.gateway.waiting_spares import WaitingSpares
from cluster.iocp import IocpCore
from cluster.iocp.timers import Timer
from cluster.shared.config import Config
from cluster.shared.liveness import beat_interval_s
from cluster.shared.messages import (
    Assign,
    ControlMessage,
    Drain,
    EndWorker,
    GatewayReady,
    Hello,
    Reload,
    Reloaded,
    ShardGivenUp,
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
from cluster.shared.run_directory import RunDirectory

__all__ = ["Gateway"]

logger = logging.getLogger("cluster.gateway")

DRAIN_TIMEOUT_MAX_S = 86_400
"""As the configuration allows; a message may say anything."""

LAST_WORDS_MS = 500
"""Time for the last control messages of a drain to leave, and for workers to act on them: a
connection that ends under IMMEDIATE takes with it what its peer has not read yet."""


class Gateway:
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
        self._config = config
        self._core = core
        self._life = life = GatewayLife(config.node.id, epoch, secrets.randbits(64))
        self._wake = NextTurn(core, lambda: None)
        """Has the loop look at the drain."""
        self._drain_timeout_s = config.supervisor.drain_timeout_s
        self._drain_requested = False
        self.has_used_up_ids = False
        """Whether it has drained because nearly all session ids of its epoch were used, and not
        because anybody had asked for that."""
        self._counters = Counters()
        # The first, because its address is the one that somebody else may have.
        self._remote_door = None if remote_keys is None else self._open_remote_door(remote_keys)
        self._local_door = LocalDoor(config, directory, core, self._take_message)
        self._control = self._local_door.control
        self._supervisor = SupervisorLink(self._control.send, config.workers.count)
        self._quarantine = Quarantine(
            life,
            config.workers.count,
            config.workers.max_redeliveries,
            NoteFiles(directory.path),
            DeadLetterFile(directory.path, self._counters),
            self._counters,
        )
        self._serving = GatewayCore(
            config,
            life,
            core,
            self._local_door.hub,
            self._send,
            self._supervisor.report,
            self._counters,
            self._quarantine,
            None if self._remote_door is None else self._remote_door.hub,
        )
        core.deliver_by(self._serving.intake)
        self._local_door.publish()
        self._workers = self._serving.workers
        self._others = OtherNodes(
            config,
            core,
            self._serving.traffic,
            self._counters,
            life.nonce,
            links_secret,
            membership,
        )
        self._spares = WaitingSpares(
            config.workers,
            self._counters,
            self._control.send,
            self._supervisor.report,
            self._workers.hello,
            core.now,
        )
        self._status = StatusReport(
            self._serving,
            self._local_door,
            self._remote_door,
            self._supervisor,
            self._quarantine,
            self._spares,
            self._others,
        )
        self._serving.table.on_ids_running_out = self._end_epoch
        self._beat_interval_s = beat_interval_s(config.workers.worker_timeout_s)
        self._beat_timer: Timer | None = None

    def _open_remote_door(self, keys: RemoteKeys) -> RemoteDoor:
        with told_as("remote.listen", str(self._config.remote.listen)):
            return RemoteDoor(
                self._config,
                keys,
                self._core,
                self._counters,
                lambda identity, hello, peer: self._workers.hello(identity, hello, peer),
                lambda identity, heartbeat: self._workers.heartbeat(identity, heartbeat),
            )

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        """Send to a peer on whichever control plane it is; False when it takes nothing."""
        if self._remote_door is not None and RemoteControl.has(identity):
            return self._remote_door.control.send(identity, message)
        return self._control.send(identity, message)

    def _check_control(self) -> bool:
        """Look for messages whose announcement a send may have swallowed, if any was made."""
        has_looked = self._control.check()
        if self._remote_door is not None and self._remote_door.control.check():
            return True
        return has_looked

    # -- serving -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; raises ListenError when an address cannot be had."""
        service = self._serving.service
        with told_as("node.listen", self._config.node.listen):
            service.start()
        with told_as("links.listen", str(self._config.links.listen)):
            self._others.start()
        self._others.announce(takes_keys=True)
        self._beat()
        ready = GatewayReady(
            pid=os.getpid(),
            node=self._life.node,
            epoch=self._life.epoch,
            listen=str(service.listener.local_address),
            driver=self._core.driver.name,
            lane=self._local_door.hub.kind,
        )
        if self._remote_door is not None:
            shards = ", ".join(map(str, sorted(self._config.remote.shards)))
            address = self._remote_door.listen
            logger.info("workers of shards %s connect at tcp://%s", shards, address)
        logger.info("listening at %s, epoch %d", ready.listen, ready.epoch)
        self._supervisor.set_ready(ready)

    def serve(self) -> None:
        """Dispatch until a drain is through."""
        serving, check_control = self._serving, self._check_control
        lanes, service, links = serving.lanes, serving.service, self._others.links
        while serving.drain.phase is not DrainPhase.DRAINED:
            serving.turn(None)
            if check_control():
                lanes.flush()  # what that brought: a death applies what was published
                check_control()
            service.resume_accepting()
            if links is not None:
                links.flush()
            if self._drain_requested:
                if serving.drain.phase is DrainPhase.SERVING:
                    self._others.announce(takes_keys=False)
                if serving.drain.advance(self._drain_timeout_s):
                    serving.drain.log_undone()
                    self._stop_all()
                    self._supervisor.drained()

    def close(self) -> None:
        """Give everything back. The sessions that are left are reset."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._serving.close()
        if self._serving.drain.phase is DrainPhase.DRAINED:
            deadline = self._core.now() + LAST_WORDS_MS / 1_000
            while self._stop_all() and self._core.now() < deadline:
                self._core.dispatch(0.01)
                self._serving.lanes.receive()
                self._check_control()
            self._others.end(deadline)
        self._others.close()
        self._quarantine.close()
        self._serving.close_lanes()
        if self._remote_door is not None:
            self._remote_door.close(LAST_WORDS_MS)
        self._local_door.close(LAST_WORDS_MS)

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
        self.has_used_up_ids = False  # whoever asks wants it to end, also in the midst of that
        self._wake.ask()

    def _end_epoch(self) -> None:
        """Drain, for the next epoch to begin, in which session ids begin anew."""
        if not self._drain_requested:
            logger.warning(
                "the session ids of epoch %d are nearly used up: it ends, and the next one begins",
                self._life.epoch,
            )
            self.request_drain()
            self.has_used_up_ids = True

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
            case ShardGivenUp(shard=index) if 0 <= index < len(self._serving.shards):
                self._serving.drain.give_up(self._serving.shards[index])
            case EndWorker(shard=index, pid=pid):
                self._workers.ask_to_end(index, pid)
            case Reload():
                self._supervisor.reload(identity)
            case Reloaded():
                if not message.is_refusal:
                    self._counters.add("reloads" if message.succeeded else "reloads_failed")
                self._supervisor.reloaded(message)
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
                self._control.send(identity, StatusReply(status=self._status.make()))
            case Drain(timeout_s=timeout_s) if 0 <= timeout_s <= DRAIN_TIMEOUT_MAX_S:
                self.request_drain(timeout_s)
            case _:
                self._counters.add("control_refused")
