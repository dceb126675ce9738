"""What a handler gets of a payload, by the annotation of its parameter."""

import functools
import logging
import sys
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NewType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import DISCONNECT, SEND
from cluster.worker import App, Session
from cluster.worker.outbox import Outbox
from tests.worker import postponed_annotations
from tests.worker.records import ADDRESS

if TYPE_CHECKING:
    OnlyForTypeCheckers = Any

Payload = NewType("Payload", bytes)


class Move(msgspec.Struct, frozen=True):
    x: int
    y: int


MOVE = msgspec.msgpack.encode(Move(1, 2))


class Foreign:
    pass


def make_session() -> Session:
    session = Session(7, ADDRESS, Outbox(1 << 20), 65_531)
    session.sequence = 5
    return session


def entries(session: Session) -> list[tuple[int, int, bytes]]:
    return session._outbox.entries


# -- what a handler is given -----------------------------------------------------------------------


def unannotated(session, payload): ...
def of_bytes(session: Session, payload: bytes) -> None: ...
def of_string(session: Session, payload: "bytes") -> None: ...
def of_new_type(session: Session, payload: Payload) -> None: ...
def of_annotated(session: Session, payload: Annotated[bytes, "as it came"]) -> None: ...
def of_anything(*args: Any) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [unannotated, of_bytes, of_string, of_new_type, of_annotated, of_anything, print],
)
def test_a_handler_of_bytes_is_called_as_it_is(handler: Callable[..., Any]):
    app = App()
    app.on_packet(1)(handler)
    assert app.packet_handlers[1] is handler


def test_a_struct_is_decoded():
    app = App()
    got: list[Any] = []

    @app.on_packet(1)
    def move(session: Session, move: Move) -> str:
        got.append((session, move))
        return "what it returned"

    @app.on_any
    def other(session: Session, packet_id: int, payload: list[int]) -> str:
        got.append((session, packet_id, payload))
        return "what it returned"

    session = make_session()
    assert app.packet_handlers[1](session, MOVE) == "what it returned"
    assert app.any_handler is not None
    assert app.any_handler(session, 9, b"\x92\x01\x02") == "what it returned"
    assert got == [(session, Move(1, 2)), (session, 9, [1, 2])]


def test_json_is_decoded_where_the_application_says_so():
    app, got = App(codec="json"), []

    @app.on_packet(1)
    def move(session: Session, move: Move) -> None:
        got.append(move)

    app.packet_handlers[1](make_session(), b' {"y": 2, "x": 1, "unknown": null}')
    assert got == [Move(1, 2)]


def test_a_view_can_be_used_until_the_handler_returns():
    app = App()
    kept: list[memoryview] = []

    @app.on_packet(1)
    def keep(session: Session, payload: memoryview) -> bytes:
        kept.append(payload)
        return bytes(payload[1:])

    @app.on_any
    def keep_any(session: Session, packet_id: int, payload: "memoryview") -> bytes:
        kept.append(payload)
        return bytes(payload[:packet_id])

    assert app.any_handler is not None
    assert app.packet_handlers[1](make_session(), b"abc") == b"bc"
    assert app.any_handler(make_session(), 1, b"abc") == b"a"
    assert len(kept) == 2
    for view in kept:
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_a_view_is_released_also_when_the_handler_raises():
    app = App()
    kept: list[memoryview] = []

    @app.on_packet(1)
    def fail(session: Session, payload: memoryview) -> None:
        kept.append(payload)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        app.packet_handlers[1](make_session(), b"abc")
    with pytest.raises(ValueError, match="released"):
        kept[0][0]


class Game:
    def __init__(self) -> None:
        self.got: list[Any] = []

    def method(self, session: Session, move: Move) -> None:
        self.got.append(move)

    def with_room(self, room: str, session: Session, move: Move, *, loud: bool) -> None:
        self.got.append(move)

    def __call__(self, session: Session, move: "Move") -> None:
        self.got.append(move)

    @functools.lru_cache(maxsize=1)  # noqa: B019  something that wraps it in an object of C
    def cached(self, session: Session, move: "list[Move] | Move") -> None:
        self.got.append(move)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return call


