"""Records become handler calls; a call that raises leaves nothing but the end of its session."""

import logging
import math
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import START, Commit
from cluster.shared.records import (
    DISCONNECT,
    SAVE,
    SEND,
    make_record,
)
from cluster.shared.takeover import ReplayedSession
from cluster.worker import App, OutputTooLarge, Session
from cluster.worker.outbox import Outbox
from tests.worker.dispatchers import make_dispatcher, make_runtime
from tests.worker.records import ADDRESS, chunk, closed, opened, packets


class OpenApp(App):
    """An application that takes handlers at any time: a test has one beside what it does."""

    is_running = False


class Bench:
    """A dispatcher with an application that notes its calls."""

    def __init__(self, commit: Commit = START, max_batch_bytes: int = 1 << 20) -> None:
        self.app = OpenApp()
        self.calls: list[Any] = []
        self.commits: list[Commit] = []
        """The commit at each moment at which it could have been published."""
        self.outbox = Outbox(max_batch_bytes)
        self.dispatcher = make_dispatcher(
            self.app, self.outbox, commit, lambda: self.commits.append(self.commit)
        )
        # Put in place, not registered: a test may register its own instead.
        self.app.connected_handler = lambda session: self.calls.append(("connected", session.id))
        self.app.resumed_handler = lambda session: self.calls.append(("resumed", session.id))
        self.app.disconnected_handler = lambda session, cause: self.calls.append(
            ("disconnected", session.id, cause)
        )
        self.app.any_handler = self._any
        self.app._attach(make_runtime(self.outbox))

    def _any(self, session: Session, packet_id: int, payload: bytes) -> None:
        self.calls.append((session.id, session.sequence, packet_id, payload))

    @property
    def commit(self) -> Commit:
        return self.dispatcher.commit

    def run(self, *records: bytes, position: int = 1) -> None:
        self.dispatcher.run(chunk(*records, position=position))


def test_records_become_calls_in_order():
    bench = Bench()
    bench.run(
        opened(1),
        opened(2),
        packets((7, b"a"), (8, b""), session=1),
        packets((9, b"b"), session=2),
        packets((7, b"c"), session=1, first_sequence=3),
        closed(1, "reset"),
        closed(2),
    )
    assert bench.calls == [
        ("connected", 1),
        ("connected", 2),
        (1, 1, 7, b"a"),
        (1, 2, 8, b""),
        (2, 1, 9, b"b"),
        (1, 3, 7, b"c"),
        ("disconnected", 1, "reset"),
        ("disconnected", 2, "eof"),
    ]
    assert bench.dispatcher.sessions == {}
    assert bench.commit == Commit(8, 0)


def test_a_packet_goes_to_the_handler_of_its_id_else_to_the_one_for_all():
    bench = Bench()
    bench.app.on_packet(7)(lambda session, payload: bench.calls.append(("seven", payload)))
    bench.run(opened(), packets((7, b"a"), (8, b"b"), (7, b"c")))
    assert bench.calls[1:] == [("seven", b"a"), (1, 2, 8, b"b"), ("seven", b"c")]


def test_a_packet_that_nobody_handles_is_counted_and_done():
    bench = Bench()
    bench.app.any_handler = None
    bench.app.on_packet(7)(lambda session, payload: bench.calls.append(payload))
    bench.run(opened(), packets((8, b"x"), (7, b"y"), (9, b"z")))
    assert bench.calls[1:] == [b"y"]
    assert bench.dispatcher.calls.unhandled_packets == 2
    assert bench.commit == Commit(3, 0)


