"""A session in the worker: what it may send, how it ends, and what it says of misuse."""

import re
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.packet_framing import make_packet
from cluster.shared.causes import Cause
from cluster.shared.codec import Codec
from cluster.shared.records import ACCEPT, DISCONNECT, RECORD_BYTES, SAVE, SAVE_BYTES_MAX, SEND
from cluster.worker import OutputTooLarge, Session
from cluster.worker.outbox import Outbox

ID = 0x0001_0002_0000_0003


def make_session(max_batch_bytes: int = 1 << 20, max_payload_bytes: int = 65_531) -> Session:
    return Session(ID, "127.0.0.1:5", Outbox(max_batch_bytes), max_payload_bytes)


def sent(session: Session) -> list[tuple[int, int, bytes]]:
    return session._outbox.entries


def test_an_acceptance_is_one_record_without_a_payload():
    session = make_session()
    session.accept()
    assert sent(session) == [(ACCEPT, ID, b"")]
    session.disconnect()
    session.accept()
    assert [kind for kind, _, _ in sent(session)] == [ACCEPT, DISCONNECT]


@given(packet_id=st.integers(0, 65_535), payload=st.binary(max_size=300))
def test_what_is_sent_is_one_packet(packet_id: int, payload: bytes):
    session = make_session()
    for kind in (bytes, bytearray, memoryview):
        session.send(packet_id, kind(payload))
    assert sent(session) == [(SEND, ID, make_packet(packet_id, payload))] * 3


class Said(msgspec.Struct):
    who: str
    text: str


def test_a_struct_is_sent_by_the_codec_of_the_application():
    session = make_session()
    session.send(3, Said("ann", "hi"))
    session._encode = Codec("json").encode
    session.send(3, Said("ann", "hi"))
    session.kick(4, Said("ann", "out"))
    assert sent(session) == [
        (SEND, ID, make_packet(3, msgspec.msgpack.encode({"who": "ann", "text": "hi"}))),
        (SEND, ID, make_packet(3, b'{"who":"ann","text":"hi"}')),
        (SEND, ID, make_packet(4, b'{"who":"ann","text":"out"}')),
        (DISCONNECT, ID, b"kicked"),
    ]


def test_a_struct_is_bounded_like_bytes():
    session = make_session(max_payload_bytes=96)
    with pytest.raises(ValueError, match=r"a payload of \d+ bytes; .* allows 96"):
        session.send(1, Said("ann", "x" * 100))
    assert sent(session) == []


def test_a_payload_may_be_left_out():
    session = make_session()
    session.send(9)
    assert sent(session) == [(SEND, ID, b"\x04\x00\x09\x00")]


@pytest.mark.parametrize("size", [65_531, 65_532])
def test_the_largest_payload_is_that_of_the_node(size: int):
    session = make_session()
    if size == 65_531:
        session.send(1, b"x" * size)
        assert len(sent(session)[0][2]) == 65_535
    else:
        with pytest.raises(ValueError, match=r"gateway\.max_packet_bytes allows 65531"):
            session.send(1, b"x" * size)
    with pytest.raises(ValueError, match=r"a payload of 97 bytes; .* allows 96"):
        make_session(max_payload_bytes=96).send(1, b"x" * 97)


@pytest.mark.parametrize("packet_id", [-1, 65_536, 1 << 70, 1.5, "1", None])
def test_an_id_that_no_packet_has_is_refused(packet_id):
    session = make_session()
    with pytest.raises(ValueError, match=r"packet id .* is not between 0 and 65535"):
        session.send(packet_id, b"x")
    assert sent(session) == []


@pytest.mark.parametrize("payload", ["text", 5, None, ["list"]])
def test_a_payload_that_is_not_bytes_is_refused(payload):
    session = make_session()
    with pytest.raises(TypeError):
        session.send(1, payload)
    assert sent(session) == []


def test_a_view_of_larger_items_is_refused_and_not_sent_in_part():
    session = make_session()
    view = memoryview(array("I", [1, 2, 3]))
    with pytest.raises(ValueError, match="cast it to 'B'"):
        session.send(1, view)
    assert sent(session) == []
    session.send(1, view.cast("B"))
    assert len(sent(session)[0][2]) == 4 + view.nbytes


def test_more_than_a_batch_holds_is_refused_and_what_was_sent_stays():
    session = make_session(max_batch_bytes=2 * (RECORD_BYTES + 104))
    session.send(1, b"x" * 100)
    session.send(2, b"x" * 100)
    with pytest.raises(OutputTooLarge, match=r"lane\.max_batch_bytes"):
        session.send(3, b"")
    assert len(sent(session)) == 2


def test_a_session_ends_once_and_takes_nothing_more():
    session = make_session()
    session.send(1, b"last words")
    assert session.is_open
    session.disconnect("the game is over")
    assert not session.is_open
    session.disconnect(Cause.KICKED)
    session.send(2, b"too late")
    session.send_packets([(3, b"too late")])
    assert [(kind, data) for kind, _, data in sent(session)] == [
        (SEND, make_packet(1, b"last words")),
        (DISCONNECT, b"the game is over"),
    ]