@pytest.mark.parametrize(
    "make",
    [
        lambda game: game.method,
        lambda game: game,
        lambda game: functools.partial(game.with_room, "lobby", loud=True),
        lambda game: functools.partial(functools.partial(game.with_room, "a"), loud=True),
        lambda game: functools.partial(Game.method, game),
        lambda game: wrapped(game.method),
        lambda game: wrapped(functools.partial(game.with_room, "lobby", loud=False)),
        lambda game: functools.partial(wrapped(Game.with_room), game, "lobby", loud=False),
        lambda game: functools.partial(Game.cached, game),
    ],
)
def test_whatever_can_be_called_is_asked_for_its_annotation(make: Callable[[Game], Any]):
    app, game = App(), Game()
    handler = make(game)
    assert app.on_packet(1)(handler) is handler
    app.packet_handlers[1](make_session(), MOVE)
    assert game.got == [Move(1, 2)]


def test_postponed_annotations_are_evaluated_where_the_handler_was_defined():
    app = App()
    got: list[Any] = []
    postponed_annotations.register(app, got)
    app.packet_handlers[1](make_session(), msgspec.msgpack.encode({"text": "hello"}))
    app.packet_handlers[2](make_session(), b"raw")
    app.packet_handlers[3](make_session(), b"raw")
    app.packet_handlers[4](make_session(), msgspec.msgpack.encode([{"text": "a"}]))
    line = postponed_annotations.Line
    assert got == [line("hello"), b"raw", "a view of b'raw'", [line("a")]]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="evaluated where the function is defined")
def test_annotations_that_are_not_evaluated_yet_may_name_what_is_for_type_checkers_alone():
    class Local(msgspec.Struct):
        text: str

    app = App()
    got: list[Any] = []

    @app.on_packet(1)
    def typed(session: OnlyForTypeCheckers, line: list[Local]) -> OnlyForTypeCheckers:
        got.append(line)

    @app.on_message
    def told(message: Local, sender: OnlyForTypeCheckers) -> None: ...

    app.packet_handlers[1](make_session(), msgspec.msgpack.encode([{"text": "hello"}]))
    assert got == [[Local("hello")]]
    assert list(app.messages.by_name) == ["Local"]
    with pytest.raises(TypeError, match="'OnlyForTypeCheckers' of 'payload' cannot be evaluated"):

        @app.on_packet(2)
        def wrong(session: Session, payload: OnlyForTypeCheckers) -> None: ...


# -- what cannot be a handler ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Foreign, "msgspec knows no way to decode .*Foreign"),
        (Session, "msgspec knows no way to decode .*Session"),
        (object, "no way to decode"),
        (list[Foreign], "no way to decode .*Foreign"),
        (bytearray, "leaves open whether the payload is to be decoded"),
        (bytes | None, "leaves open"),
        (Payload | Move, "leaves open"),
        (typing.Union[memoryview, bytes], "leaves open"),  # noqa: UP007
        (Annotated[bytes, msgspec.Meta(max_length=8)], r"held against a msgspec\.Meta"),
        (7, "not supported"),
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_annotation_that_cannot_be_decoded_is_refused_with_all_there_is_to_know(
    annotation: Any, reason: str, codec: Any
):
    app = App(codec=codec)

    def handle(session, message): ...
    def handle_any(session, packet_id, message): ...

    registered: list[tuple[Any, Any]] = [(app.on_packet(1), handle), (app.on_any, handle_any)]
    for register, handler in registered:
        handler.__annotations__["message"] = annotation
        with pytest.raises(TypeError, match=reason) as raised:
            register(handler)
        text = str(raised.value)
        assert handler.__qualname__ in text
        assert "'message'" in text
        assert "annotate it as bytes or memoryview" in text
        assert "msgspec.Struct" in text
    assert app.packet_handlers == {}
    assert app.any_handler is None
    app.on_packet(1)(unannotated)  # the id is still free


@pytest.mark.parametrize("annotation", ["NotThere", "list[NotThere]", "Move[", "1 / 0"])
def test_an_annotation_that_cannot_be_evaluated_is_refused_with_the_remedy(annotation: str):
    def handle(session, message): ...

    handle.__annotations__["message"] = annotation
    with pytest.raises(TypeError, match="cannot be evaluated") as raised:
        App().on_packet(1)(handle)
    text = str(raised.value)
    assert handle.__qualname__ in text
    assert repr(annotation) in text
    assert "top level of the module" in text


def test_a_second_handler_is_refused_with_the_name_of_the_first_whatever_that_is():
    app = App()
    app.on_packet(1)(functools.partial(Game.method, Game()))
    app.on_packet(2)(Game())
    for packet_id, name in ((1, r"Game\.method"), (2, "Game object")):
        with pytest.raises(ValueError, match=rf"id {packet_id} has the handler .*{name}"):
            app.on_packet(packet_id)


