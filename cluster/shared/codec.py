"""Messages and bytes: the one place that encodes what is sent and decodes what has come.

MessagePack or JSON, as the application chose; the gateway never looks into a payload. What is
bytes already goes as it is. Decoders are made when a handler is registered, so that a type that
cannot be decoded shows at the import of the application, and not at its first packet.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import msgspec

__all__ = ["CODECS", "Codec", "CodecName", "Message"]

CodecName = Literal["msgpack", "json"]
CODECS: tuple[CodecName, ...] = ("msgpack", "json")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _AttrsClass(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _NamedTuple(Protocol):
    @property
    def _fields(self) -> tuple[str, ...]: ...


_WithFields = msgspec.Struct | _Dataclass | _AttrsClass | _NamedTuple | Mapping[str, Any]

Message = bytes | bytearray | memoryview | _WithFields
"""What may be sent: bytes as they are, or what has fields, which is encoded. A TypedDict is a dict;
other mappings are refused when they are sent."""


_StructMeta = type(msgspec.Struct)

_SHOWN = {"json": "JSON", "msgpack": "MessagePack"}
_BEGINS = {
    "json": (b"{", b"["),
    "msgpack": tuple(bytes([first]) for first in (*range(0x80, 0xA0), *range(0xDC, 0xE0))),
}
"""How a struct begins: as an object, a map or an array. For the other codec that is none."""


class Codec:
    """How the structs of one application look on the wire. Loop's thread only."""

    __slots__ = ("_encode", "name")

    def __init__(self, name: CodecName = "msgpack") -> None:
        """Encode and decode as `name`; ValueError if it is none of `CODECS`."""
        if name not in CODECS:
            raise ValueError(f"codec={name!r}; choose one of {', '.join(CODECS)}")
        self.name = name
        encoder = msgspec.json.Encoder() if name == "json" else msgspec.msgpack.Encoder()
        self._encode = encoder.encode

    def encode(self, message: Message) -> bytes:
        """Return the payload that `message` is.

        Raises TypeError for anything else than a `Message`, and for a field that cannot be encoded;
        ValueError for a memoryview of other items than bytes, OverflowError for an int beyond 64
        bits in MessagePack.
        """
        # All structs but those of a metaclass of their own; to ask by isinstance takes as long as
        # to encode a small one.
        if type(type(message)) is _StructMeta or isinstance(message, msgspec.Struct):
            return self._encode(message)
        if isinstance(message, memoryview) and (message.itemsize != 1 or message.ndim != 1):
            raise ValueError(
                f"a payload of {len(message)} items that are not bytes; cast it to 'B'"
            )
        if isinstance(message, bytes | bytearray | memoryview):
            return bytes(message)
        if _has_fields(message):
            return self._encode(message)
        raise TypeError(
            "a message is bytes, bytearray, memoryview or what has fields: a msgspec.Struct, "
            "dataclass, attrs class, NamedTuple or dict, not "
            f"{type(message).__name__}; make it one of these"
        )

    def decoder(self, annotation: Any) -> Callable[[bytes], Any]:
        """Return the function that decodes payloads to what `annotation` says.

        It raises whatever a hostile payload can make msgspec, or the type's own code, raise. Raises
        TypeError, with the reason, for a type that msgspec does not decode.
        """
        try:
            decode: Callable[[bytes], Any]
            if self.name == "json":
                decode = msgspec.json.Decoder(annotation).decode
            else:
                decode = msgspec.msgpack.Decoder(annotation).decode
            info = msgspec.inspect.type_info(annotation)
        except Exception as error:  # of a class body that is looked at only now: anything
            raise TypeError(f"{type(error).__name__}: {error}") from error
        foreign = _find_foreign(info)
        if foreign is not None:
            # A decoder is made all the same, for whoever gives it a hook; ours would refuse all.
            raise TypeError(f"msgspec knows no way to decode {foreign!r}")
        return decode

    def describe_mix_up(self, payload: bytes) -> str:
        """Return what to do about a payload that is the other codec's; "" for one that is not."""
        other: CodecName = "msgpack" if self.name == "json" else "json"
        if not payload.startswith(_BEGINS[other]):
            return ""
        try:
            if other == "json":
                msgspec.json.decode(payload)
            else:
                msgspec.msgpack.decode(payload)
        except Exception:  # deep nesting is a RecursionError
            return ""
        return (
            f"it is {_SHOWN[other]}, and this application takes {_SHOWN[self.name]}: send that, or "
            f'say App(codec="{other}")'
        )


def _has_fields(message: object) -> bool:
    """Return whether `message`, which is no struct, has fields all the same: it cannot be meant as
    a payload as it is, as a str could be."""
    kind = type(message)
    return (
        isinstance(message, dict)
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or (isinstance(message, tuple) and hasattr(kind, "_fields"))
    )


def _find_foreign(info: msgspec.inspect.Type) -> type | None:
    """Return the first class in `info`, at whatever depth, that msgspec does not know."""
    waiting: list[Any] = [info]
    seen: set[int] = set()  # a struct may contain itself
    while waiting:
        part = waiting.pop()
        if isinstance(part, msgspec.inspect.CustomType):
            return part.cls
        if isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, msgspec.inspect.Field):
            waiting.append(part.type)
        elif isinstance(part, msgspec.inspect.Type) and id(part) not in seen:
            seen.add(id(part))
            waiting.extend(getattr(part, name) for name in part.__struct_fields__)
    return None
