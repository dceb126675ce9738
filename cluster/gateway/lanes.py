"""The lanes of all shards, and what their workers publish on them."""

import logging
from collections.abc import Callable, Sequence

from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.shard import Shard
from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject
from cluster.shared.lane import LaneHub, LaneViolation
from cluster.shared.records import RecordError

__all__ = ["LaneRunner"]

logger = logging.getLogger("cluster.gateway")

MESSAGES_PER_TURN = 64
"""Messages that are taken in one turn, and batches of one lane that are applied."""

FLUSH_RETRY_S = 0.005


class _Watch(IocpObject):
    """Watches one of a hub's descriptors for as long as the hub lives."""

    __slots__ = ("_core", "_event", "_fd", "_ready")

    def __init__(self, core: IocpCore, fd: int, ready: Callable[[int], None]) -> None:
        self.handle = None
        self._core = core
        self._fd = fd
        self._ready = ready
        self._event = IocpEvent(EventType.WATCH)
        self._arm()

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        self._ready(self._fd)
        self._arm()

    def close(self) -> None:
        self._core.driver.cancel(self._event)

    def _arm(self) -> None:
        self._event.owner = self
        self._core.driver.watch(self._fd, self._event)


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
        "_watches",
    )

    def __init__(
        self,
        core: IocpCore,
        hub: LaneHub,
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
        self._watches = [_Watch(core, fd, hub.clear) for fd in hub.descriptors()]
        core.guard_waits(hub)
        self._come_back()  # for what has come before anyone watched

    def receive(self) -> None:
        """Take and apply what workers have published. Call it after each dispatch."""
        if self._pump():
            self._come_back()

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
            # A send may have swallowed the announcement of a message.
            self.receive()
            # What that brought may have to be flushed in turn: do not sleep on it.
            if not self._retry and any(shard.needs_flush for shard in self._shards):
                self._come_back()

    def drain(self) -> None:
        """Take and apply everything that workers have published and that has arrived.

        Fan-outs are brought to their end: what a dead worker published counts as a whole.
        """
        while self._pump() or any(shard.lane.has_received for shard in self._shards):
            for shard, applier in zip(self._shards, self._appliers, strict=True):
                while applier.is_fanning_out:
                    self._run(shard, applier)
        for shard, applier in zip(self._shards, self._appliers, strict=True):
            while applier.is_fanning_out:
                self._run(shard, applier)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        for shard, applier in zip(self._shards, self._appliers, strict=True):
            if applier.is_fanning_out or shard.lane.has_received:
                self._run(shard, applier)

    def close(self) -> None:
        """Stop watching."""
        self._core.guard_waits(None)
        for watch in self._watches:
            watch.close()

    def _pump(self) -> bool:
        more = self._hub.pump(MESSAGES_PER_TURN)
        for shard, applier in zip(self._shards, self._appliers, strict=True):
            if shard.lane.has_received and not applier.is_fanning_out:
                self._run(shard, applier)
        return more

    def _run(self, shard: Shard, applier: OutboundApplier) -> None:
        """Apply what has come on one lane, until its turn is over."""
        lane = shard.lane
        try:
            for _ in range(MESSAGES_PER_TURN):
                if applier.is_fanning_out:
                    batch = applier.batch
                    finished = applier.advance()
                else:
                    batch = lane.receive()
                    finished = batch is not None and applier.start(batch)
                if batch is None or not finished:
                    break
                shard.committed(lane.apply(batch))
                self._on_commit(shard)
        except (LaneViolation, RecordError) as error:
            applier.abandon()
            self._on_violation(shard, str(error))
            return
        if lane.needs_flush or lane.log.has_unsent:
            shard.needs_flush = True
        shard.resume_sessions()
        if applier.is_fanning_out or lane.has_received:
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