# -- payloads that do not decode -------------------------------------------------------------------


def test_a_payload_that_does_not_decode_ends_its_session(caplog: pytest.LogCaptureFixture):
    app = App()

    @app.on_packet(3)
    def move(session: Session, move: Move) -> None:
        raise AssertionError("not called")

    session = make_session()
    session.send(1, b"before")
    app.packet_handlers[3](session, msgspec.msgpack.encode({"x": 1, "y": "secret"}))
    assert entries(session) == [
        (SEND, 7, make_packet(1, b"before")),
        (DISCONNECT, 7, b"decode_error"),
    ]
    assert not session.is_open
    assert app.decode_errors.count == 1
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    text = line.getMessage()
    for part in ("0x7", ADDRESS, "packet 5", "id 3", "13 bytes", "session is ended"):
        assert part in text
    assert "Expected `int`, got `str` - at `$.y`" in text
    assert "secret" not in text


def test_a_session_may_be_kept_instead(caplog: pytest.LogCaptureFixture):
    app, got = App(decode_error="keep"), []

    @app.on_any
    def anything(session: Session, packet_id: int, move: Move) -> None:
        got.append((packet_id, move))

    session = make_session()
    assert app.any_handler is not None
    for payload in (b"", b"\xc1", MOVE + b"\x00", MOVE):
        app.any_handler(session, 4, payload)
    assert got == [(4, Move(1, 2))]
    assert session.is_open
    assert entries(session) == []
    assert app.decode_errors.count == 3
    assert ["id 4" in text and "it is dropped" in text for text in caplog.messages] == [True] * 3


def test_what_the_handler_raises_itself_is_no_decode_error():
    app = App()

    @app.on_packet(1)
    def move(session: Session, move: Move) -> None:
        msgspec.msgpack.decode(b"\xc1", type=Move)

    with pytest.raises(msgspec.DecodeError):
        app.packet_handlers[1](make_session(), MOVE)
    assert app.decode_errors.count == 0


class Picky(msgspec.Struct):
    value: Any

    def __post_init__(self) -> None:
        if self.value == 1:
            raise ValueError("not this one")
        if self.value == 2:
            raise KeyError("nor this")


HOSTILE = {
    "nested": (Any, b"\x91" * 65_531),
    "nested json": (Any, b"[" * 65_531),
    "no utf-8": (str, b'"\xff\xfe"'),
    "digits": (int, b"9" * 65_531),
    "exponent": (float, b"1e" + b"9" * 65_000),
    "unhashable": (set, b"\x91\x80"),
    "unhashable json": (set, b"[{}]"),
    "a length beyond memory": (list, b"\xdd\xff\xff\xff\xff"),
    "a long string that is not there": (bytes | int, b"\xc6\xff\xff\xff\xff"),
    "refused by the type": (Picky, b'{"value": 1}'),
    "refused with another error": (Picky, b'{"value": 2}'),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_whatever_a_payload_makes_a_decoder_raise_is_a_decode_error(name: str, codec: Any):
    annotation, payload = HOSTILE[name]
    if annotation == bytes | int:
        annotation = list[bytes | int]
    app = App(codec=codec)

    def handle(session, message):
        raise AssertionError("not called")

    handle.__annotations__["message"] = annotation
    app.on_packet(1)(handle)
    session = make_session()
    app.packet_handlers[1](session, payload)
    assert entries(session) == [(DISCONNECT, 7, b"decode_error")]


def test_a_type_that_refuses_a_payload_says_why(caplog: pytest.LogCaptureFixture):
    app = App(codec="json", decode_error="keep")

    @app.on_packet(1)
    def picky(session: Session, picky: Picky) -> None: ...

    app.packet_handlers[1](make_session(), b'{"value": 1}')
    app.packet_handlers[1](make_session(), b'{"value": 2}')
    first, second = caplog.messages
    assert first.endswith(": not this one")
    assert second.endswith(": KeyError: 'nor this'")


@given(payload=st.binary(max_size=40))
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_no_payload_gets_past_a_decoder(codec: Any, payload: bytes):
    logging.disable(logging.WARNING)
    try:
        app, got = App(codec=codec), []

        @app.on_packet(1)
        def handle(session: Session, message: dict[str, Move] | list[int | None] | str) -> None:
            got.append(message)

        session = make_session()
        app.packet_handlers[1](session, payload)
        assert len(got) + app.decode_errors.count == 1
        assert session.is_open == bool(got)
    finally:
        logging.disable(logging.NOTSET)
