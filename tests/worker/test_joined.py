"""`on_joined`: which joins ask for an answer, and which answers the application hears of."""

import logging
from typing import Any

import pytest

from cluster.shared.group_records import read_join
from cluster.shared.records import DEFER, DISCONNECT, JOIN
from cluster.shared.takeover import ReplayedSession, Suspect
from cluster.worker import App, Session
from cluster.worker.outbox import Outbox
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, joined, opened, packets
from tests.worker.test_dispatcher import Bench
from tests.worker.test_groups import written

ENTER, LEAVE, RETURN, FAIL, FAIL_AGAIN, END = range(1, 7)


class Rooms(Bench):
    """An application that joins and leaves as it is told, and writes down its `on_joined`."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, str]] = []
        self.app.on_joined(self._joined)

    def _joined(self, session: Session, name: str) -> None:
        self.heard.append((session.id, name))

    def _any(self, session: Session, packet_id: int, payload: bytes) -> None:
        room = payload.decode()
        if packet_id in (LEAVE, RETURN, FAIL):
            session.leave(room)
        if packet_id in (ENTER, RETURN, FAIL, FAIL_AGAIN):
            session.join(room)
        if packet_id in (FAIL, FAIL_AGAIN):
            raise ValueError("this handler fails")
        if packet_id == END:
            session.disconnect()

    def joins(self) -> list[tuple[int, bytes]]:
        """Return request and group of the joins that were put out."""
        return [read_join(payload) for kind, _, payload in written(self.outbox) if kind == JOIN]


def test_a_join_is_numbered_and_its_answer_is_heard_of():
    rooms = Rooms()
    rooms.dispatcher.run(
        chunk(
            opened(7),
            packets((ENTER, b"room"), (ENTER, b"hall"), session=7),
            joined(7, "hall", 2),
            joined(7, "room", 1),
        )
    )
    assert rooms.joins() == [(1, b"room"), (2, b"hall")]
    assert rooms.heard == [(7, "hall"), (7, "room")]


def test_an_application_that_does_not_listen_asks_for_nothing():
    bench = Bench()

    @bench.app.on_packet(ENTER)
    def enter(session: Session, room: bytes) -> None:
        session.join(room.decode())

    bench.dispatcher.run(
        chunk(opened(7), packets((ENTER, b"room"), session=7), joined(7, "room", 0))
    )
    assert [read_join(each[2]) for each in written(bench.outbox)] == [(0, b"room")]


@pytest.mark.parametrize(
    ("what", "numbers"), [(LEAVE, []), (END, []), (RETURN, [2])], ids=["left", "ended", "again"]
)
def test_the_answer_to_a_join_of_before_is_not_heard_of(what: int, numbers: list[int]):
    rooms = Rooms()
    rooms.dispatcher.run(
        chunk(
            opened(7),
            packets((ENTER, b"room"), (what, b"room"), session=7),
            joined(7, "room", 1),
        )
    )
    assert rooms.heard == []
    rooms.dispatcher.run(chunk(joined(7, "room", 2), position=4))
    assert rooms.heard == [(7, "room") for _ in numbers]


def test_a_call_that_raises_has_left_nothing_and_the_answer_still_counts(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.CRITICAL)
    rooms = Rooms()
    rooms.dispatcher.run(
        chunk(opened(7), packets((ENTER, b"room"), session=7), packets((FAIL, b"room"), session=7))
    )
    session = rooms.dispatcher.sessions[7]
    assert session._member_of == {"room": 1}
    assert rooms.joins() == [(1, b"room")]
    session.is_open = True  # as if it had not been ended for that
    rooms.dispatcher.run(chunk(joined(7, "room", 2), joined(7, "room", 1), position=4))
    assert rooms.heard == [(7, "room")]


def test_a_number_that_was_taken_back_is_not_used_again(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL)
    rooms = Rooms()
    rooms.dispatcher.run(chunk(opened(7), packets((FAIL_AGAIN, b"room"), session=7)))
    session = rooms.dispatcher.sessions[7]
    session.is_open = True
    session.join("room")
    assert rooms.joins() == [(2, b"room")]


def test_a_successor_hears_of_joins_of_its_predecessor_and_numbers_on():
    rooms = Rooms()
    rooms.dispatcher.resume(
        ReplayedSession(
            id=7,
            address=ADDRESS,
            groups=("room", "hall"),
            group_requests=(3, 0),
            join_request=5,
        )
    )
    rooms.dispatcher.run(
        chunk(
            joined(7, "room", 3),
            joined(7, "hall", 4),
            packets((ENTER, b"yard"), session=7),
            joined(7, "yard", 6),
            closed(7),
            joined(7, "room", 3),
        )
    )
    assert rooms.heard == [(7, "room"), (7, "yard")]
    assert rooms.joins() == [(6, b"yard")]


def test_a_handler_that_raises_ends_its_session(caplog: pytest.LogCaptureFixture):
    bench = Bench()

    @bench.app.on_joined
    def fail(session: Session, name: str) -> None:
        session.leave(name)
        raise ValueError(name)

    bench.dispatcher.resume(
        ReplayedSession(
            id=7, address=ADDRESS, groups=("room",), group_requests=(1,), join_request=1
        )
    )
    bench.dispatcher.run(chunk(joined(7, "room", 1)))
    assert written(bench.outbox) == [(DISCONNECT, 7, b"handler_error")]
    assert bench.dispatcher.sessions[7].groups == {"room"}
    assert "ValueError: room" in caplog.text


@pytest.mark.parametrize("is_set_aside", [False, True])
def test_a_suspect_is_met_with_care_and_skipped_when_it_is_set_aside(
    is_set_aside: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL)
    app, outbox = App(), Outbox(1 << 20)
    heard: list[Any] = []
    app.on_joined(lambda session, name: heard.append(name))
    dispatcher = make_dispatcher(
        app,
        outbox,
        suspects=[Suspect(position=1, index=0, is_set_aside=is_set_aside)],
        settle=lambda: heard.append("settled"),
    )
    dispatcher.resume(
        ReplayedSession(
            id=7, address=ADDRESS, groups=("room",), group_requests=(1,), join_request=1
        )
    )
    dispatcher.run(chunk(joined(7, "room", 1)))
    if is_set_aside:
        assert heard == ["settled", "settled"]
        assert written(outbox) == [(DISCONNECT, 7, b"poison")]
    else:
        assert heard == ["settled", "room", "settled"]
    assert dispatcher.commit == (2, 0)
    assert DEFER not in [kind for kind, _, _ in written(outbox)]
