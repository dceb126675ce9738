"""The handlers of messages from other shards, by the name of the type of message."""

import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from cluster.shared.codec import Codec
from cluster.shared.names import encode_name
from cluster.shared.tell_records import pack_content
from cluster.worker.handler_shape import is_coroutine_function
from cluster.worker.payload_annotation import find_payload_parameter, handler_name

__all__ = [
    "MessageHandler",
    "MessageHandlers",
    "encode_message",
    "is_message_type",
    "type_name",
]


_KEY_DECODERS: dict[Any, Callable[[bytes], Any]] = {bytes: bytes, str: bytes.decode, int: int}
"""By the annotation of `key`, what makes it of the bytes that keys travel as."""


class MessageHandler(NamedTuple):
    """What is called as `f(message, sender)`, and how its message is decoded."""

    function: Callable[..., Any]
    decode: Callable[[bytes], Any]
    awaits: bool
    """Whether it is a coroutine function."""
    decode_key: Callable[[bytes], Any] | None = None
    """Makes the `key` of what is called as `f(message, sender, key)`."""


def type_name(type_: type[msgspec.Struct]) -> str:
    """Return the name by which other shards know a type of message."""
    return type_.__name__


def encode_message(message: Any, codec: Codec) -> bytes:
    """Return the content of a message; TypeError for what is no struct, or cannot be encoded."""
    if not isinstance(message, msgspec.Struct):
        raise TypeError(
            f"a message for a shard is a msgspec.Struct, not {type(message).__name__}: {message!r}"
        )
    name = encode_name(type_name(type(message)), "type's name")
    return pack_content(name, codec.encode(message))


class MessageHandlers:
    """Those of one application."""

    def __init__(self, codec: Codec) -> None:
        """Have none yet; messages are decoded by `codec`."""
        self._codec = codec
        self.by_name: dict[str, MessageHandler] = {}
        self.by_name_keyed: dict[str, MessageHandler] = {}
        """Those that take a key."""
        self.undelivered: Callable[..., Any] | None = None
        """The handler of messages of which nobody knows what became."""
        self._undelivered_decoders: dict[str, Callable[[bytes], Any]] = {}

    def add(
        self, handler: Callable[..., Any], given: Any = None, *, takes_key: bool = False
    ) -> None:
        """Have `handler` take messages of the type `given`, or else of that of its annotation.

        With `takes_key` it takes those that are told by key. Raises TypeError, with handler,
        parameter and remedy, for what is no struct, for an annotation that says something else than
        what was given, and for one that no key is; ValueError for a type whose name has a handler.
        """
        type_ = _find_type(handler, given)
        name = type_name(type_)
        by_name = self.by_name_keyed if takes_key else self.by_name
        if name in by_name:
            other = handler_name(by_name[name].function)
            raise ValueError(f"messages of type {name} have the handler {other} already")
        encode_name(name, "type's name")
        by_name[name] = MessageHandler(
            handler,
            self._codec.decoder(type_),
            is_coroutine_function(handler),
            _find_key_decoder(handler) if takes_key else None,
        )

    def find(self, name: str, *, has_key: bool) -> MessageHandler:
        """Return the handler of messages of a type, which were told by key or not.

        LookupError if there is none.
        """
        handler = self.by_name_keyed.get(name) if has_key else None
        handler = handler or self.by_name.get(name)
        if handler is None:
            told = " that were told by no key" if name in self.by_name_keyed else ""
            raise LookupError(f"no handler takes messages of type {name!r}{told}")
        return handler

    def set_undelivered(self, handler: Callable[..., Any]) -> None:
        """Have `handler` hear of what is undelivered; its annotation may add types of messages."""
        self.undelivered = handler
        annotation = find_payload_parameter(handler, 0).annotation
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        for type_ in typing.get_args(annotation) if is_union else (annotation,):
            if is_message_type(type_):
                self._undelivered_decoders[type_name(type_)] = self._codec.decoder(type_)

    def undelivered_decoder(self, name: str) -> Callable[[bytes], Any]:
        """Return what decodes an undelivered message; LookupError for a type that nothing names."""
        handler = self.by_name.get(name) or self.by_name_keyed.get(name)
        decode = self._undelivered_decoders.get(name) if handler is None else handler.decode
        if decode is None:
            raise LookupError(
                f"neither on_message nor the annotation of on_undelivered names the type {name!r}"
            )
        return decode


def is_message_type(type_: Any) -> bool:
    """Return whether messages may be of `type_`."""
    return (
        isinstance(type_, type)
        and issubclass(type_, msgspec.Struct)
        and type_ is not msgspec.Struct
    )


def _find_key_decoder(handler: Callable[..., Any]) -> Callable[[bytes], Any]:
    """Return what makes a key what the annotation of the third parameter says; TypeError if none.

    What it makes raises ValueError for a key that is no text, or no number.
    """
    parameter = find_payload_parameter(handler, 2)
    decode = _KEY_DECODERS.get(parameter.annotation)
    if decode is None:
        raise TypeError(
            f"handler {handler_name(handler)}: a key is bytes, a str or an int; the annotation of "
            f"{parameter.name!r} is {parameter.annotation!r}"
        )
    return decode


def _find_type(handler: Callable[..., Any], given: Any) -> type[msgspec.Struct]:
    parameter = find_payload_parameter(handler, 0)
    annotation = parameter.annotation
    type_: Any = given if given is not None else annotation
    if given is None and parameter.name is None:
        raise TypeError(
            f"handler {handler_name(handler)} does not say which msgspec.Struct it takes; write "
            "@app.on_message(Type)"
        )
    if not is_message_type(type_):
        raise TypeError(
            f"handler {handler_name(handler)}: annotate {parameter.name or 'message'!r} with the "
            "msgspec.Struct that it takes, or write @app.on_message(Type); it says "
            f"{'bytes, or nothing' if type_ is bytes else repr(type_)} (messages are those of "
            "shards; packets of clients come to @app.on_packet)"
        )
    if is_message_type(annotation) and annotation is not type_:
        raise TypeError(
            f"handler {handler_name(handler)} is for {type_.__name__}, and {parameter.name!r} is "
            f"annotated with {annotation.__name__}"
        )
    found: type[msgspec.Struct] = type_
    return found
