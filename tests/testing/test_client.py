"""A client as an object: what it sends and takes, how it ends, and what the node knows of it."""

from typing import Any

import msgspec
import pytest

from cluster.testing import NothingReceived, Packet, TestNode
from cluster.worker import App, Session

ECHO, LARGE = 1, 2


def _echo() -> tuple[App, list[Any]]:
    app = App()
    log: list[Any] = []

    @app.on_packet(ECHO)
    def echo(session: Session, payload: bytes) -> None:
        session.state = payload
        session.send(ECHO, payload)

    @app.on_packet(LARGE)
    def large(session: Session, payload: bytes) -> None:
        for _ in range(int(payload)):
            session.send(LARGE, b"x" * 60_000)

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        log.append((session.state, cause))

    return app, log


class Move(msgspec.Struct, tag=True):
    x: int


class Leave(msgspec.Struct, tag=True):
    why: str


def test_a_packet_of_one_of_several_types_is_decoded_and_typed() -> None:
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        client.send(ECHO, Move(7))
        client.send(ECHO, Leave("tired"))
        decoded: list[Move | Leave] = [client.receive().decode(Move | Leave) for _ in range(2)]
        assert decoded == [Move(7), Leave("tired")]


def test_packets_are_taken_in_their_order():
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        for number in range(3):
            client.send(ECHO, b"%d" % number)
        assert client.received == [Packet(ECHO, b"0"), Packet(ECHO, b"1"), Packet(ECHO, b"2")]
        assert [client.receive().payload for _ in range(2)] == [b"0", b"1"]
        assert client.received == [Packet(ECHO, b"2")]


def test_what_came_so_far_can_be_cleared():
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        client.send(ECHO, b"a")
        client.send(ECHO, b"b")
        client.received.clear()
        with pytest.raises(NothingReceived):
            client.receive()
        client.send(ECHO, b"c")
        assert client.received == [Packet(ECHO, b"c")]
        assert client.receive() == Packet(ECHO, b"c")
        assert client.received == []


def test_who_has_received_nothing_is_told_why():
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        with pytest.raises(NothingReceived, match=r"session 0x.* nothing more; the node is"):
            client.receive()
        client.close()
        with pytest.raises(AssertionError, match="closed: eof"):
            client.receive()


def test_bytes_go_as_they_are_also_a_packet_in_pieces():
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        client.send_bytes(b"\x07\x00\x01\x00ab")
        assert client.received == []
        client.send_bytes(b"c\x05\x00\x01\x00d")
        assert client.received == [Packet(ECHO, b"abc"), Packet(ECHO, b"d")]
        client.send_bytes(b"\x03\x00\x01\x00")
        assert client.cause == "bad_size"


@pytest.mark.parametrize(
    ("packet_id", "message", "error"),
    [(65_536, b"", ValueError), (1, b"x" * 65_532, ValueError), (1, "text", TypeError)],
)
def test_what_is_no_packet_is_not_sent(packet_id: int, message: Any, error: type[Exception]):
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        with pytest.raises(error):
            client.send(packet_id, message)
        client.send(ECHO, b"goes on")
        assert client.receive().payload == b"goes on"


@pytest.mark.parametrize(("end", "cause"), [("close", "eof"), ("reset", "reset")])
def test_a_client_that_ends_is_known_to_have_ended(end: str, cause: str):
    app, log = _echo()
    with TestNode(app) as node:
        client = node.connect()
        client.send(ECHO, b"state")
        getattr(client, end)()
        assert log == [(b"state", cause)]
        assert client.cause == cause
        assert not client.is_connected
        assert node.sessions == []
        with pytest.raises(ConnectionError, match=f"closed: {cause}"):
            client.send(ECHO, b"x")
        with pytest.raises(LookupError, match="no session"):
            client.session  # noqa: B018 - raises
        client.close()
        client.reset()
    assert len(log) == 1


def test_a_client_that_the_application_ends_has_received_all_before():
    app, log = _echo()

    @app.on_packet(3)
    def bye(session: Session, payload: bytes) -> None:
        session.send(3, b"bye")
        session.disconnect("enough")

    with TestNode(app) as node:
        client = node.connect()
        client.send(3)
        assert client.receive() == Packet(3, b"bye")
        assert client.cause == "enough"
        assert log == [(None, "enough")]


def test_the_session_of_a_client_is_the_applications():
    with TestNode(_echo()[0], workers=2) as node:
        one, two = node.connect(), node.connect()
        one.send(ECHO, b"one")
        two.send(ECHO, b"two")
        assert (one.session.state, two.session.state) == (b"one", b"two")
        assert [session.id for session in node.sessions] == [one.session_id, two.session_id]
        assert two.receive() == Packet(ECHO, b"two")
        # The test may send past the application, too.
        two.session.send(9, b"from the test")
        assert two.receive() == Packet(9, b"from the test")


def test_a_client_that_takes_nothing_is_a_slow_client():
    with TestNode(_echo()[0]) as node:
        client = node.connect()
        client.stop_reading()
        client.send(LARGE, b"8")
        assert len(client.received) < 2
        assert node.counters["slow_reader_paused"] == 0
        client.send(LARGE, b"8")
        node.advance(1)
        client.send(ECHO, b"x")
        assert node.counters["slow_reader_paused"] == 1
        client.read_on()
        assert [packet.id for packet in client.received] == [LARGE] * 16 + [ECHO]
        assert client.is_connected


def test_a_client_that_never_takes_its_replies_is_cut_off():
    with TestNode(_echo()[0], gateway={"send_stall_timeout_s": 20}) as node:
        client = node.connect()
        client.stop_reading()
        client.send(LARGE, b"8")
        node.advance(15)
        assert client.cause is None
        node.advance(30)
        assert client.cause == "send_stalled"


def test_a_client_for_whom_there_is_no_room_waits_until_there_is():
    app, log = _echo()
    with TestNode(app, gateway={"max_sessions": 1}) as node:
        one = node.connect()
        two = node.connect()
        assert two.session_id is None
        assert repr(two) == "<TestClient not accepted>"
        two.send(ECHO, b"early")
        assert two.received == []
        one.close()
        assert two.session_id is not None
        assert two.receive() == Packet(ECHO, b"early")
    assert log == [(None, "eof"), (b"early", "drain")]