def test_a_packet_id_that_nobody_handles_is_told_of_once(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    bench.app.any_handler = None
    bench.app.on_packet(7)(lambda session, payload: None)
    bench.run(opened(), packets((7, b"a"), (8, b"x"), (8, b"y")))
    dropped = f"packet 2 of session 0x1 ({ADDRESS}) is dropped: no handler takes id 8"
    assert [record.getMessage() for record in caplog.records] == [dropped]
    bench.run(packets(*[(number, b"") for number in range(1, 100)]))
    assert caplog.text.count("no handler takes id") == 10


def test_an_application_without_handlers_is_fine():
    dispatcher = make_dispatcher(App(), Outbox(1_000))
    dispatcher.resume(ReplayedSession(id=5, address=ADDRESS))
    dispatcher.run(chunk(opened(), packets((1, b"x")), closed(), closed(5)))
    assert dispatcher.commit == Commit(5, 0)
    assert dispatcher.sessions == {}


def test_a_session_keeps_its_object_and_state_between_calls():
    bench = Bench()
    seen: list[Session] = []
    bench.app.on_any(lambda session, packet_id, payload: seen.append(session))
    bench.run(opened(), packets((1, b"")))
    seen[0].state = "kept"
    bench.run(packets((1, b""), first_sequence=2), position=3)
    assert seen[0] is seen[1]
    assert seen[1].state == "kept"
    assert seen[0].address == ADDRESS


# -- the commit ------------------------------------------------------------------------------------


def test_the_commit_moves_with_every_packet():
    bench = Bench()
    bench.run(opened(), packets((1, b""), (1, b""), (1, b"")), closed())
    assert bench.commits == [
        Commit(2, 0),
        Commit(2, 1),
        Commit(2, 2),
        Commit(3, 0),
        Commit(4, 0),
    ]


def test_during_a_call_its_packet_is_not_done():
    bench = Bench()
    during: list[Commit] = []
    bench.app.on_any(lambda session, packet_id, payload: during.append(bench.commit))
    bench.app.on_connected(lambda session: during.append(bench.commit))
    bench.run(opened(), packets((1, b""), (1, b"")))
    assert during == [Commit(1, 0), Commit(2, 0), Commit(2, 1)]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_successor_does_not_do_again_what_is_done(done: int):
    payloads = [bytes([n]) * n for n in range(4)]
    bench = Bench(Commit(5, done))
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    record = packets(*[(9, payload) for payload in payloads], first_sequence=11)
    bench.run(record, packets((9, b"next"), first_sequence=15), position=5)
    assert bench.calls == [
        ("resumed", 1),
        *[(1, 11 + n, 9, payloads[n]) for n in range(done, 4)],
        (1, 15, 9, b"next"),
    ]
    # What is published never goes back behind the predecessor's commit.
    assert bench.commits == sorted(bench.commits)
    assert bench.commits[0] > Commit(5, done)
    assert bench.commit == Commit(7, 0)


def test_packets_of_a_session_that_is_not_there_are_passed_over():
    bench = Bench()
    bench.run(packets((1, b"x"), (1, b"y"), session=99), opened(), closed(99))
    assert bench.calls == [("connected", 1)]
    assert bench.commit == Commit(4, 0)


# -- ends ------------------------------------------------------------------------------------------


def test_after_its_disconnect_a_session_has_no_calls_but_the_last():
    bench = Bench()
    bench.app.on_packet(1)(lambda session, payload: session.disconnect("kicked"))
    bench.run(
        opened(),
        packets((1, b""), (2, b"behind it")),
        packets((2, b"behind it"), first_sequence=3),
        closed(1, "kicked"),
    )
    assert bench.calls == [("connected", 1), ("disconnected", 1, "kicked")]
    assert bench.commit == Commit(5, 0)


def test_a_session_that_was_taken_over_while_closing_has_no_call_but_the_last():
    bench = Bench(Commit(9, 0))
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS, closing=True))
    bench.dispatcher.resume(ReplayedSession(id=2, address=ADDRESS))
    bench.run(packets((1, b"x")), packets((1, b"y"), session=2), closed(1), position=9)
    assert bench.calls == [("resumed", 2), (2, 1, 1, b"y"), ("disconnected", 1, "eof")]


def test_a_session_that_has_ended_takes_nothing_more():
    bench = Bench()
    kept: list[Session] = []
    bench.app.on_connected(kept.append)
    bench.app.on_disconnected(lambda session, cause: session.send(1, b"replies still leave"))
    bench.run(opened(), closed())
    kept[0].send(1, b"too late")
    kept[0].disconnect()
    assert bench.outbox.entries == [(SEND, 1, make_packet(1, b"replies still leave"))]


# -- handlers that raise ---------------------------------------------------------------------------


def raising(session: Session, payload: bytes) -> None:
    session.send(1, b"discarded")
    raise LookupError("nobody there")


