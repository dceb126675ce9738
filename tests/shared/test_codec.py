"""What may be sent, how it looks on the wire, and which types a payload can be decoded to."""

import datetime
import enum
import typing
import uuid
from array import array
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.codec import CODECS, Codec, CodecName, Message

codecs = pytest.mark.parametrize("name", CODECS)


class Color(enum.Enum):
    RED = "red"


class Place(msgspec.Struct):
    x: float
    y: float
    color: Color = Color.RED


class Tree(msgspec.Struct):
    label: str
    branches: list["Tree"] = []


class Went(msgspec.Struct, tag=True):
    to: Place


class Left(msgspec.Struct, tag=True):
    why: str


@dataclass
class Point:
    x: int


class Foreign:
    """A class that msgspec knows nothing of."""


class WithForeign(msgspec.Struct):
    first: int
    second: dict[str, list[Foreign | None]]


def test_a_struct_is_messagepack_unless_json_is_asked_for():
    place = Place(1.0, 2.5)
    assert Codec().name == "msgpack"
    assert msgspec.msgpack.decode(Codec().encode(place)) == {"x": 1.0, "y": 2.5, "color": "red"}
    assert Codec("json").encode(place) == b'{"x":1.0,"y":2.5,"color":"red"}'


@codecs
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_bytes_go_as_they_are(name: CodecName, make: Callable[[bytes], bytes | memoryview]):
    encoded = Codec(name).encode(make(b"\x00raw"))
    assert encoded == b"\x00raw"
    assert type(encoded) is bytes


@codecs
@pytest.mark.parametrize(
    "message", ["text", 5, None, [b"a"], (1, 2), {1}, ChainMap({"x": 1}), Foreign(), Place, Point]
)
def test_anything_else_is_refused_by_the_name_of_its_type(name: CodecName, message: typing.Any):
    with pytest.raises(TypeError, match=rf"or dict, not {type(message).__name__}; "):
        Codec(name).encode(message)


class Pair(typing.NamedTuple):
    x: int
    y: int = 2


class Table(typing.TypedDict):
    x: int


@codecs
@pytest.mark.parametrize(
    ("message", "type_"),
    [(Point(1), Point), (Pair(1), Pair), (Table(x=1), Table), ({"x": 1}, dict[str, int])],
)
def test_what_a_payload_may_be_decoded_to_may_be_sent(
    name: CodecName, message: Message, type_: typing.Any
):
    codec = Codec(name)
    decoded = codec.decoder(type_)(codec.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@codecs
def test_attrs_classes_are_sent_and_decoded(name: CodecName):
    attrs = pytest.importorskip("attrs")
    kind = attrs.make_class("Kind", {"x": attrs.field(type=int)})
    codec = Codec(name)
    assert codec.decoder(kind)(codec.encode(kind(1))) == kind(1)


def test_a_view_of_other_items_is_refused():
    for view in (memoryview(array("I", [1, 2])), memoryview(bytes(4)).cast("B", (2, 2))):
        with pytest.raises(ValueError, match="2 items that are not bytes; cast it to 'B'"):
            Codec().encode(view)


@codecs
def test_a_struct_with_what_cannot_be_encoded_is_refused_by_name(name: CodecName):
    class Holder(msgspec.Struct):
        what: object

    with pytest.raises(TypeError, match="Foreign"):
        Codec(name).encode(Holder(Foreign()))


@pytest.mark.parametrize("name", ["yaml", "", None, "JSON"])
def test_another_codec_is_refused_with_those_that_there_are(name: typing.Any):
    with pytest.raises(ValueError, match=r"codec=.*; choose one of msgpack, json"):
        Codec(name)


@codecs
@given(x=st.floats(allow_nan=False, allow_infinity=False), label=st.text(), depth=st.integers(0, 9))
def test_what_one_side_encodes_the_other_decodes(name: CodecName, x: float, label: str, depth: int):
    codec = Codec(name)
    tree = Tree(label)
    for _ in range(depth):
        tree = Tree(label, [tree, Tree("")])
    for message in (Place(x, -x), tree, Went(Place(0.0, x))):
        assert codec.decoder(type(message))(codec.encode(message)) == message


@codecs
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 5),
        (str, "text"),
        (None, None),
        (Color, Color.RED),
        (list[int], [1, 2]),
        (dict[str, float], {"a": 1.5}),
        (Point, Point(3)),
        (Went | Left, Left("tired")),
        (typing.Literal["up", "down"], "down"),
        (typing.Annotated[str, msgspec.Meta(max_length=3)], "abc"),
        (datetime.date, datetime.date(2024, 2, 29)),
        (uuid.UUID, uuid.UUID(int=7)),
        (typing.Any, {"any": [1, "thing"]}),
    ],
    ids=str,
)
def test_a_payload_is_decoded_to_whatever_msgspec_knows(
    name: CodecName, annotation: typing.Any, value: typing.Any
):
    module = msgspec.json if name == "json" else msgspec.msgpack
    assert Codec(name).decoder(annotation)(module.encode(value)) == value


@codecs
@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (Foreign, "Foreign"),
        (list[Foreign], "Foreign"),
        (WithForeign, "Foreign"),
        (dict[str, tuple[int, WithForeign]], "Foreign"),
        (object, "object"),
        (complex, "complex"),
        (Went | Place, "must be tagged"),
        (5, "'5' is not supported"),
    ],
    ids=str,
)
def test_a_type_that_it_does_not_know_is_refused_when_the_decoder_is_made(
    name: CodecName, annotation: typing.Any, named: str
):
    with pytest.raises(TypeError, match=named):
        Codec(name).decoder(annotation)


def test_a_type_that_contains_itself_is_looked_at_once():
    assert Codec().decoder(Tree)(Codec().encode(Tree("root", [Tree("leaf")]))).branches


@pytest.mark.parametrize(
    ("name", "other", "shown"), [("msgpack", "json", "JSON"), ("json", "msgpack", "MessagePack")]
)
def test_a_payload_of_the_other_codec_is_told_with_the_remedy(
    name: CodecName, other: CodecName, shown: str
):
    codec = Codec(name)
    for message in (Place(1.5, 2.0), Went(Place(1.0, 2.5))):
        hint = codec.describe_mix_up(Codec(other).encode(message))
        assert shown in hint
        assert f'App(codec="{other}")' in hint
        assert codec.describe_mix_up(codec.encode(message)) == ""


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[1", b"\x81", b"\xc1", b"[" * 60_000, b"\x91" * 60_000]
)
def test_a_payload_of_neither_codec_is_no_mix_up(name: CodecName, payload: bytes):
    assert Codec(name).describe_mix_up(payload) == ""
