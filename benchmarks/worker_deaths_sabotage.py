"""The application of `benchmarks.worker_deaths --sabotage`: its worker breaks the commit.

It publishes what handlers have sent ahead of the commit that belongs to it, so that a death between
the two repeats replies.
"""

import time

from cluster.worker.echo import app
from cluster.worker.publisher import Publisher

__all__ = ["app"]

BETWEEN_S = 0.002
"""Output and commit are apart by so long, so that not every death misses it."""

_publish = Publisher.publish


def _publish_output_first(self: Publisher) -> None:
    if self._outbox.entries:
        while not self._lane.publish(self._published, self._outbox.records()):
            self._backlog.take_in()
        self._outbox.clear()
        time.sleep(BETWEEN_S)
    _publish(self)


Publisher.publish = _publish_output_first  # type: ignore[method-assign]
