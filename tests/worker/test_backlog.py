"""What came while the worker waited keeps its place, and may be heard ahead of its turn."""

from collections import deque

from cluster.shared.lane import InboundChunk
from cluster.worker.backlog import Backlog

ONE, TWO, THREE, FOUR = (InboundChunk(position, b"") for position in range(1, 5))


class Lane:
    """A lane of which only what comes matters."""

    def __init__(self) -> None:
        self.coming: deque[InboundChunk] = deque()

    def receive(self) -> InboundChunk | None:
        return self.coming.popleft() if self.coming else None


def make_backlog(*coming: InboundChunk) -> tuple[Backlog, Lane]:
    lane = Lane()
    lane.coming.extend(coming)
    return Backlog(lane), lane  # type: ignore[arg-type]


def test_all_that_has_come_is_taken_in_behind_what_waits():
    backlog, lane = make_backlog(ONE, TWO)
    backlog.take_in()
    lane.coming.append(THREE)
    backlog.take_in()
    assert list(backlog.chunks) == [ONE, TWO, THREE]


def test_who_hears_ahead_hears_what_is_in_hand_what_waits_and_what_comes_once_each():
    backlog, lane = make_backlog(TWO)
    backlog.take_in()
    heard: list[InboundChunk] = []
    backlog.begin_to_hear(ONE, heard.append)
    assert heard == [ONE, TWO]
    lane.coming.append(THREE)
    backlog.take_in()
    assert heard == [ONE, TWO, THREE]
    assert list(backlog.chunks) == [TWO, THREE]


def test_afterwards_what_comes_is_heard_in_its_turn_only():
    backlog, lane = make_backlog()
    heard: list[InboundChunk] = []
    backlog.begin_to_hear(ONE, heard.append)
    backlog.cease_to_hear()
    lane.coming.append(FOUR)
    backlog.take_in()
    assert heard == [ONE]
    assert list(backlog.chunks) == [FOUR]
