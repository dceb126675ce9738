"""What handlers hear of a client's send queue, and what `is_send_blocked` says in between."""

from typing import Any

from cluster.shared.lane import START, Commit
from cluster.shared.records import ACCEPT, DISCONNECT, SEND, SEND_BLOCKED, SEND_READY, make_record
from cluster.shared.takeover import ReplayedSession, Suspect
from cluster.worker import App, Session
from cluster.worker.outbox import Outbox
from tests.record_reader import iter_records
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, opened, packets

BLOCKED, READY = make_record(SEND_BLOCKED, 1, b""), make_record(SEND_READY, 1, b"")


class Bench:
    """An application that notes what it hears; with suspects its dispatcher is a careful one."""

    def __init__(self, *suspects: Suspect, commit: Commit = START, raises: bool = False) -> None:
        self.calls: list[Any] = []
        self.outbox = Outbox(1 << 20)
        self._raises = raises
        app = App()
        app.on_send_blocked(lambda session: self._note("blocked", session))
        app.on_send_ready(lambda session: self._note("ready", session))
        app.on_any(lambda session, packet_id, payload: self._note("packet", session))
        self.dispatcher = make_dispatcher(app, self.outbox, commit, suspects=suspects)

    def _note(self, what: str, session: Session) -> None:
        self.calls.append((what, session.is_send_blocked))
        session.send(9)
        if self._raises:
            raise ValueError(what)

    def run(self, *records: bytes, position: int = 1) -> None:
        self.dispatcher.run(chunk(*records, position=position))


def test_both_ends_of_a_full_queue_are_told_in_their_place():
    bench = Bench()
    bench.run(opened(1), packets((1, b"")), BLOCKED, packets((1, b""), first_sequence=2), READY)
    assert bench.calls == [
        ("packet", False),
        ("blocked", True),
        ("packet", True),
        ("ready", False),
    ]
    assert bench.dispatcher.commit == Commit(6, 0)
    assert [kind for kind, _, _ in bench.outbox.entries] == [SEND] * 4


def test_without_a_handler_the_session_knows():
    bench = Bench()
    bench.dispatcher = make_dispatcher(App(), bench.outbox)
    bench.run(opened(1), BLOCKED)
    assert bench.dispatcher.sessions[1].is_send_blocked
    bench.run(READY, position=3)
    assert not bench.dispatcher.sessions[1].is_send_blocked


def test_of_a_session_that_has_ended_nothing_is_told():
    bench = Bench()
    bench.run(opened(1), closed(1), BLOCKED, READY)
    assert bench.calls == []
    bench.run(opened(1), position=5)
    bench.dispatcher.sessions[1].disconnect()
    bench.run(BLOCKED, position=6)
    assert bench.calls == []
    assert bench.dispatcher.commit == Commit(7, 0)


def test_a_handler_that_raises_ends_its_session_and_leaves_nothing():
    bench = Bench(raises=True)
    bench.run(opened(1), BLOCKED)
    assert [kind for kind, _, _ in bench.outbox.entries] == [DISCONNECT]
    assert bench.calls == [("blocked", True)]


def test_a_session_that_is_taken_over_is_what_its_workers_were_told():
    bench = Bench(commit=Commit(5, 0))
    for number, is_blocked in ((1, True), (2, False)):
        bench.dispatcher.resume(
            ReplayedSession(id=number, address=ADDRESS, send_blocked=is_blocked)
        )
    assert [session.is_send_blocked for session in bench.dispatcher.sessions.values()] == [
        True,
        False,
    ]
    bench.run(READY, position=5)
    assert bench.calls == [("ready", False)]


def test_a_call_that_killed_a_worker_runs_again_and_is_set_aside_in_the_end():
    again = Bench(Suspect(position=2, index=0, is_set_aside=False))
    again.run(opened(1), BLOCKED, READY)
    assert again.calls == [("blocked", True), ("ready", False)]
    aside = Bench(Suspect(position=2, index=0, is_set_aside=True))
    aside.run(opened(1), BLOCKED, READY)
    assert aside.calls == []
    assert aside.dispatcher.sessions[1].is_send_blocked is False
    assert [payload for _, _, payload in aside.outbox.entries] == [b"poison"]


def test_an_acceptance_keeps_its_place_among_sends():
    bench = Bench()
    bench.run(opened(1))
    session = bench.dispatcher.sessions[1]
    session.send(1, b"before")
    session.accept()
    session.send(1, b"behind")
    records = [record.kind for chunk in bench.outbox.records() for record in iter_records(chunk)]
    assert records == [SEND, ACCEPT, SEND]


def test_an_acceptance_of_a_call_that_raised_is_taken_back():
    bench = Bench()
    app = App()

    @app.on_packet(1)
    def login(session: Session, payload: bytes) -> None:
        session.accept()
        raise ValueError

    bench.dispatcher = make_dispatcher(app, bench.outbox)
    bench.run(opened(1), packets((1, b"")))
    assert [kind for kind, _, _ in bench.outbox.entries] == [DISCONNECT]
