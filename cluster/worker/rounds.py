"""When coroutines take their steps: in rounds, which the worker's loop makes one at a time.

There is one behind each chunk, and where the loop would sleep it is in a round that it does.
Nothing is published in a round; what a step needs to have settled before it is settled behind the
round, for the next one, and output that fills a batch is published there, ahead of the next
handler's. Imported only by workers whose application awaits.
"""

import time
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any

from cluster.shared.lane import WorkerLane
from cluster.worker.coroutines import Coroutines
from cluster.worker.gateway_contact import GatewayContact
from cluster.worker.publisher import Publisher
from cluster.worker.stops import StoppedInStart
from cluster.worker.task_loop import TaskLoop

__all__ = ["Rounds"]

CANCEL_S = 0.5
"""Longest time for coroutines that are cancelled, at the end, to clean up."""


class Rounds:
    """Those of one incarnation. For the loop's thread."""

    def __init__(
        self,
        tasks: TaskLoop,
        coroutines: Coroutines,
        sources: Sequence[int],
        lane: WorkerLane,
        contact: GatewayContact,
        publisher: Publisher,
        now: Callable[[], float],
        pass_time: Callable[[float], float] | None,
    ) -> None:
        """Let `coroutines` go on in `tasks`, which is entered, and wake up for `sources`.

        Where the clock is turned by hand, `pass_time` does that for a wait, by so many seconds at
        most, and returns how long is to be waited by a clock that goes.
        """
        self.tasks = tasks
        self.coroutines = coroutines
        self.has_waited = False
        """Whether the loop had a round that slept since it last found nothing to do."""
        self._lane = lane
        self._contact = contact
        self._publisher = publisher
        self._now = now
        self._pass_time = pass_time
        tasks.enter()
        for source in sources:
            tasks.watch(source)

    def round(self, timeout_s: float) -> None:
        """Let coroutines go on by a step, after a wait of at most `timeout_s` for something."""
        self._round(timeout_s)
        self._publisher.publish_if_large()

    def _round(self, timeout_s: float) -> None:
        coroutines = self.coroutines
        pass_time = self._pass_time
        due = outside_since = None
        if timeout_s > 0.0 and pass_time is not None and not self.tasks.has_ready:
            due = self.tasks.next_due()
            if due is not None:
                timeout_s = max(0.0, min(timeout_s, due - self._now()))
            if self.tasks.awaits_outside:
                outside_since = time.monotonic()  # it takes its time, by a clock that goes
            elif timeout_s > 0.0:
                timeout_s = pass_time(timeout_s)
        for source in coroutines.round(timeout_s):
            self._contact.attend(source)
        if outside_since is not None and pass_time is not None:
            passed = time.monotonic() - outside_since
            pass_time(min(timeout_s, passed) if due is not None else 0.0)
        if coroutines.wants_settled:
            self._publisher.settle()
            coroutines.settled()

    def wait(self, timeout_s: float | None) -> None:
        """Sleep, as `GatewayContact.wait` does; coroutines go on meanwhile, one step at least."""
        contact = self._contact
        if self._pass_time is not None and not self.tasks.has_ready:
            contact.wait(0.0)  # the gateway works in this process, while its worker waits
        left = 0.0
        if not (contact.is_stopping or self._lane.has_events()):
            left = contact.time_to_beat(timeout_s)
        self.round(left)
        self.has_waited = True
        contact.beat()

    def to_end(
        self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = inf
    ) -> BaseException | None:
        """Run what is no handler of a record to its end, alive; return what it raised.

        That is a TimeoutError when it takes more than `timeout_s` seconds. Raises StoppedInStart
        when the worker is told to stop while it has any time.
        """
        contact = self._contact
        try:
            task = self.tasks.start(coroutine)
        except (Exception, SystemExit) as error:
            return error
        until = self._now() + timeout_s
        while not task.done():
            if contact.is_stopping and timeout_s == inf:
                raise StoppedInStart
            # What it puts out is one batch, which nobody has seen if it fails.
            self._round(max(0.0, min(until, contact.next_beat) - self._now()))
            if self._now() >= until and not task.done():
                return TimeoutError(f"it has not come to its end within {timeout_s:g} s")
            contact.beat()
        return RuntimeError("it was cancelled") if task.cancelled() else task.exception()

    def cancel(self) -> None:
        """Have coroutines clean up; what they put out from now on is not sent."""
        self.coroutines.cancel(CANCEL_S)
