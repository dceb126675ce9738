"""Suspects run with everything before them committed; what is set aside does not run at all."""

from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import START, Commit
from cluster.shared.records import BOUND, DISCONNECT, SEND, make_record
from cluster.shared.takeover import ReplayedSession, Suspect
from cluster.shared.user_records import BindResult, Bound, pack_bound
from cluster.worker import App, Session
from cluster.worker.outbox import Outbox
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, opened, packets


class Bench:
    """A careful dispatcher; what it does, and what it commits, stands in `log` in order."""

    def __init__(self, *suspects: tuple[int, int, bool], commit: Commit = START) -> None:
        self.log: list[Any] = []
        self.settled: list[Any] = []
        """What was done, and put out, each time."""
        self.outbox = Outbox(1 << 20)
        app = App()
        app.on_connected(lambda session: self.log.append(("connected", session.id)))
        app.on_disconnected(lambda session, cause: self.log.append(("end", session.id, cause)))
        app.on_bound(
            lambda session, result: self.log.append(("bound", session.id, result, session.user))
        )
        app.on_any(self._any)
        self.dispatcher = make_dispatcher(
            app,
            self.outbox,
            commit,
            suspects=[Suspect(position=p, index=i, is_set_aside=aside) for p, i, aside in suspects],
            settle=self._settle,
        )
        self.outbox.publish_at = float("inf")

    def _any(self, session: Session, packet_id: int, payload: bytes) -> None:
        self.log.append((session.id, session.sequence, payload))
        if packet_id == BIND:
            session.bind("ann")
        else:
            session.send(packet_id, payload)

    def _settle(self) -> None:
        self.log.append(self.dispatcher.commit)
        self.settled.append((self.dispatcher.commit, self.outbox.entries))
        self.outbox.clear()

    def run(self, *records: bytes, position: int = 1) -> None:
        self.dispatcher.run(chunk(*records, position=position))

    def commits(self) -> list[Commit]:
        return [each for each in self.log if isinstance(each, Commit)]


BIND = 2
BOUND_RECORD = make_record(BOUND, 1, pack_bound(Bound(BindResult.BOUND, 1, "ann")))
ABC = packets((1, b"a"), (1, b"b"), (1, b"c"))


def test_what_comes_before_a_suspect_is_committed_before_it_runs():
    bench = Bench((2, 1, False))
    bench.run(opened(1), ABC, packets((1, b"d"), first_sequence=4))
    assert bench.log == [
        ("connected", 1),
        (1, 1, b"a"),
        Commit(2, 1),
        (1, 2, b"b"),
        (1, 3, b"c"),
        Commit(3, 0),
        (1, 4, b"d"),
    ]
    assert bench.dispatcher.commit == Commit(4, 0)


def test_a_packet_that_is_set_aside_is_skipped_and_its_session_ended():
    bench = Bench((3, 1, True))
    bench.run(opened(1), opened(2), ABC, packets((1, b"other"), session=2))
    assert bench.log == [
        ("connected", 1),
        ("connected", 2),
        (1, 1, b"a"),
        Commit(3, 1),
        Commit(4, 0),
        (2, 1, b"other"),
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_end_of_a_session_leaves_with_the_commit_that_skips_its_packet(index: int):
    bench = Bench((2, index, True))
    bench.run(opened(1), ABC)
    before = [(SEND, 1, make_packet(1, payload)) for payload in (b"a", b"b", b"c")[:index]]
    assert bench.settled == [
        (Commit(2, index), before),
        (Commit(3, 0), [(DISCONNECT, 1, b"poison")]),
    ]


def test_a_suspect_at_the_very_commit_is_met_there():
    bench = Bench((7, 2, False), commit=Commit(7, 2))
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    bench.run(ABC, position=7)
    assert bench.log == [Commit(7, 2), (1, 3, b"c"), Commit(8, 0)]


def test_several_suspects_of_one_record_are_met_in_order():
    bench = Bench((2, 0, False), (2, 2, True), (3, 0, False))
    bench.run(opened(1), ABC, closed(1))
    assert bench.log == [
        ("connected", 1),
        Commit(2, 0),
        (1, 1, b"a"),
        (1, 2, b"b"),
        Commit(2, 2),
        Commit(3, 0),
        Commit(3, 0),
        ("end", 1, "eof"),
        Commit(4, 0),
    ]


def test_behind_a_packet_that_is_set_aside_nothing_of_its_session_runs():
    bench = Bench((2, 0, True), (2, 2, True))
    bench.run(opened(1), ABC, packets((1, b"d"), first_sequence=4), closed(1, "poison"))
    assert [each for each in bench.log if not isinstance(each, Commit)] == [
        ("connected", 1),
        ("end", 1, "poison"),
    ]
    assert bench.commits() == [Commit(2, 0), Commit(2, 2), Commit(3, 0)]


def test_on_connected_that_is_set_aside_is_skipped_and_the_end_still_told():
    bench = Bench((1, 0, True))
    bench.run(opened(1), ABC, closed(1, "poison"))
    assert bench.log == [Commit(1, 0), Commit(2, 0), ("end", 1, "poison")]


def test_on_disconnected_that_is_set_aside_is_skipped():
    bench = Bench((2, 0, True))
    bench.run(opened(1), closed(1), opened(2))
    assert bench.log == [("connected", 1), Commit(2, 0), Commit(3, 0), ("connected", 2)]
    assert list(bench.dispatcher.sessions) == [2]


def test_a_suspect_whose_session_nobody_knows_harms_nothing():
    bench = Bench((1, 0, True), (2, 0, True))
    bench.run(ABC, closed(1), opened(2))
    assert bench.log[-1] == ("connected", 2)
    assert bench.commits() == bench.log[:-1]
    assert bench.commits()[-1] == Commit(3, 0)


def test_a_suspect_may_come_in_a_later_chunk():
    bench = Bench((3, 0, False))
    bench.run(opened(1), packets((1, b"a")))
    assert bench.commits() == []
    bench.run(packets((1, b"b"), first_sequence=2), position=3)
    assert bench.commits() == [Commit(3, 0), Commit(4, 0)]
    bench.run(closed(1), position=4)
    assert bench.log[-1] == ("end", 1, "eof")
    assert len(bench.commits()) == 2


def test_on_bound_that_is_a_suspect_runs_with_everything_before_it_committed():
    bench = Bench((3, 0, False))
    bench.run(opened(1), packets((BIND, b"")), BOUND_RECORD, packets((1, b"b"), first_sequence=2))
    assert bench.log == [
        ("connected", 1),
        (1, 1, b""),
        Commit(3, 0),
        ("bound", 1, "bound", "ann"),
        Commit(4, 0),
        (1, 2, b"b"),
    ]


def test_on_bound_that_is_set_aside_is_skipped_and_its_session_ended_as_that_user():
    bench = Bench((3, 0, True))
    bench.run(opened(1), packets((BIND, b"")), BOUND_RECORD, packets((1, b"b"), first_sequence=2))
    assert bench.log == [("connected", 1), (1, 1, b""), Commit(3, 0), Commit(4, 0)]
    assert bench.dispatcher.sessions[1].user == "ann"
