"""Groups as handlers see them: what a session is in, what a call that raised has not done."""

from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.group_records import GROUPS_MAX, pack_join, pack_publish
from cluster.shared.records import JOIN, LEAVE, PUBLISH, RECORD, RECORD_BYTES, SEND
from cluster.shared.takeover import ReplayedSession
from cluster.worker import Session
from cluster.worker.outbox import PUBLISH_RUN_BYTES_MAX, Outbox
from tests.worker.records import ADDRESS, chunk, closed, opened, packets
from tests.worker.test_dispatcher import Bench


def written(outbox: Outbox) -> list[tuple[int, int, bytes]]:
    """Return kind, session and payload of the records of `outbox`."""
    return [
        (kind, session, record[RECORD_BYTES:])
        for record in outbox.records()
        for _, kind, _, session in [RECORD.unpack_from(record)]
    ]


def make_session(outbox: Outbox | None = None) -> Session:
    return Session(7, ADDRESS, outbox or Outbox(1 << 20), 65_531)


def test_a_session_knows_its_groups_and_joins_and_leaves_once():
    outbox = Outbox(1 << 20)
    session = make_session(outbox)
    assert session.groups == frozenset()
    session.leave("room")
    for _ in range(2):
        session.join("room")
        session.join("hall")
    assert session.groups == {"room", "hall"}
    for _ in range(2):
        session.leave("hall")
    assert session.groups == {"room"}
    assert written(outbox) == [
        (JOIN, 7, pack_join(0, b"room")),
        (JOIN, 7, pack_join(0, b"hall")),
        (LEAVE, 7, b"hall"),
    ]


@pytest.mark.parametrize("name", ["", "x" * 256, "\ud800"])
def test_what_is_no_name_is_refused(name: str):
    session = make_session()
    for call in (session.join, session.leave):
        with pytest.raises(ValueError, match="group name"):
            call(name)
    with pytest.raises(TypeError, match="group name"):
        session.join(b"room")  # type: ignore[arg-type]


def test_a_session_is_in_so_many_groups_and_no_more():
    session = make_session(Outbox(1 << 20))
    for number in range(GROUPS_MAX):
        session.join(str(number))
    with pytest.raises(ValueError, match="1024 groups, which is the most; leave one"):
        session.join("one more")
    session.leave("0")
    session.join("one more")


def test_a_session_that_was_ended_joins_nothing_and_keeps_what_it_was_in():
    outbox = Outbox(1 << 20)
    session = make_session(outbox)
    session.join("room")
    session.disconnect()
    session.join("hall")
    session.leave("room")
    assert session.groups == {"room"}
    assert [kind for kind, _, _ in written(outbox)].count(JOIN) == 1


def test_a_call_that_raises_has_joined_and_left_nothing():
    bench = Bench()

    @bench.app.on_packet(1)
    def work(session: Session, payload: bytes) -> None:
        session.leave("room")
        session.join("hall")
        session.leave("hall")
        session.join("yard")
        if payload:
            raise ValueError(payload)

    @bench.app.on_connected
    def enter(session: Session) -> None:
        session.join("room")

    bench.dispatcher.run(chunk(opened(7), packets((1, b"no"), session=7)))
    session = bench.dispatcher.sessions[7]
    assert session.groups == {"room"}
    assert [kind for kind, _, _ in written(bench.outbox)].count(JOIN) == 1


def test_groups_are_there_in_on_disconnected_and_a_successor_has_them():
    bench = Bench()
    seen: list[Any] = []

    @bench.app.on_resumed
    def resumed(session: Session) -> None:
        seen.append(session.groups)

    @bench.app.on_disconnected
    def gone(session: Session, cause: str) -> None:
        seen.append(session.groups)

    bench.dispatcher.resume(ReplayedSession(id=7, address=ADDRESS, groups=("room", "hall")))
    bench.dispatcher.run(chunk(closed(7)))
    assert seen == [{"room", "hall"}] * 2


def test_publishes_that_follow_one_another_become_one_record_and_keep_their_place():
    outbox = Outbox(1 << 20)
    session = make_session(outbox)

    def publish(name: bytes, payload: bytes, left_out: int = 0) -> bytes:
        packet = make_packet(1, payload)
        outbox.add(PUBLISH, left_out, pack_publish(name, packet))
        return packet

    def send(payload: bytes) -> bytes:
        session.send(1, payload)
        return make_packet(1, payload)

    first = send(b"before")
    a, b = publish(b"room", b"a"), publish(b"room", b"b")
    c = publish(b"hall", b"c")
    d = publish(b"hall", b"d", 7)
    behind = send(b"behind")
    e = publish(b"room", b"e")
    assert written(outbox) == [
        (SEND, 7, first),
        (PUBLISH, 0, pack_publish(b"room", a + b)),
        (PUBLISH, 0, pack_publish(b"hall", c)),
        (PUBLISH, 7, pack_publish(b"hall", d)),
        (SEND, 7, behind),
        (PUBLISH, 0, pack_publish(b"room", e)),
    ]


def test_a_run_of_publishes_is_cut_where_it_gets_long():
    outbox = Outbox(1 << 20)
    for _ in range(5):
        outbox.add(PUBLISH, 0, pack_publish(b"room", make_packet(1, bytes(5_000))))
    sizes = [len(payload) for _, _, payload in written(outbox)]
    assert len(sizes) == 2
    assert max(sizes) <= PUBLISH_RUN_BYTES_MAX
