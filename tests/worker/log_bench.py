"""What tests of bounded logs need: a clock that is turned by hand, and a session to tell of."""

from cluster.worker import Session
from cluster.worker.outbox import Outbox
from tests.worker.records import ADDRESS


class Clock:
    """A clock in seconds, called for its time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_session() -> Session:
    """Return a session that no worker knows."""
    return Session(7, ADDRESS, Outbox(1 << 20), 65_531)
