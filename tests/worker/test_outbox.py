"""The outbox joins what it may and keeps every order that a client could see."""

from collections import defaultdict
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import (
    BIND,
    BROADCAST,
    DISCONNECT,
    DONE,
    FORGET,
    KEEP,
    RECORD_BYTES,
    SAVE,
    SEND,
    SEND_TO,
    UNBIND,
    make_record,
)
from cluster.worker.outbox import Outbox, OutputTooLarge
from cluster.worker.packet_stream import Packets
from cluster.worker.session import Session
from tests.record_reader import iter_records

SESSIONS = (1, 2, 3)


@cache
def session_of(outbox: Outbox, number: int) -> Session:
    return Session(number, "", outbox, 100)


def add(outbox: Outbox, kind: int, number: int, payload: bytes) -> None:
    """Put something out as it is, also if it is a send."""
    if kind == SEND:
        session_of(outbox, number).send_packets(Packets(payload, 1))
    else:
        outbox.add(kind, number, payload)


def test_sends_of_one_session_become_one_record():
    outbox = Outbox(1_000)
    for session, payload in ((1, b"a"), (2, b"b"), (1, b"c"), (2, b"d"), (3, b"e")):
        add(outbox, SEND, session, payload)
    assert outbox.records() == [
        make_record(SEND, 1, b"ac"),
        make_record(SEND, 2, b"bd"),
        make_record(SEND, 3, b"e"),
    ]


def test_a_broadcast_comes_after_what_was_sent_before_it_and_before_the_rest():
    outbox = Outbox(1_000)
    add(outbox, SEND, 1, b"a")
    outbox.add(BROADCAST, 0, b"to all")
    add(outbox, SEND, 1, b"b")
    assert outbox.records() == [
        make_record(SEND, 1, b"a"),
        make_record(BROADCAST, 0, b"to all"),
        make_record(SEND, 1, b"b"),
    ]


@pytest.mark.parametrize("kind", [SEND_TO, BIND])
def test_what_may_reach_or_end_any_session_comes_after_what_was_sent_before_it(kind: int):
    outbox = Outbox(1_000)
    add(outbox, SEND, 1, b"a")
    add(outbox, SEND, 2, b"b")
    add(outbox, kind, 3, b"for somebody")
    add(outbox, SEND, 1, b"c")
    assert outbox.records() == [
        make_record(SEND, 1, b"a"),
        make_record(SEND, 2, b"b"),
        make_record(kind, 3, b"for somebody"),
        make_record(SEND, 1, b"c"),
    ]


def test_an_unbind_keeps_its_place_among_what_is_sent_to_users():
    outbox = Outbox(1_000)
    for kind, session in ((SEND_TO, 0), (UNBIND, 1), (SEND_TO, 0)):
        add(outbox, kind, session, b"x")
    kinds = [record.kind for record in iter_records(b"".join(outbox.records()))]
    assert kinds == [SEND_TO, UNBIND, SEND_TO]


def test_the_end_of_a_session_comes_after_what_was_sent_to_it():
    outbox = Outbox(1_000)
    add(outbox, SEND, 2, b"other")
    add(outbox, SEND, 1, b"a")
    outbox.add(DISCONNECT, 1, b"kicked")
    add(outbox, SEND, 2, b"wise")
    assert outbox.records() == [
        make_record(SEND, 1, b"a"),
        make_record(DISCONNECT, 1, b"kicked"),
        make_record(SEND, 2, b"otherwise"),
    ]


def test_of_what_is_saved_for_a_session_only_the_last_is_written():
    outbox = Outbox(1_000)
    for kind, session, payload in (
        (SAVE, 1, b"first"),
        (SEND, 1, b"a"),
        (SAVE, 2, b"other"),
        (BROADCAST, 0, b"all"),
        (SAVE, 1, b"last"),
        (DISCONNECT, 1, b"bye"),
        (SEND, 2, b"b"),
    ):
        add(outbox, kind, session, payload)
    assert outbox.records() == [
        make_record(SEND, 1, b"a"),
        make_record(BROADCAST, 0, b"all"),
        make_record(DISCONNECT, 1, b"bye"),
        make_record(SEND, 2, b"b"),
        make_record(SAVE, 1, b"last"),
        make_record(SAVE, 2, b"other"),
    ]


