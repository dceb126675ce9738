"""The workers of a gateway: who asks for a shard, who has it, who is lost.

A shard has one life at a time. A process that asks for a shard gets it only when the
predecessor is known dead; a life that breaks the lane contract, or gives no sign for
`worker_timeout_s`, is fenced: nothing that it publishes from then on is applied. A worker on
another machine counts as dead when its connection has ended, without which it is of no use.

What a successor is told of its sessions is put together in portions, with the packets of other
shards in between. Until that is done the shard is vacant, and whoever is to have it waits.
"""

import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

from cluster.gateway.counters import Counters
from cluster.gateway.grants import Grants
from cluster.gateway.remote.remote_control import RemotePeer
from cluster.gateway.replay import Replay
from cluster.gateway.shard import Shard
from cluster.gateway.worker_life import Applicant, WorkerLife
from cluster.iocp import IocpCore
from cluster.shared.lane import LaneState
from cluster.shared.liveness import Liveness
from cluster.shared.messages import (
    ControlMessage,
    GatewayAlive,
    Hello,
    Refuse,
    ShardReport,
    Stop,
    WorkerCounts,
    WorkerHeartbeat,
)
from cluster.shared.process import is_same_process

__all__ = ["Workers"]

logger = logging.getLogger("cluster.gateway")

SESSIONS_PER_TURN = 1_000
"""Those that a successor is told of before others get their turn: about 1 ms."""


class _Heir(NamedTuple):
    """A process that is to have a shard as soon as everything that it is told is put together."""

    applicant: Applicant
    replay: Replay


