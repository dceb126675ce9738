"""What a worker notes of what it has in hand, as seen from within each handler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.shared.lane import START, Commit
from cluster.shared.note import HandlerCall, create_note, open_note
from cluster.shared.records import BOUND, make_record
from cluster.shared.takeover import ReplayedSession
from cluster.shared.user_records import BindResult, Bound, pack_bound
from cluster.worker import App
from cluster.worker.outbox import Outbox
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, opened, packets


class Noted:
    """A dispatcher whose handlers look at the note."""

    def __init__(self, path: Path, commit: Commit = START) -> None:
        self.reader = create_note(path)
        self.writer = open_note(path)
        self.seen: list[Any] = []
        self.app = App()
        self.app.on_connected(lambda session: self._look())
        self.app.on_resumed(lambda session: self._look())
        self.app.on_disconnected(lambda session, cause: self._look())
        self.app.on_bound(lambda session, result: self._look())
        self.app.on_any(lambda session, packet_id, payload: self._look())
        outbox = Outbox(1 << 20)
        self.dispatcher = make_dispatcher(self.app, outbox, commit, self._between, note=self.writer)
        outbox.publish_at = float("inf")
        self.published = 0

    def in_hand(self) -> HandlerCall | None:
        noted = self.reader.read()
        return None if noted is None else noted[0]

    def _look(self) -> None:
        self.seen.append(self.in_hand())

    def _between(self) -> None:
        self.published += 1

    def run(self, *records: bytes, position: int = 1) -> None:
        self.dispatcher.run(chunk(*records, position=position))
        assert self.in_hand() is None


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Noted]:
    made = Noted(tmp_path / "note")
    yield made
    made.reader.close()


def test_each_call_is_noted_while_it_runs(noted: Noted):
    noted.run(opened(1), packets((1, b"a"), (2, b"b")), packets((1, b"c")), closed(1))
    assert noted.seen == [
        HandlerCall(1, 0),
        HandlerCall(2, 0),
        HandlerCall(2, 1),
        HandlerCall(3, 0),
        HandlerCall(4, 0),
    ]


def test_an_answer_to_a_bind_is_noted_while_its_handler_runs(noted: Noted):
    noted.app.on_packet(9)(lambda session, payload: session.bind("ann"))
    bound = make_record(BOUND, 1, pack_bound(Bound(BindResult.BOUND, 1, "ann")))
    noted.run(opened(1), packets((9, b"")), bound, packets((1, b"a")))
    assert noted.seen == [HandlerCall(1, 0), HandlerCall(3, 0), HandlerCall(4, 0)]


def test_a_successor_notes_the_same_calls_as_its_predecessor(tmp_path: Path):
    noted = Noted(tmp_path / "note", Commit(7, 2))
    noted.dispatcher.resume(ReplayedSession(id=5, address=ADDRESS))
    assert noted.in_hand() is None
    noted.run(packets((1, b"a"), (1, b"b"), (1, b"c"), session=5), position=7)
    assert noted.seen == [HandlerCall(0, 0, 5), HandlerCall(7, 2)]
    noted.reader.close()


def test_packets_that_no_handler_gets_are_not_noted(noted: Noted):
    noted.app.on_packet(9)(lambda session, payload: session.disconnect())
    noted.run(opened(1), packets((9, b""), (1, b"behind the end")))
    assert noted.seen == [HandlerCall(1, 0)]


def test_a_call_that_raises_is_not_in_hand_after_it(noted: Noted):
    def fail(session: object, payload: bytes) -> None:
        raise ValueError

    noted.app.on_packet(9)(fail)
    noted.run(opened(1), packets((9, b"")))


def test_a_handler_that_ends_the_process_leaves_its_note(noted: Noted):
    def leave(session: object, payload: bytes) -> None:
        raise SystemExit(1)

    noted.app.on_packet(9)(leave)
    with pytest.raises(SystemExit):
        noted.run(opened(1), packets((1, b""), (9, b"")))
    assert noted.in_hand() == HandlerCall(2, 1)