def test_a_handler_that_raises_ends_its_session_only(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    bench.app.on_packet(66)(raising)
    bench.run(
        opened(0x1_0002),
        opened(2),
        packets((1, b""), (66, b""), (1, b"behind"), session=0x1_0002),
        packets((1, b"other"), session=2),
    )
    assert bench.calls[2:] == [(0x1_0002, 1, 1, b""), (2, 1, 1, b"other")]
    assert bench.outbox.entries == [(DISCONNECT, 0x1_0002, b"handler_error")]
    assert bench.commit == Commit(5, 0)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    text = record.getMessage()
    assert "packet id 66" in text
    assert "0x10002" in text
    assert ADDRESS in text
    assert "packet 2" in text
    assert record.exc_info
    assert "nobody there" in caplog.text
    assert "in raising" in caplog.text  # the traceback


@pytest.mark.parametrize("event", ["connected", "resumed"])
def test_an_event_handler_that_raises_ends_its_session(
    event: str, caplog: pytest.LogCaptureFixture
):
    bench = Bench()

    def handler(session: Session) -> None:
        session.send(1, b"discarded")
        raise LookupError("nobody there")

    getattr(bench.app, f"on_{event}")(handler)
    if event == "connected":
        bench.run(opened())
    else:
        bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    assert bench.outbox.entries == [(DISCONNECT, 1, b"handler_error")]
    assert "nobody there" in caplog.text
    assert caplog.messages == [f"on_{event} raised; session 0x1 ({ADDRESS}), packet 0, is ended"]


def test_a_last_handler_that_raises_has_no_session_left_to_end(caplog: pytest.LogCaptureFixture):
    bench = Bench()

    def handler(session: Session, cause: str) -> None:
        session.send(1, b"discarded")
        session.disconnect()
        raise LookupError("nobody there")

    bench.app.on_disconnected(handler)
    bench.run(opened(), closed())
    assert bench.outbox.entries == []
    assert "nobody there" in caplog.text
    assert caplog.messages == [
        f"on_disconnected raised; session 0x1 ({ADDRESS}), packet 0, had ended already"
    ]
    assert bench.commit == Commit(3, 0)


def test_output_of_other_calls_survives_a_call_that_raises():
    bench = Bench()
    bench.app.on_packet(66)(raising)
    bench.app.on_packet(1)(lambda session, payload: session.send(1, payload))
    bench.run(opened(), packets((1, b"before"), (66, b"")))
    assert bench.outbox.entries == [
        (SEND, 1, make_packet(1, b"before")),
        (DISCONNECT, 1, b"handler_error"),
    ]


def test_all_that_a_raising_call_put_out_is_undone_whoever_it_was_for():
    bench = Bench()
    sessions: dict[int, Session] = {}
    bench.app.on_connected(lambda session: sessions.update({session.id: session}))

    def handler(session: Session, payload: bytes) -> None:
        bench.app.broadcast(1, b"to all")
        sessions[2].send(1, b"to another")
        sessions[2].disconnect("kicked")
        session.disconnect("left")
        raise LookupError

    bench.app.on_packet(66)(handler)
    bench.run(opened(1), opened(2), packets((66, b"")), packets((5, b"here"), session=2))
    assert bench.outbox.entries == [(DISCONNECT, 1, b"handler_error")]
    # The other one was not ended after all: it is heard, and can be sent to.
    assert bench.calls == [(2, 1, 5, b"here")]
    assert sessions[2].is_open
    assert not sessions[1].is_open


def test_more_output_than_a_batch_holds_is_an_error_of_that_call(
    caplog: pytest.LogCaptureFixture,
):
    bench = Bench(max_batch_bytes=10_000)

    def handler(session: Session, payload: bytes) -> None:
        while True:
            session.send(1, b"x" * 1_000)

    bench.app.on_packet(66)(handler)
    bench.run(opened(), packets((66, b"")))
    assert bench.outbox.entries == [(DISCONNECT, 1, b"handler_error")]
    assert OutputTooLarge.__name__ in caplog.text


def test_a_handler_may_handle_that_its_output_is_too_large():
    bench = Bench(max_batch_bytes=10_000)

    def handler(session: Session, payload: bytes) -> None:
        with pytest.raises(OutputTooLarge):
            session.send(1, b"x" * 20_000)
        session.send(1, b"sorry")

    bench.app.on_packet(66)(handler)
    bench.run(opened(), packets((66, b"")))
    assert bench.outbox.entries == [(SEND, 1, make_packet(1, b"sorry"))]


def test_a_posted_function_that_raises_is_logged_and_undone(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    kept: list[Session] = []
    bench.app.on_connected(kept.append)
    bench.run(opened())

    def posted() -> None:
        kept[0].send(1, b"discarded")
        kept[0].disconnect()
        raise LookupError("nobody there")

    bench.dispatcher.call(posted)
    assert bench.outbox.entries == []
    assert kept[0].is_open
    assert "nobody there" in caplog.text
    bench.dispatcher.call(lambda: kept[0].send(1, b"sent"))
    assert bench.outbox.entries == [(SEND, 1, make_packet(1, b"sent"))]


def test_what_ends_the_process_is_not_held_up():
    bench = Bench()

    def leave(session: Session, payload: bytes) -> None:
        raise SystemExit(5)

    bench.app.on_packet(66)(leave)
    with pytest.raises(SystemExit):
        bench.run(opened(), packets((66, b"")))


@pytest.mark.parametrize("together", [False, True])
def test_what_is_done_ahead_of_what_ends_the_process_is_in_the_commit(together: bool):
    bench = Bench()

    bench.outbox.publish_at = math.inf

    def leave(session: Session) -> None:
        if session.sequence == 2:
            raise SystemExit(5)
        session.send(66, b"done")

    if together:
        bench.app.packets_handler = lambda session, packets: leave(session)
    else:
        bench.app.on_packet(66)(lambda session, payload: leave(session))
    with pytest.raises(SystemExit):
        bench.run(opened(), packets((66, b"")), packets((66, b""), first_sequence=2), opened(2))
    assert bench.outbox.entries == [(SEND, 1, make_packet(66, b"done"))]
    assert bench.dispatcher.commit == Commit(3, 0)


def test_what_is_done_of_a_record_ahead_of_what_ends_the_process_is_in_the_commit():
    bench = Bench()

    @bench.app.on_packet(66)
    def leave(session: Session, payload: bytes) -> None:
        if session.sequence == 3:
            raise SystemExit(5)
        session.send(66, b"done")

    with pytest.raises(SystemExit):
        bench.run(opened(), packets(*[(66, b"")] * 4))
    assert len(bench.outbox.entries) == 2
    assert bench.dispatcher.commit == Commit(2, 2)


def test_a_record_of_an_unknown_kind_is_logged_and_passed_over(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    bench.run(make_record(99, 1, b"?"), opened())
    assert "record 1 is of unknown kind 99" in caplog.text
    assert bench.calls == [("connected", 1)]


# -- what a predecessor may have done --------------------------------------------------------------


def told(bench: Bench) -> list[Any]:
    """Have the application note what it is told of redelivery; return the notes."""
    notes: list[Any] = []
    bench.app.on_connected(lambda session: notes.append(("connected", session.redelivered)))
    bench.app.on_resumed(lambda session: notes.append(("resumed", session.redelivered)))
    bench.app.on_disconnected(lambda session, _: notes.append(("closed", session.redelivered)))
    bench.app.on_any(lambda session, *_: notes.append((session.sequence, session.redelivered)))
    return notes


@pytest.mark.parametrize("one_chunk", [True, False])
@pytest.mark.parametrize("through", range(4, 11))
def test_a_handler_is_told_of_records_that_a_predecessor_was_sent(through: int, one_chunk: bool):
    bench = Bench(Commit(5, 1))
    notes = told(bench)
    bench.dispatcher.redelivered_through = through
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS, sequence=11))
    records = [
        packets((1, b""), (1, b""), (1, b""), first_sequence=11),
        opened(2),
        packets((1, b""), session=2),
        closed(1),
        closed(2),
    ]
    if one_chunk:
        bench.run(*records, position=5)
    else:
        for position, record in enumerate(records, 5):
            bench.run(record, position=position)
    assert notes == [
        ("resumed", False),
        (12, through >= 5),
        (13, through >= 5),
        ("connected", through >= 6),
        (1, through >= 7),
        ("closed", through >= 8),
        ("closed", through >= 9),
    ]
    assert bench.commit == Commit(10, 0)
    assert bench.commits == sorted(bench.commits)


def test_redelivered_is_told_of_the_session_whose_record_it_is_and_only_meanwhile():
    bench = Bench(Commit(3, 0))
    bench.dispatcher.redelivered_through = 3
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    bench.dispatcher.resume(ReplayedSession(id=2, address=ADDRESS))
    one, two = (bench.dispatcher.sessions[number] for number in (1, 2))
    seen: list[Any] = []

    def handler(session: Session, packet_id: int, payload: bytes) -> None:
        seen.append((one.redelivered, two.redelivered))
        if payload == b"raise":
            raise LookupError

    bench.app.on_any(handler)
    bench.run(packets((1, b"raise")), packets((1, b""), session=2), position=3)
    bench.dispatcher.call(lambda: seen.append((one.redelivered, two.redelivered)))
    assert seen == [(True, False), (False, False), (False, False)]


def test_a_session_is_not_redelivering_after_a_handler_that_ended_the_call_otherwise():
    bench = Bench(Commit(3, 0))
    bench.dispatcher.redelivered_through = 9

    def leave(session: Session, packet_id: int, payload: bytes) -> None:
        raise SystemExit(5)

    bench.app.on_any(leave)
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    with pytest.raises(SystemExit):
        bench.run(packets((1, b"")), position=3)
    assert not bench.dispatcher.sessions[1].redelivered


def test_a_session_that_is_taken_over_knows_what_was_saved_and_how_far_it_is():
    bench = Bench(Commit(9, 0))
    seen: list[Any] = []
    bench.app.on_resumed(lambda session: seen.append((session.saved, session.sequence)))
    bench.app.on_disconnected(lambda session, _: seen.append((session.saved, session.sequence)))
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS, sequence=41, saved=b"state"))
    bench.dispatcher.resume(
        ReplayedSession(
            id=2, address=ADDRESS, closing=True, sequence=5, saved=b"of one that is closing"
        )
    )
    bench.run(closed(1), closed(2), position=9)
    assert seen == [(b"state", 41), (b"state", 41), (b"of one that is closing", 5)]