def test_of_what_is_saved_for_the_shard_only_the_last_of_each_name_is_written():
    outbox = Outbox(1_000)
    for kind, session, payload in (
        (KEEP, 0, b"\x01afirst"),
        (KEEP, 0, b"\x02absecond"),
        (SEND, 1, b"a"),
        (FORGET, 0, b"ab"),
        (KEEP, 0, b"\x01b"),
        (FORGET, 0, b"b"),
        (KEEP, 0, b"\x01alast"),
        (SEND, 1, b"b"),
        (SAVE, 1, b"its own"),
        (DONE, 1, b"x" * 10),
    ):
        add(outbox, kind, session, payload)
    assert outbox.records() == [
        make_record(SEND, 1, b"ab"),
        make_record(SAVE, 1, b"its own"),
        make_record(KEEP, 0, b"\x01alast"),
        make_record(FORGET, 0, b"ab"),
        make_record(FORGET, 0, b"b"),
        make_record(DONE, 1, b"x" * 10),
    ]


def test_records_leaves_the_log_as_it_is_until_it_is_cleared():
    outbox = Outbox(1_000)
    add(outbox, SEND, 1, b"a")
    assert outbox.records() == outbox.records()
    add(outbox, SEND, 1, b"b")
    assert outbox.records() == [make_record(SEND, 1, b"ab")]
    outbox.clear()
    assert outbox.records() == outbox.entries == []
    assert outbox.num_bytes == 0


def test_sends_of_a_session_that_follow_one_another_are_one_run_until_something_comes_between():
    outbox = Outbox(1_000)
    one, other = (Session(number, "", outbox, 100) for number in (1, 2))
    for session in (one, one, other, one, one):
        session.send(1)
    one.save(b"")
    one.send(2)
    first, second = make_packet(1, b""), make_packet(2, b"")
    *sends, save, last = outbox.runs
    assert sends == [
        [make_record(SEND, 1, first), first],
        make_record(SEND, 2, first),
        [make_record(SEND, 1, first), first],
    ]
    assert isinstance(save, tuple)
    assert save[:3] == (SAVE, 1, b"")
    assert last == make_record(SEND, 1, second)
    assert outbox.records()[:2] == [
        make_record(SEND, 1, first * 4 + second),
        make_record(SEND, 2, first),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(SESSIONS), st.booleans()), max_size=12), st.integers(0, 12)
)
def test_a_batch_of_sends_alone_is_one_record_for_each_session(
    numbers: list[tuple[int, bool]], taken: int
):
    outbox = Outbox(1 << 20)
    sessions = {number: Session(number, "", outbox, 100) for number in SESSIONS}
    for _ in range(2):  # what is remembered of one batch is of no meaning in the next
        sent: defaultdict[int, bytes] = defaultdict(bytes)
        for count, (number, as_several) in enumerate(numbers):
            mark = outbox.mark()
            if as_several:
                sessions[number].send_packets([(number, b"%d" % count)])
            else:
                sessions[number].send(number, b"%d" % count)
            if count == taken:
                outbox.take_back(mark)
            else:
                sent[number] += make_packet(number, b"%d" % count)
        records = outbox.records()
        assert sorted(records) == sorted(make_record(SEND, *item) for item in sent.items())
        outbox.clear()
        assert len(records) == len(sent)


def test_a_run_goes_on_behind_a_publish_and_behind_what_was_taken_back_as_if_it_were_new():
    outbox = Outbox(1_000)
    session = Session(1, "", outbox, 100)
    session.send(1)
    mark = outbox.mark()
    session.send(2)
    session.save(b"")
    session.send(3)
    outbox.take_back(mark)
    session.send(4)
    assert outbox.entries == [(SEND, 1, make_packet(1, b"")), (SEND, 1, make_packet(4, b""))]
    outbox.clear()
    session.send(5)
    assert outbox.records() == [make_record(SEND, 1, make_packet(5, b""))]


def test_what_is_taken_back_was_never_there():
    outbox = Outbox(1_000)
    add(outbox, SEND, 1, b"stays")
    mark = outbox.mark()
    add(outbox, SEND, 1, b"goes")
    outbox.add(BROADCAST, 0, b"goes too")
    outbox.take_back(mark)
    assert outbox.records() == [make_record(SEND, 1, b"stays")]
    assert outbox.mark() == mark
    outbox.take_back(mark)
    assert outbox.entries == [(SEND, 1, b"stays")]


def test_what_is_taken_back_is_undone_the_last_first_and_nothing_else():
    outbox = Outbox(1_000)
    undone: list[str] = []
    outbox.add(SAVE, 1, b"", (undone.append, "stays"))
    mark = outbox.mark()
    outbox.add(SAVE, 1, b"", (undone.append, "first"))
    outbox.add(BROADCAST, 0, b"")
    outbox.add(UNBIND, 1, b"", (undone.append, "last"))
    with pytest.raises(OutputTooLarge):
        outbox.add(SAVE, 1, b"x" * 1_000, (undone.append, "never put out"))
    outbox.take_back(mark)
    outbox.take_back(mark)
    assert undone == ["last", "first"]
    outbox.clear()
    outbox.take_back(0)
    assert undone == ["last", "first"]


