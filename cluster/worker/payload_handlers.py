"""Makes of a handler, by the annotation of its payload, what is called with the bytes of a packet.

The choice is made once, when the handler is registered. A handler that takes bytes is called as it
is, so that it pays nothing for the others.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.shared.codec import Codec
from cluster.worker.decode_errors import DecodeErrors
from cluster.worker.handler_shape import is_coroutine_function
from cluster.worker.payload_annotation import find_payload_parameter, handler_name
from cluster.worker.session import Session

__all__ = ["adapt_any_handler", "adapt_packet_handler"]

_RAW = (bytes, bytearray, memoryview)
_REMEDY = (
    "annotate it as bytes or memoryview for the payload as it came, or as a msgspec.Struct or "
    "another type that msgspec decodes"
)


def adapt_packet_handler(
    handler: Callable[[Session, Any], Any], packet_id: int, codec: Codec, errors: DecodeErrors
) -> Callable[[Session, bytes], Any]:
    """Return what to call as `f(session, payload)` for the packets with `packet_id`.

    Raises TypeError, with handler, parameter and remedy, for an annotation that is neither bytes,
    nor memoryview, nor anything that `codec` decodes.
    """
    kind, decode = _choose(handler, 1, codec)
    if kind is bytes:
        return handler
    if kind is memoryview and is_coroutine_function(handler):

        async def await_with_view(session: Session, payload: bytes) -> None:
            with memoryview(payload) as view:
                await handler(session, view)

        return await_with_view
    if kind is memoryview:

        def call_with_view(session: Session, payload: bytes) -> Any:
            with memoryview(payload) as view:
                return handler(session, view)

        return call_with_view

    def call_with_message(session: Session, payload: bytes) -> Any:
        try:
            message = decode(payload)
        except Exception as error:
            errors.add(session, packet_id, payload, error, codec)
            return None
        return handler(session, message)

    return call_with_message


def adapt_any_handler(
    handler: Callable[[Session, int, Any], Any], codec: Codec, errors: DecodeErrors
) -> Callable[[Session, int, bytes], Any]:
    """Return what to call as `f(session, packet_id, payload)`; like `adapt_packet_handler`."""
    kind, decode = _choose(handler, 2, codec)
    if kind is bytes:
        return handler
    if kind is memoryview and is_coroutine_function(handler):

        async def await_with_view(session: Session, packet_id: int, payload: bytes) -> None:
            with memoryview(payload) as view:
                await handler(session, packet_id, view)

        return await_with_view
    if kind is memoryview:

        def call_with_view(session: Session, packet_id: int, payload: bytes) -> Any:
            with memoryview(payload) as view:
                return handler(session, packet_id, view)

        return call_with_view

    def call_with_message(session: Session, packet_id: int, payload: bytes) -> Any:
        try:
            message = decode(payload)
        except Exception as error:
            errors.add(session, packet_id, payload, error, codec)
            return None
        return handler(session, packet_id, message)

    return call_with_message


def _choose(
    handler: Callable[..., Any], index: int, codec: Codec
) -> tuple[Any, Callable[[bytes], Any]]:
    """Return what the payload is to be, and the function that makes it that."""
    name, annotation = find_payload_parameter(handler, index)
    kind = _plain(annotation)
    reason = _ambiguity(annotation, kind)
    cause: TypeError | None = None
    if reason is None:
        if kind is bytes or kind is memoryview:
            return kind, kind
        try:
            return kind, codec.decoder(annotation)
        except TypeError as error:
            reason, cause = str(error), error
    shown = annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)
    raise TypeError(
        f"handler {handler_name(handler)}: a payload cannot be made {shown}, the annotation of "
        f"{name!r} ({reason}); {_REMEDY}"
    ) from cause


def _ambiguity(annotation: Any, kind: Any) -> str | None:
    """Return why nobody can tell whether the payload is to be decoded; None if it is clear."""
    if kind is bytearray or any(member in _RAW for member in _members(kind)):
        return "it leaves open whether the payload is to be decoded"
    metadata = getattr(annotation, "__metadata__", ())
    if kind in _RAW and any(isinstance(item, msgspec.Meta) for item in metadata):
        return "only what is decoded is held against a msgspec.Meta"
    return None


def _plain(annotation: Any) -> Any:
    """Return `annotation` without what a NewType, an alias or an Annotated puts around it."""
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif typing.get_origin(annotation) is typing.Annotated:
            annotation = annotation.__origin__
        elif hasattr(annotation, "__value__"):  # of a `type` statement
            annotation = annotation.__value__
        else:
            return annotation


def _members(kind: Any) -> list[Any]:
    """Return what `kind` is a union of; nothing if it is none."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [_plain(member) for member in typing.get_args(kind)]
    return []