# -- saving ----------------------------------------------------------------------------------------


def test_a_call_that_raises_takes_its_saves_back():
    bench = Bench()
    sessions: dict[int, Session] = {}
    bench.app.on_connected(lambda session: sessions.update({session.id: session}))

    def handler(session: Session, payload: bytes) -> None:
        session.save(b"kept of " + payload)
        if payload == b"bad":
            session.save(b"once more")
            sessions[2].save(b"of another")
            session.disconnect()
            raise LookupError

    bench.app.on_packet(1)(handler)
    bench.run(opened(1), opened(2), packets((1, b"good")))
    bench.run(packets((1, b"bad"), first_sequence=2), position=4)
    assert sessions[1].saved == b"kept of good"
    assert sessions[2].saved is None
    assert bench.outbox.entries == [
        (SAVE, 1, b"kept of good"),
        (DISCONNECT, 1, b"handler_error"),
    ]
    bench.outbox.clear()

    def posted() -> None:
        sessions[1].save(b"discarded")
        raise LookupError

    bench.dispatcher.call(posted)
    assert sessions[1].saved == b"kept of good"
    assert bench.outbox.entries == []
    bench.dispatcher.call(lambda: sessions[1].save(b"posted"))
    assert sessions[1].saved == b"posted"
    assert bench.outbox.entries == [(SAVE, 1, b"posted")]