class Workers:
    """Grants shards and watches over their lives. For the dispatching thread."""

    def __init__(
        self,
        grants: Grants,
        counters: Counters,
        send: Callable[[bytes, ControlMessage], bool],
        report: Callable[[ShardReport], None],
        on_fenced: Callable[[Shard], None],
        drain_lane: Callable[[Shard], None],
        core: IocpCore,
        auth_timeout_s: float = 0.0,
    ) -> None:
        """Give out the shards of `grants`, answer workers by `send`, and tell the supervisor by
        `report`.

        `on_fenced` lets go of what a shard's fenced life had in hand; `drain_lane` applies
        everything that was published so far. The supervisor is told nothing of the shards that are
        for workers on other machines. With `auth_timeout_s` above 0 it is logged, once, if a worker
        lets nothing through to log in by.
        """
        self._grants = grants
        self._shards = grants.shards
        self._counters = counters
        self._send = send
        self._report = report
        self._on_fenced = on_fenced
        self._drain_lane = drain_lane
        self._core = core
        self._quarantine = grants.quarantine
        self._auth_timeout_s = auth_timeout_s
        self._heirs: list[_Heir | None] = [None] * len(grants.shards)
        self._lives: list[WorkerLife | None] = [None] * len(grants.shards)
        self._lives_begun = [0] * len(grants.shards)
        self._by_identity: dict[bytes, WorkerLife] = {}
        self._has_stopped = False
        """Whether all were told that all is done: nobody is granted anything any more."""

    def life(self, shard_index: int) -> WorkerLife | None:
        """Return who has the shard now."""
        return self._lives[shard_index]

    def lives_begun(self, shard_index: int) -> int:
        """Return how many workers the shard has had, under this gateway."""
        return self._lives_begun[shard_index]

    def is_remote(self, shard_index: int) -> bool:
        """Whether the shard is for workers on other machines."""
        return self._grants.is_remote(shard_index)

    # -- grants ------------------------------------------------------------------------------------

    def hello(self, control_identity: bytes, hello: Hello, peer: RemotePeer | None = None) -> None:
        """Grant the shard that a process asks for, or refuse and say why.

        `peer` is who asks from another machine.
        """
        applicant = Applicant(control_identity, hello, peer)
        refusal = self._grants.refusal(hello, peer)
        if refusal is not None:
            self._refuse(applicant, refusal)
            return
        heir = self._heirs[hello.shard]
        if heir is not None and not self._is_gone(heir.applicant, GatewayAlive()):
            self._refuse_held(applicant, heir.applicant)
            return
        shard, life = self._shards[hello.shard], self._lives[hello.shard]
        if life is not None and not self._is_gone(life.applicant, life.heartbeat()):
            self._refuse_held(applicant, life.applicant)
            return
        self.vacate(hello.shard)
        if peer is not None and self._quarantine is not None:
            self._quarantine.told(shard, hello.past)
        self._heirs[hello.shard] = heir = _Heir(applicant, shard.begin_replay())
        self._go_on_with(heir)

    def _go_on_with(self, heir: _Heir) -> None:
        """Tell `heir` of some more sessions, and grant the shard if that was all."""
        shard_index = heir.applicant.hello.shard
        if self._heirs[shard_index] is not heir or self._has_stopped:
            return
        if not heir.replay.advance(SESSIONS_PER_TURN):
            self._core.call_later(0, lambda: self._go_on_with(heir))
            return
        self._heirs[shard_index] = None
        self._grant(heir)

    def _is_gone(self, holder: Applicant, sign: ControlMessage) -> bool:
        """Whether a process is no more; one elsewhere is given that sign of life to see."""
        if holder.peer is None:
            return not is_same_process(holder.hello.pid, holder.hello.create_time)
        return not self._send(holder.control_identity, sign)

    def _refuse_held(self, applicant: Applicant, holder: Applicant) -> None:
        held = f"shard {applicant.hello.shard} is held by process {holder.hello.pid}"
        if holder.peer is None:
            self._refuse(applicant, f"{held}; stop that one first")
            return
        reason = (
            f"{held} of {holder.peer}, whose connection stands; stop that one first, or wait "
            f"{self._grants.identity.worker_timeout_s:g} s if it has died"
        )
        self._refuse(applicant, reason, is_temporary=True)

    def _refuse(self, applicant: Applicant, reason: str, is_temporary: bool = False) -> None:
        logger.warning("refused process %d: %s", applicant.hello.pid, reason)
        self._counters.add("workers_refused")
        self._send(applicant.control_identity, Refuse(reason=reason, is_temporary=is_temporary))

    def _grant(self, heir: _Heir) -> None:
        applicant, hello = heir.applicant, heir.applicant.hello
        shard = self._shards[hello.shard]
        incarnation, lane_identity = self._grants.next_incarnation(shard)
        try:
            commit = shard.lane.grant(incarnation, lane_identity)
        except OSError as error:
            reason = f"there is no lane for it: {error.strerror}"
            self._refuse(applicant, reason, is_temporary=True)
            return
        liveness = Liveness(self._grants.identity.worker_timeout_s, self._core.now())
        life = WorkerLife(applicant, shard, incarnation, liveness)
        self._lives[shard.index] = self._by_identity[life.control_identity] = life
        self._lives_begun[shard.index] += 1
        if life.peer is not None:
            logger.info("shard %d: process %d of %s has it", shard.index, life.pid, life.peer)
        shard.flow.learn(frozenset(hello.public_ids))
        shard.drain.learn(hello.keeps_sessions)
        if self._auth_timeout_s and not hello.public_ids:
            logger.warning(
                "limits.auth_timeout_s is %g, and the application has no packet handler with "
                "public=True: sessions that on_connected does not accept or bind end then",
                self._auth_timeout_s,
            )
            self._auth_timeout_s = 0.0  # it has been said
        grant = self._grants.make(shard, incarnation, lane_identity, commit, heir.replay.told)
        if not self._send(life.control_identity, grant):
            self.fence(shard, "it left before its grant")

    # -- ends --------------------------------------------------------------------------------------

    def ask_to_end(self, shard_index: int, pid: int) -> None:
        """The supervisor wants a worker to end in good order, because another is to succeed it."""
        life = self._life_of(shard_index, pid)
        if life is not None:
            serial = life.shard.lane.serial_applied
            self._send(life.control_identity, Stop(serial_received=serial))

    def gone(self, shard_index: int, pid: int, was_replaced: bool = False) -> None:
        """The supervisor says that a process is dead; its shard is vacant from now on.

        If it `was_replaced`, nothing that it had in hand is blamed for that.
        """
        heir = self._heirs[shard_index] if 0 <= shard_index < len(self._heirs) else None
        if heir is not None and heir.applicant.hello.pid == pid:
            self._heirs[shard_index] = None
        if self._life_of(shard_index, pid) is not None:
            self.vacate(shard_index, was_replaced)

    def _life_of(self, shard_index: int, pid: int) -> WorkerLife | None:
        life = self._lives[shard_index] if 0 <= shard_index < len(self._lives) else None
        return life if life is not None and life.pid == pid else None

    def vacate(self, shard_index: int, was_replaced: bool = False) -> None:
        """End the life of a process that is dead, after applying what it had published."""
        life = self._lives[shard_index]
        if life is None:
            return
        self._drain_lane(life.shard)
        # Unless it was fenced for its last words.
        if self._lives[shard_index] is not None and self._end(life, was_replaced):
            self._tell_supervisor(life, "ended", set_aside=True)

    def fence(self, shard: Shard, reason: str) -> None:
        """End a life that cannot be trusted any more, dead or not."""
        life = self._lives[shard.index]
        if life is not None:
            self._cut_off(life, "fenced", reason)

    def _cut_off(
        self,
        life: WorkerLife,
        state: Literal["stuck", "fenced"],
        reason: str,
        silent_s: float = 0.0,
    ) -> None:
        """End a life that is to have no effect any more; it has not worked for `silent_s` s."""
        logger.error("shard %d: fenced process %d: %s", life.shard.index, life.pid, reason)
        self._counters.add("workers_fenced")
        self._send(life.control_identity, Refuse(reason=f"fenced: {reason}"))
        set_aside = self._end(life)
        self._tell_supervisor(life, state, set_aside, silent_s, reason)

    def _tell_supervisor(
        self,
        life: WorkerLife,
        state: Literal["ready", "stuck", "fenced", "ended"],
        set_aside: bool = False,
        silent_s: float = 0.0,
        reason: str = "",
    ) -> None:
        if not self.is_remote(life.shard.index):
            self._report(
                ShardReport(
                    shard=life.shard.index,
                    pid=life.pid,
                    state=state,
                    committed=life.committed_told,
                    set_aside=set_aside,
                    silent_s=silent_s,
                    reason=reason,
                )
            )

    def _end(self, life: WorkerLife, was_replaced: bool = False) -> bool:
        """Take its shard from `life`; True if that led to something being set aside."""
        shard = life.shard
        self._lives[shard.index] = None
        self._by_identity.pop(life.control_identity, None)
        if shard.lane.state is LaneState.GRANTED:
            shard.lane.revoke()
        self._on_fenced(shard)
        return self._quarantine is not None and self._quarantine.end_life(shard, was_replaced)

    # -- signs of life -----------------------------------------------------------------------------

    def committed(self, shard: Shard) -> None:
        """A batch of the shard's life was applied; the first one shows that it took over."""
        life = self._lives[shard.index]
        if life is None:
            return
        if not life.is_ready:
            life.is_ready = True
        elif life.committed_told or not life.has_progressed:
            return
        else:
            life.committed_told = True
        self._tell_supervisor(life, "ready")

    def tell(self, shard_index: int) -> None:
        """Tell the supervisor that the shard's life is ready, if it is."""
        life = self._lives[shard_index]
        if life is not None and life.is_ready:
            self._tell_supervisor(life, "ready")

    def heartbeat(self, control_identity: bytes, heartbeat: WorkerHeartbeat) -> None:
        """Take a worker's sign of life."""
        life = self._by_identity.get(control_identity)
        if life is None:
            self._send(control_identity, Refuse(reason="this incarnation has no shard any more"))
            return
        lane = life.shard.lane
        # A worker that waits for room is not exempt: it takes in what comes, and has published
        # no more than what has arrived here. What has arrived and waits, behind a long fan-out
        # for one, is not lost.
        behind = heartbeat.position_received < lane.log.sent_position or (
            not lane.has_received and lane.serial_received < heartbeat.serial_sent
        )
        progress = (heartbeat.position_received, lane.serial_received)
        life.liveness.heard(self._core.now(), progress, behind)
        life.shard.heard_ahead(heartbeat.heard_ahead)
        for name in WorkerCounts.__struct_fields__:
            told, told_before = getattr(heartbeat, name), life.counted.get(name, 0)
            if told > told_before:
                self._counters.add(name, told - told_before)
                life.counted[name] = told
        if heartbeat.wants_answer:
            self._send(control_identity, life.heartbeat())

    def beat(self) -> None:
        """Send each worker a heartbeat, and fence those that have shown no life."""
        now = self._core.now()
        for heir in self._heirs:
            if heir is not None:  # it waits no longer than a gateway may be silent
                self._send(heir.applicant.control_identity, GatewayAlive())
        for shard, life in zip(self._shards, self._lives, strict=True):
            if life is None:
                continue
            if self._is_gone(life.applicant, life.heartbeat()):
                where = "" if life.peer is None else f" of {life.peer}, or its connection,"
                logger.warning("shard %d: process %d%s has ended", shard.index, life.pid, where)
                self.vacate(shard.index)
                continue
            reason = life.liveness.verdict(now)
            if reason is not None:
                # What it published is whole and counts; a fan-out that was cut short would be
                # begun again by the successor.
                self._drain_lane(shard)
                if self._lives[shard.index] is not None:  # or it was fenced for its last words
                    self._cut_off(life, "stuck", reason, silent_s=life.liveness.timeout_s)
            elif life.peer is None:
                self._send(life.control_identity, life.heartbeat())

    def stop_all(self) -> bool:
        """Tell every worker that all is done; return whether any is still there to be told."""
        self._has_stopped = True
        told = [
            self._send(
                who.applicant.control_identity, Stop(serial_received=shard.lane.serial_applied)
            )
            for shard, life, heir in zip(self._shards, self._lives, self._heirs, strict=True)
            if (who := life or heir) is not None
        ]
        return any(told)