def test_misuse_of_an_ended_session_is_told_all_the_same():
    session = make_session()
    session.disconnect()
    with pytest.raises(ValueError, match="packet id"):
        session.send(-1)
    with pytest.raises(ValueError, match="packet id"):
        session.send_packets([(-1, b"")])
    with pytest.raises(ValueError, match="cause"):
        session.disconnect("")


@pytest.mark.parametrize(
    ("cause", "written"),
    [
        (Cause.POISON, b"poison"),
        ("x", b"x"),
        ("é" * 127, "é".encode() * 127),
    ],
)
def test_a_cause_is_one_of_ours_or_any_short_text(cause: str, written: bytes):
    session = make_session()
    session.disconnect(cause)
    assert sent(session) == [(DISCONNECT, ID, written)]


@pytest.mark.parametrize("cause", ["", "x" * 256, "é" * 128])
def test_a_cause_of_no_text_or_too_much_is_refused(cause: str):
    session = make_session()
    with pytest.raises(ValueError, match="1 to 255 bytes of UTF-8"):
        session.disconnect(cause)
    assert session.is_open
    assert sent(session) == []


@pytest.mark.parametrize("cause", [5, b"bye", None, msgspec.UNSET])
def test_a_cause_that_is_no_text_is_refused_with_its_value(cause: Any):
    session = make_session()
    with pytest.raises(TypeError, match="a cause is a str, not .*" + re.escape(repr(cause))):
        session.disconnect(cause)
    assert session.is_open
    assert sent(session) == []


def test_without_a_cause_it_is_local():
    session = make_session()
    session.disconnect()
    assert sent(session) == [(DISCONNECT, ID, b"local")]


def test_a_session_says_who_it_is():
    session = make_session()
    assert repr(session) == "<Session 0x1000200000003 127.0.0.1:5>"
    assert session.state is None
    session.state = {"any": "object"}
    with pytest.raises(AttributeError):
        session.staet = 1  # type: ignore[attr-defined]


# -- saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_saved_can_be_read_back_and_is_put_out(kind: type):
    session = make_session()
    assert session.saved is None
    session.save(kind(b"state"))
    assert session.saved == b"state"
    assert type(session.saved) is bytes
    session.save(b"")
    assert session.saved == b""
    assert sent(session) == [(SAVE, ID, b"state"), (SAVE, ID, b"")]


def test_what_was_saved_is_not_to_be_assigned():
    session = make_session()
    session.save(b"kept")
    with pytest.raises(AttributeError, match=r"call session\.save\(blob\)"):
        session.saved = b"lost"  # type: ignore[assignment]  # which is the point
    assert session.saved == b"kept"


def test_a_blob_that_changes_later_stays_as_it_was_saved():
    session = make_session()
    blob = bytearray(b"before")
    session.save(blob)
    blob[:] = b"after!"
    assert session.saved == b"before"
    assert sent(session) == [(SAVE, ID, b"before")]


def test_a_blob_has_a_bound():
    session = make_session()
    session.save(b"x" * SAVE_BYTES_MAX)
    with pytest.raises(ValueError, match="a blob of 65537 bytes; a session saves at most 65536"):
        session.save(b"x" * (SAVE_BYTES_MAX + 1))
    # Counted in bytes, however large the items of a view are.
    with pytest.raises(ValueError, match="65540 bytes"):
        session.save(memoryview(array("I", range(16_385))))
    assert session.saved == b"x" * SAVE_BYTES_MAX
    assert len(sent(session)) == 1


@pytest.mark.parametrize("blob", ["text", 5, None, ["list"], {"a": 1}])
def test_a_blob_that_is_not_bytes_is_refused(blob):
    session = make_session()
    with pytest.raises(TypeError, match="save takes bytes, not"):
        session.save(blob)
    assert session.saved is None
    assert sent(session) == []


def test_a_save_that_is_too_much_output_is_not_made():
    session = make_session(max_batch_bytes=1_000)
    session.save(b"fits")
    with pytest.raises(OutputTooLarge):
        session.save(b"x" * 1_000)
    assert session.saved == b"fits"
    assert len(sent(session)) == 1


def test_a_session_that_was_disconnected_can_be_saved_until_it_has_closed():
    session = make_session()
    session.disconnect("bye")
    session.save(b"for on_disconnected")
    session._end()
    session.save(b"too late")
    assert session.saved == b"for on_disconnected"
    assert sent(session) == [(DISCONNECT, ID, b"bye"), (SAVE, ID, b"for on_disconnected")]


def test_who_is_kicked_is_told_first():
    session = make_session()
    session.send(1, b"before")
    session.kick(2, b"why")
    session.kick(3, b"once is enough")
    assert sent(session) == [
        (SEND, ID, make_packet(1, b"before")),
        (SEND, ID, make_packet(2, b"why")),
        (DISCONNECT, ID, b"kicked"),
    ]


def test_a_kick_that_cannot_be_told_is_none():
    session = make_session()
    with pytest.raises(ValueError, match="packet id"):
        session.kick(-1)
    assert session.is_open
    assert sent(session) == []
