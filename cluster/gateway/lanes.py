"""The lanes of all shards, and what their workers publish on them."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from cluster.gateway.later import Later
from cluster.gateway.next_turn import NextTurn
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.shard import Shard
from cluster.gateway.watch import Watch
from cluster.iocp import IocpCore
from cluster.shared.lane import LaneHub, LaneViolation
from cluster.shared.records import RecordError

__all__ = ["LaneRunner"]

logger = logging.getLogger("cluster.gateway")

MESSAGES_PER_TURN = 64
"""Messages that are taken in one turn, and batches of one lane that are applied."""

BYTES_PER_TURN = 1 << 20
"""Of batches of one lane that are applied in one turn, the last one going over it."""

PUMPS_FOR_THE_DEAD = 256
"""Turns after which everything that a dead worker had sent has been taken off the socket: more
than both of its queues hold."""

BATCH_BYTES = 64
"""What a batch counts for beside its records."""

FLUSH_RETRY_S = 0.005


class LaneRunner:
    """Drains outbound always, flushes inbound once for each batch of completions."""

    __slots__ = (
        "_core",
        "_hub",
        "_next_turn",
        "_on_commit",
        "_on_violation",
        "_pairs",
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
        self._core = core
        self._hub = hub
        self._shards = shards
        self._pairs = list(zip(shards, appliers, strict=True))
        self._on_commit = on_commit
        self._on_violation = on_violation
        self._next_turn = NextTurn(core, self._go_on)
        self._retry = Later(core, FLUSH_RETRY_S, lambda: None)
        """The flush itself follows, as behind each dispatch."""
        self._watches = [Watch(core, fd, partial(hub.clear, fd)) for fd in hub.descriptors()]
        core.guard_waits(hub)
        self._next_turn.ask()  # for what has come before anyone watched

    def receive(self) -> None:
        """Take and apply what workers have published. Call it after each dispatch."""
        if self._hub.pump(MESSAGES_PER_TURN):
            self._next_turn.ask()
        for shard, applier in self._pairs:
            if shard.lane.has_received and applier.batch is None:
                self._run(shard, applier)

    def flush(self) -> None:
        """Show the workers what this batch of completions brought, and read again from clients that
        nothing holds up any more. Call it after each dispatch."""
        flushed = False
        arrived_at = self._core.batch_now
        for shard in self._shards:
            if shard.flow.to_reconsider:
                shard.flow.resume_sessions()
            log = shard.log
            if log.appended_bytes != shard.flushed_bytes:
                shard.flushed_bytes = log.appended_bytes
                shard.commit_times.flushed(log, arrived_at)
            elif not shard.needs_flush:
                continue
            flushed = True
            shard.needs_flush = not shard.lane.flush() and shard.lane.is_open
            if shard.needs_flush:
                self._retry.ask()
        if flushed and self._hub.is_edge_triggered:
            # A send may have swallowed the announcement of a message.
            self.receive()
            # What that brought may have to be flushed in turn: do not sleep on it.
            if not self._retry.is_asked and any(map(_is_flush_due, self._shards)):
                self._next_turn.ask()

    def drain(self, shard: Shard) -> None:
        """Take and apply everything that the worker of `shard` has published up to now.

        A fan-out is brought to its end: what a dead worker published counts as a whole. What one
        that lives publishes meanwhile, and what other workers do, waits for its turn.
        """
        for _ in range(PUMPS_FOR_THE_DEAD):
            if not self._hub.pump(MESSAGES_PER_TURN):
                break
        lane, applier = shard.lane, self._pairs[shard.index][1]
        # No more can lie there: of batches beyond the capacity there is never more than one.
        left = 2 * lane.log.capacity_bytes
        while applier.batch is not None or (left > 0 and lane.has_received):
            left -= self._run(shard, applier)

    def close(self) -> None:
        """Stop watching."""
        self._core.guard_waits(None)
        for watch in self._watches:
            watch.close()

    def _go_on(self) -> None:
        for shard, applier in self._pairs:
            if applier.batch is not None or shard.lane.has_received:
                self._run(shard, applier)

    def _run(self, shard: Shard, applier: OutboundApplier) -> int:
        """Apply what has come on one lane, until its turn is over; return how many bytes."""
        lane = shard.lane
        num_bytes = 0
        has_more = False
        violation = None
        try:
            for _ in range(MESSAGES_PER_TURN):
                batch = applier.batch
                if batch is not None:
                    finished = applier.advance()
                else:
                    batch = lane.receive()
                    finished = batch is not None and applier.start(batch)
                if batch is None or not finished:
                    has_more = batch is not None
                    break
                num_bytes += len(batch.records) + BATCH_BYTES
                shard.committed(lane.apply(batch))
                times = shard.commit_times
                if times.position and times.position < shard.log.committed.position:
                    times.committed(shard.log.committed.position, self._core.now())
                self._on_commit(shard)
                has_more = lane.has_received
                if not has_more or num_bytes >= BYTES_PER_TURN:
                    break
        except (LaneViolation, RecordError) as error:
            violation = str(error)
        if violation is not None:
            applier.abandon()
            self._on_violation(shard, violation)
            return num_bytes
        if lane.needs_flush:
            shard.needs_flush = True
        if has_more:
            self._next_turn.ask()
        return num_bytes


def _is_flush_due(shard: Shard) -> bool:
    return shard.needs_flush or shard.log.appended_bytes != shard.flushed_bytes