def test_the_bound_is_exact_and_what_does_not_fit_is_not_taken():
    outbox = Outbox(2 * RECORD_BYTES + 10)
    outbox.add(SAVE, 1, b"x" * 5)
    with pytest.raises(OutputTooLarge, match="allows 42"):
        outbox.add(SAVE, 2, b"x" * 6)
    assert outbox.num_bytes == RECORD_BYTES + 5
    outbox.add(SAVE, 2, b"x" * 5)
    with pytest.raises(OutputTooLarge):
        outbox.add(SAVE, 3, b"")
    assert len(outbox.entries) == 2


@pytest.mark.parametrize("earlier", [0, 1, 60, 61, 500])
def test_the_bound_is_that_of_one_call_whatever_was_put_out_before_it(earlier: int):
    outbox = Outbox(60)
    for _ in range(earlier):
        outbox.mark()
        outbox.add(SAVE, 1, b"")
    before = outbox.num_bytes
    outbox.mark()
    outbox.add(SAVE, 1, b"x" * (60 - 2 * RECORD_BYTES))
    outbox.add(SAVE, 1, b"")
    with pytest.raises(OutputTooLarge, match=f"{60 + RECORD_BYTES} bytes of output in one handler"):
        outbox.add(SAVE, 1, b"")
    assert outbox.num_bytes == before + 60
    outbox.clear()
    outbox.add(SAVE, 1, b"x" * (60 - RECORD_BYTES))


SEVERAL = -2

OUTPUTS = st.lists(
    st.one_of(
        st.tuples(st.just(SEND), st.sampled_from(SESSIONS), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just(SEVERAL), st.sampled_from(SESSIONS), st.binary(max_size=3)),
        st.tuples(st.just(BROADCAST), st.just(0), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just(DISCONNECT), st.sampled_from(SESSIONS), st.just(b"bye")),
        st.tuples(st.just(-1), st.integers(0, 5), st.just(b"")),  # take back the last few
    ),
    max_size=40,
)


def seen_by_clients(entries: list[tuple[int, int, bytes]]) -> dict[int, list[bytes]]:
    """Return, for each client, the bytes between the events that it can tell apart."""
    seen: defaultdict[int, list[bytes]] = defaultdict(lambda: [b""])
    for kind, session, payload in entries:
        if kind == SEND:
            seen[session][-1] += payload
        elif kind == BROADCAST:
            for one in SESSIONS:
                seen[one][-1] += payload
        else:
            seen[session] += [b"end", b""]
    return dict(seen)


@given(OUTPUTS)
def test_every_client_sees_what_was_put_out_in_that_order(outputs: list[tuple[int, int, bytes]]):
    outbox = Outbox(1 << 20)
    sessions = {number: Session(number, "", outbox, 100) for number in SESSIONS}
    model: list[tuple[int, int, bytes]] = []
    marks = [outbox.mark()]
    for kind, session, payload in outputs:
        if kind == -1:
            keep = max(0, len(model) - session)
            outbox.take_back(marks[keep])
            del model[keep:], marks[keep + 1 :]
        elif kind == SEND:
            sessions[session].send(1, payload)
            model.append((SEND, session, make_packet(1, payload)))
            marks.append(outbox.mark())
        elif kind == SEVERAL:
            sessions[session].send_packets([(byte, payload) for byte in payload])
            if payload:
                packets = [make_packet(byte, payload) for byte in payload]
                model.append((SEND, session, b"".join(packets)))
                marks.append(outbox.mark())
        else:
            add(outbox, kind, session, payload)
            model.append((kind, session, payload))
            marks.append(outbox.mark())
        assert outbox.entries == model
        assert outbox.num_bytes == sum(RECORD_BYTES + len(payload) for _, _, payload in model)
    chunk = b"".join(outbox.records())
    assert len(chunk) <= outbox.num_bytes
    published = [(r.kind, r.session, bytes(r.payload)) for r in iter_records(chunk)]
    assert seen_by_clients(published) == seen_by_clients(model)
    # Between two broadcasts, no session has two records of its own without an end in between.
    last: dict[int, int] = {}
    for kind, session, _ in published:
        if kind == BROADCAST:
            last.clear()
        else:
            assert not (kind == SEND and last.get(session) == SEND)
            last[session] = kind
