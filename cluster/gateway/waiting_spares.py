"""The spares of a gateway: processes that have imported the application and wait for a shard.

The supervisor decides which of them gets which shard, because it knows who has died, and whether
a successor is due. The gateway knows them by their control connections: it grants what was
assigned as soon as both are known, the shard's vacancy and the spare, in whichever order they
come.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from cluster.gateway.counters import Counters
from cluster.shared.config import WorkersConfig
from cluster.shared.liveness import Liveness
from cluster.shared.messages import (
    ControlMessage,
    GatewayAlive,
    Hello,
    Refuse,
    SpareHello,
    SpareReport,
    Stop,
)
from cluster.shared.node_status import SpareStatus
from cluster.shared.process import is_same_process

__all__ = ["WaitingSpares"]

logger = logging.getLogger("cluster.gateway")


class _Spare(NamedTuple):
    """One process that waits."""

    control_identity: bytes
    hello: SpareHello
    liveness: Liveness


class WaitingSpares:
    """Who waits, and for whom a shard is meant. For the dispatching thread."""

    def __init__(
        self,
        config: WorkersConfig,
        counters: Counters,
        send: Callable[[bytes, ControlMessage], bool],
        report: Callable[[SpareReport], None],
        grant: Callable[[bytes, Hello], None],
        now: Callable[[], float],
    ) -> None:
        """Let as many processes wait as there are to be spares, each until it is silent.

        `grant` answers the hello of a process that has been given a shard, as that of one which
        has asked for it; `report` tells the supervisor.
        """
        self._spares_max = config.spares
        self._timeout_s = config.worker_timeout_s
        self._counters = counters
        self._send = send
        self._report = report
        self._grant = grant
        self._now = now
        self._candidates_max = 0
        self._waiting: dict[int, _Spare] = {}  # by pid, in order of arrival
        self._assigned: list[int | None] = [None] * config.count
        """For each shard the process that is to have it and has not come yet."""

    def status(self) -> list[SpareStatus]:
        """Return those that wait, as `cluster status` shows them."""
        return [SpareStatus(pid=pid) for pid in self._waiting]

    # -- what they and the supervisor say ----------------------------------------------------------

    def allow_candidates(self, candidates_max: int) -> None:
        """Let so many processes wait beside the spares: the supervisor means to replace workers."""
        self._candidates_max = candidates_max

    def hello(self, control_identity: bytes, hello: SpareHello) -> None:
        """A spare is there: grant what is meant for it, else let it wait."""
        if hello.pid in self._assigned:
            shard = self._assigned.index(hello.pid)
            self._assigned[shard] = None
            self._hand_over(shard, control_identity, hello)
            return
        if self._is_full:
            self._forget_dead()
        if self._is_full:
            reason = (
                f"this node keeps {self._spares_max} spares (workers.spares), and all are there"
            )
            logger.warning("refused process %d: %s", hello.pid, reason)
            self._counters.add("workers_refused")
            self._send(control_identity, Refuse(reason=reason))
            return
        liveness = Liveness(self._timeout_s, self._now())
        self._waiting[hello.pid] = _Spare(control_identity, hello, liveness)
        self._tell(hello.pid)

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= self._spares_max + self._candidates_max

    def alive(self, control_identity: bytes) -> None:
        """Take a spare's sign of life. That of one which was given a shard may come late."""
        for spare in self._waiting.values():
            if spare.control_identity == control_identity:
                spare.liveness.heard(self._now(), (), False)

    def assign(self, shard: int, pid: int) -> None:
        """The supervisor gives `shard`, which is vacant, to spare `pid`."""
        if not 0 <= shard < len(self._assigned):
            self._counters.add("control_refused")
            return
        spare = self._waiting.pop(pid, None)
        if spare is None:
            self._assigned[shard] = pid  # until its hello
            return
        self._assigned[shard] = None
        self._hand_over(shard, spare.control_identity, spare.hello)

    def gone(self, pid: int) -> None:
        """The supervisor says that a process is dead: it waits no more, nor is waited for."""
        self._waiting.pop(pid, None)
        for shard, expected in enumerate(self._assigned):
            if expected == pid:
                self._assigned[shard] = None

    def tell_all(self) -> None:
        """Tell a supervisor that has just come who waits."""
        for pid in self._waiting:
            self._tell(pid)

    def _hand_over(self, shard: int, control_identity: bytes, spare: SpareHello) -> None:
        self._counters.add("spares_used")
        hello = Hello(
            shard=shard,
            pid=spare.pid,
            create_time=spare.create_time,
            public_ids=spare.public_ids,
            keeps_sessions=spare.keeps_sessions,
        )
        self._grant(control_identity, hello)

    # -- signs of life -----------------------------------------------------------------------------

    def beat(self) -> None:
        """Tell each spare that the gateway works, and drop those that have shown no life."""
        self._forget_dead()
        now = self._now()
        for spare in list(self._waiting.values()):
            reason = spare.liveness.verdict(now)
            if reason is None:
                self._send(spare.control_identity, GatewayAlive())
                continue
            pid = spare.hello.pid
            logger.error("dropped spare process %d: %s", pid, reason)
            self._counters.add("spares_dropped")
            del self._waiting[pid]
            self._report(SpareReport(pid=pid, state="stuck"))

    def stop_all(self) -> bool:
        """Tell every spare that all is done; return whether any is still there to be told."""
        told = [self._send(spare.control_identity, Stop()) for spare in self._waiting.values()]
        return any(told)

    def _forget_dead(self) -> None:
        # Their supervisor reaps them sooner, unless it is busy or they have none.
        for spare in list(self._waiting.values()):
            if not is_same_process(spare.hello.pid, spare.hello.create_time):
                del self._waiting[spare.hello.pid]

    def _tell(self, pid: int) -> None:
        self._report(SpareReport(pid=pid, state="ready"))
