"""The lanes of all shards on their shared socket, and what their workers publish on them."""

import logging
from collections.abc import Callable, Sequence

from cluster.gateway.control import ZmqWatch
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.shard import Shard
from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject
from cluster.shared.lane import LaneViolation
from cluster.shared.records import RecordError
from cluster.shared.zmq_lane import ZmqLaneHub

__all__ = ["LaneRunner"]

logger = logging.getLogger("cluster.gateway")

MESSAGES_PER_TURN = 64
FLUSH_RETRY_S = 0.005


class LaneRunner(IocpObject):
    """Drains outbound always, flushes inbound once for each batch of completions."""

    __slots__ = (
        "_appliers",
        "_core",
        "_event",
        "_hub",
        "_on_commit",
        "_on_violation",
        "_retry",
        "_shards",
        "_watch",
    )

    def __init__(
        self,
        core: IocpCore,
        hub: ZmqLaneHub,
        shards: Sequence[Shard],
        appliers: Sequence[OutboundApplier],
        on_commit: Callable[[Shard], None],
        on_violation: Callable[[Shard, str], None],
    ) -> None:
        """Run the lanes of `shards`.

        `on_commit` hears of each applied batch; `on_violation` of a worker that broke the
        contract, and fences it.
        """
        self.handle = None
        self._core = core
        self._hub = hub
        self._shards = shards
        self._appliers = appliers
        self._on_commit = on_commit
        self._on_violation = on_violation
        self._event = IocpEvent(EventType.POST)
        self._retry = False
        self._watch = ZmqWatch(core, hub.fileno(), self._pump)

    def flush(self) -> None:
        """Show the workers what this batch of completions brought. Call it after each dispatch."""
        flushed = False
        for shard in self._shards:
            if shard.needs_flush:
                shard.needs_flush = False
                flushed = True
                if not shard.lane.flush() and shard.lane.is_open:
                    shard.needs_flush = True
                    self._retry_later()
        if flushed:
            self._watch.check()
            # What that brought may have to be flushed in turn: do not sleep on it.
            if not self._retry and any(shard.needs_flush for shard in self._shards):
                self._come_back()

    def drain(self) -> None:
        """Take and apply everything that workers have published and that has arrived.

        Fan-outs are brought to their end: what a dead worker published counts as a whole.
        """
        while self._pump():
            pass
        for shard, applier in zip(self._shards, self._appliers, strict=True):
            while applier.is_fanning_out:
                self._run(shard, applier)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        for shard, applier in zip(self._shards, self._appliers, strict=True):
            if applier.is_fanning_out:
                self._run(shard, applier)

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def _pump(self) -> bool:
        lanes, more = self._hub.pump(MESSAGES_PER_TURN)
        if lanes:
            for shard, applier in zip(self._shards, self._appliers, strict=True):
                if shard.lane.has_received and not applier.is_fanning_out:
                    self._run(shard, applier)
        return more

    def _run(self, shard: Shard, applier: OutboundApplier) -> None:
        """Apply what has come on one lane, until a fan-out takes longer than its slice."""
        lane = shard.lane
        try:
            if applier.is_fanning_out:
                batch = applier.batch
                finished = applier.advance()
            else:
                batch = lane.receive()
                finished = batch is not None and applier.start(batch)
            while batch is not None and finished:
                shard.committed(lane.apply(batch))
                self._on_commit(shard)
                batch = lane.receive()
                finished = batch is not None and applier.start(batch)
        except (LaneViolation, RecordError) as error:
            applier.abandon()
            self._on_violation(shard, str(error))
            return
        if lane.needs_flush or lane.log.has_unsent:
            shard.needs_flush = True
        shard.resume_sessions()
        if applier.is_fanning_out:
            self._come_back()

    def _come_back(self) -> None:
        """Have `dispatch` called in the next batch of completions."""
        if self._event.owner is None:
            self._event.owner = self
            self._core.post(self._event)

    def _retry_later(self) -> None:
        if not self._retry:
            self._retry = True
            self._core.call_later(FLUSH_RETRY_S, self._retry_flush)

    def _retry_flush(self) -> None:
        self._retry = False  # the flush itself follows: this ran inside a dispatch