def test_what_is_saved_at_the_end_is_put_out_and_later_nothing():
    bench = Bench()
    kept: list[Session] = []
    bench.app.on_connected(kept.append)
    bench.app.on_disconnected(lambda session, cause: session.save(b"at the end"))
    bench.run(opened(), closed())
    kept[0].save(b"too late")
    assert bench.outbox.entries == [(SAVE, 1, b"at the end")]


# -- large outputs ---------------------------------------------------------------------------------


def test_a_call_may_put_out_as_much_as_any_other_whatever_was_put_out_before_it():
    size = 1_000 - 4 - 16
    bench = Bench(max_batch_bytes=10_000)
    refused: list[int] = []

    def handler(session: Session, payload: bytes) -> None:
        count = 0
        try:
            while True:
                session.send(1, b"x" * size)
                count += 1
        except OutputTooLarge:
            refused.append(count)

    bench.app.on_packet(1)(handler)
    bench.run(opened(), packets(*[(1, b"")] * 5))
    assert refused == [10] * 5
    assert len(bench.outbox.entries) == 50


def test_a_call_that_puts_out_too_much_does_not_harm_those_before_it():
    bench = Bench(max_batch_bytes=10_000)

    def handler(session: Session, payload: bytes) -> None:
        session.send(1, payload)
        if payload == b"too much":
            session.save(b"x" * 9_000)
            session.send(1, b"x" * 9_000)

    bench.app.on_packet(1)(handler)
    bench.run(opened(), packets((1, b"a"), (1, b"b"), (1, b"too much"), (1, b"behind")))
    assert bench.outbox.entries == [
        (SEND, 1, make_packet(1, b"a")),
        (SEND, 1, make_packet(1, b"b")),
        (DISCONNECT, 1, b"handler_error"),
    ]
    assert bench.dispatcher.sessions[1].saved is None


def test_what_a_handler_returns_goes_nowhere_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
):
    bench = Bench()
    bench.app.on_packet(7)(lambda session, payload: payload.upper())
    bench.app.on_packet(8)(lambda session, payload: session.send(8, payload))
    bench.run(opened(), packets((7, b"a"), (7, b"b"), (8, b"c")))
    assert caplog.text.count("the handler of packet id 7 has returned bytes") == 1
    assert "packet id 8" not in caplog.text


def test_how_often_it_is_told_does_not_depend_on_clients(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    bench.app.any_handler = lambda session, packet_id, payload: packet_id
    bench.run(opened(), packets(*[(number, b"") for number in range(1, 100)]))
    assert caplog.text.count("that goes nowhere") == 10
