"""The application of `benchmarks.worker_deaths --sabotage`: its worker breaks the commit.

It publishes what handlers have sent ahead of the commit that belongs to it, so that a death between
the two repeats replies.
"""

import time

from cluster.worker import worker as working
from cluster.worker.echo import app

__all__ = ["app"]

BETWEEN_S = 0.002
"""Output and commit are apart by so long, so that not every death misses it."""

_publish = working.Worker._publish


def _publish_output_first(self: working.Worker, is_first: bool = False) -> None:
    if self._outbox.entries and not is_first:
        while not self._lane.publish(self._published, self._outbox.records()):
            self._receive_to_backlog()
        self._outbox.clear()
        time.sleep(BETWEEN_S)
    _publish(self, is_first)


working.Worker._publish = _publish_output_first  # type: ignore[method-assign]
