"""`on_packets`: what comes together is one call, one step of the commit, and no more than that."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.packet_framing import make_packet
from cluster.shared.codec import Codec
from cluster.shared.lane import START, Commit
from cluster.shared.note import CALL, INDEX_BITS, SEVERAL, NoteWriter
from cluster.shared.records import DISCONNECT, RECORD_BYTES, SEND
from cluster.shared.takeover import ReplayedSession, Suspect
from cluster.worker import App, OutputTooLarge, Packets, Session
from cluster.worker.outbox import Outbox
from cluster.worker.packet_stream import join_packets
from tests.worker.bench import MakeBench
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, opened, packets
from tests.worker.test_coroutines import open_sessions, run, send, sent

ABC = [(1, b"a"), (2, b"bb"), (3, b"ccc")]


class Bench:
    """A dispatcher whose application takes packets together and sends them back."""

    def __init__(
        self, commit: Commit = START, max_batch_bytes: int = 1 << 20, suspects: Any = ()
    ) -> None:
        self.app = App()
        self.calls: list[Any] = []
        self.commits: list[Commit] = []
        self.note = NoteWriter()
        self.outbox = Outbox(max_batch_bytes)
        self.dispatcher = make_dispatcher(
            self.app,
            self.outbox,
            commit,
            lambda: self.commits.append(self.dispatcher.commit),
            note=self.note,
            suspects=suspects,
            settle=lambda: self.calls.append(self.dispatcher.commit),
        )
        self.app.on_packets(self._packets)

    def _packets(self, session: Session, several: Packets) -> None:
        self.calls.append((session.id, session.sequence, list(several)))
        session.send_packets(several)

    def run(self, *records: bytes, position: int = 1) -> None:
        self.dispatcher.run(chunk(*records, position=position))

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        return [(of, payload) for kind, of, payload in self.outbox.entries if kind == SEND]


def stream(*contents: tuple[int, bytes]) -> bytes:
    return b"".join(make_packet(packet_id, payload) for packet_id, payload in contents)


def test_what_came_together_is_one_call_and_one_step_of_the_commit():
    bench = Bench()
    bench.run(opened(), packets(*ABC), packets((4, b"d"), first_sequence=4))
    assert bench.calls == [(1, 1, ABC), (1, 4, [(4, b"d")])]
    assert bench.commits == [Commit(2, 0), Commit(3, 0), Commit(4, 0)]
    assert bench.sent == [(1, stream(*ABC)), (1, stream((4, b"d")))]


def test_during_the_call_all_of_its_packets_are_in_hand_and_behind_it_none():
    bench = Bench()
    seen: list[Any] = []

    def look(session: Session, several: Packets) -> None:
        seen.append((bench.dispatcher.commit, bench.note.words[CALL]))

    bench.app.packets_handler = look
    bench.run(opened(), packets((4, b"d")), packets(*ABC, first_sequence=2))
    assert seen == [
        (Commit(2, 0), 2 << INDEX_BITS),  # one alone is that one
        (Commit(3, 0), (3 << INDEX_BITS) + SEVERAL),
    ]
    assert bench.note.words[CALL] == 0
    assert bench.dispatcher.sessions[1].sequence == 4


def test_a_call_that_raises_leaves_nothing_but_the_end_of_its_session(
    caplog: pytest.LogCaptureFixture,
):
    bench = Bench()

    def fail(session: Session, several: Packets) -> None:
        bench.calls.append(len(several))
        session.send_packets(several)
        raise RuntimeError("no")

    bench.app.packets_handler = fail
    with caplog.at_level(logging.ERROR):
        bench.run(opened(1), opened(2), packets(*ABC), packets((9, b"x"), first_sequence=4))
        bench.app.packets_handler = bench._packets
        bench.run(packets((5, b"y"), session=2), position=5)
        bench.app.packets_handler = fail
        bench.run(packets((6, b"z"), session=2), position=6)
    assert bench.calls == [3, (2, 1, [(5, b"y")]), 1]
    assert bench.outbox.entries == [
        (DISCONNECT, 1, b"handler_error"),
        (SEND, 2, make_packet(5, b"y")),
        (DISCONNECT, 2, b"handler_error"),
    ]
    assert "the handler of 3 packets raised" in caplog.text
    assert "the handler of packet id 6 raised; session 0x2" in caplog.text
    assert "packet 1, is ended" in caplog.text


def test_packets_behind_the_end_of_a_session_reach_nobody():
    bench = Bench()
    bench.app.packets_handler = lambda session, several: session.disconnect()
    bench.run(opened(), packets(*ABC), packets((4, b"d"), first_sequence=4), closed())
    assert bench.outbox.entries == [(DISCONNECT, 1, b"local")]
    assert bench.dispatcher.commit == Commit(5, 0)


def test_a_packet_with_a_handler_of_its_own_goes_to_that_in_its_place():
    bench = Bench()
    bench.app.on_packet(2)(lambda session, payload: bench.calls.append(payload))
    bench.run(opened(), packets(*ABC), packets((1, b"d"), (3, b"e"), first_sequence=4))
    assert bench.calls == [
        (1, 1, [(1, b"a")]),
        b"bb",
        (1, 3, [(3, b"ccc")]),
        (1, 4, [(1, b"d"), (3, b"e")]),
    ]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_what_a_predecessor_may_have_had_comes_one_at_a_time(done: int):
    bench = Bench(Commit(7, done))
    bench.dispatcher.redelivered_through = 7
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS, sequence=10 + done))
    bench.run(packets(*ABC, first_sequence=11), packets(*ABC, first_sequence=14), position=7)
    alone = [(1, 11 + n, [ABC[n]]) for n in range(done, 3)]
    assert bench.calls == [*alone, (1, 14, ABC)]


def test_a_suspect_among_them_is_set_aside_alone():
    bench = Bench(Commit(2, 0), suspects=[Suspect(position=2, index=1, is_set_aside=True)])
    bench.dispatcher.redelivered_through = 2
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS))
    bench.run(packets(*ABC), position=2)
    assert bench.calls == [(1, 1, [ABC[0]]), Commit(2, 1), Commit(3, 0)]
    assert bench.outbox.entries[-1] == (DISCONNECT, 1, b"poison")


def test_all_of_a_call_is_bounded_together():
    bench = Bench(max_batch_bytes=100)
    caught: list[OutputTooLarge] = []

    def send_twice(session: Session, several: Packets) -> None:
        session.send_packets(several)
        try:
            session.send_packets([(1, bytes(22))] * 2)
        except OutputTooLarge as error:
            caught.append(error)

    bench.app.packets_handler = send_twice
    bench.run(opened(), packets(*ABC))
    assert len(caught) == 1
    assert bench.sent == [(1, stream(*ABC))]
    assert bench.outbox.num_bytes == len(stream(*ABC)) + RECORD_BYTES


def test_more_than_one_call_could_send_back_comes_one_at_a_time():
    bench = Bench(max_batch_bytes=len(stream(*ABC)) + RECORD_BYTES - 1)
    bench.run(opened(), packets(*ABC), packets((4, b"d"), first_sequence=4))
    assert bench.calls == [(1, n + 1, [packet]) for n, packet in enumerate([*ABC, (4, b"d")])]
    assert bench.sent == [(1, stream(packet)) for packet in [*ABC, (4, b"d")]]


def test_sends_of_several_and_of_one_keep_their_order_for_each_session():
    bench = Bench()

    def answer(session: Session, several: Packets) -> None:
        session.send(8, b"before")
        session.send_packets(several)
        bench.dispatcher.sessions[1].send_packets([])
        bench.dispatcher.sessions[1].send_packets(several)
        session.send(9, b"behind")

    bench.app.packets_handler = answer
    bench.run(opened(1), opened(2), packets((1, b"x"), (1, b"y"), session=2))
    both = stream((1, b"x"), (1, b"y"))
    assert bench.sent == [
        (2, make_packet(8, b"before")),
        (2, both),
        (1, both),
        (2, make_packet(9, b"behind")),
    ]
    of_two = make_packet(8, b"before") + both + make_packet(9, b"behind")
    assert [(record[8], record[16:]) for record in bench.outbox.records()] == [
        (2, of_two),
        (1, both),
    ]


def test_a_coroutine_gets_one_at_a_time(make_bench: MakeBench):
    bench = make_bench()
    seen: list[Any] = []
    several = [(11, b"a"), (12, b"bb"), (13, b"ccc")]

    @bench.app.on_packets
    async def answer(session: Session, packets: Packets) -> None:
        seen.append(list(packets))
        await asyncio.sleep(0)
        session.send_packets(packets)
        if len(seen) == len(several):
            bench.finish()

    open_sessions(bench, 1)
    send(bench, 1, *several)
    run(bench)
    assert seen == [[packet] for packet in several]
    assert b"".join(payload for _, payload in sent(bench)) == stream(*several)


def test_packets_behind_a_coroutine_of_their_session_wait_for_it_each_for_itself(
    make_bench: MakeBench,
):
    bench = make_bench()
    seen: list[Any] = []
    several = [(11, b"a"), (12, b"bb")]

    @bench.app.on_packet(9)
    async def take_long(session: Session, payload: bytes) -> None:
        while not seen:  # until the last record is handled
            await asyncio.sleep(0)
        seen.append("done")

    @bench.app.on_packets
    def answer(session: Session, packets: Packets) -> None:
        seen.append((session.id, session.sequence, list(packets)))
        if session.id == 1 and session.sequence == 3:
            bench.finish()

    open_sessions(bench, 1, 2)
    send(bench, 1, (9, b""))
    send(bench, 1, *several, first=2)
    send(bench, 2, *several)
    run(bench)
    assert seen == [
        (2, 1, several),
        "done",
        (1, 2, [several[0]]),
        (1, 3, [several[1]]),
    ]


def test_a_plain_function_that_returns_a_coroutine_is_told_so(caplog: pytest.LogCaptureFixture):
    bench = Bench()

    async def answer(session: Session, several: Packets) -> None:
        raise AssertionError("never awaited")

    bench.app.packets_handler = lambda session, several: answer(session, several)
    bench.run(opened(), packets(*ABC))
    assert bench.outbox.entries == [(DISCONNECT, 1, b"handler_error")]
    assert "make it a coroutine function" in caplog.text


def test_it_stands_in_the_place_of_on_any():
    app = App()
    app.on_any(lambda session, packet_id, payload: None)
    with pytest.raises(ValueError, match="keep one of them"):
        app.on_packets(lambda session, several: None)
    app = App()
    app.on_packets(lambda session, several: None)
    with pytest.raises(ValueError, match="keep one of them"):
        app.on_any(lambda session, packet_id, payload: None)
    with pytest.raises(ValueError, match="already; have one that does both"):
        app.on_packets(lambda session, several: None)
    one_argument: Any = lambda session: None  # noqa: E731 - what a type checker refuses
    with pytest.raises(TypeError, match="must take"):
        App().on_packets(one_argument)


# -- the sequence, and streams ---------------------------------------------------------------------

contents = st.lists(
    st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), min_size=1, max_size=12
)


@given(contents)
def test_packets_are_the_sequence_of_what_is_in_the_stream(expected: list[tuple[int, bytes]]):
    several = Packets(stream(*expected), len(expected))
    assert len(several) == len(expected)
    assert list(several) == list(several) == expected
    assert several[1:] == expected[1:]
    assert list(reversed(several)) == expected[::-1]
    assert several[-1] == expected[-1]
    assert expected[0] in several
    assert repr(expected[0]) in repr(several)


@given(contents)
def test_several_that_are_sent_are_the_stream_of_each(expected: list[tuple[int, bytes]]):
    assert join_packets(expected, Codec().encode, 65_531) == stream(*expected)


def session_with_room(max_payload_bytes: int = 65_531) -> Session:
    return Session(7, ADDRESS, Outbox(1 << 20), max_payload_bytes)


@pytest.mark.parametrize("packet_id", [-1, 65_536, "1"])
def test_a_bad_id_among_several_is_named_and_nothing_is_sent(packet_id: Any):
    session = session_with_room()
    with pytest.raises(ValueError, match=f"packet id {packet_id!r} is not between 0 and 65535"):
        session.send_packets([(1, b"a"), (packet_id, b"b")])
    assert session._outbox.entries == []


@pytest.mark.parametrize(
    ("packets", "told"),
    [
        ((1, b"a"), "not int"),
        (b"a", "not int"),
        ([b"abc"], "not bytes"),
        ([(1, b"a"), (1, b"b", 3)], "not a tuple of 3"),
        ([[1]], "not a list of 1"),
    ],
)
def test_what_is_no_packet_among_several_is_told_with_the_remedy(packets: Any, told: str):
    session = session_with_room()
    with pytest.raises(TypeError, match=rf"\(packet_id, message\), {told}; write session.send_pac"):
        session.send_packets(packets)
    assert session._outbox.entries == []


def test_a_payload_among_several_that_is_too_long_is_told_and_nothing_is_sent():
    session = session_with_room(max_payload_bytes=3)
    with pytest.raises(ValueError, match="a payload of 4 bytes;"):
        session.send_packets([(1, b"abc"), (1, b"abcd")])
    assert session._outbox.entries == []


def test_structs_and_views_among_several_are_encoded():
    session = session_with_room()
    session.send_packets([(1, bytearray(b"a")), (2, memoryview(b"b"))])
    assert session._outbox.entries == [(SEND, 7, stream((1, b"a"), (2, b"b")))]
