"""A packet as a client has received it."""

from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from cluster.shared.codec import Codec

__all__ = ["Packet"]

T = TypeVar("T")

_NO_CODEC = Codec()


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that a client has received. Equal to any with the same id and payload."""

    id: int
    payload: bytes
    codec: Codec = field(default=_NO_CODEC, repr=False, compare=False)
    """How the application that sent it encodes structs."""

    @overload
    def decode(self, type_: type[T]) -> T: ...

    @overload
    def decode(self, type_: object) -> Any: ...

    def decode(self, type_: Any) -> Any:
        """Return the payload as a `type_`, by the codec of the application.

        To type checkers what a union or an `Annotated` decodes to is anything.

        Raises msgspec.DecodeError, or its subclass ValidationError, for a payload that is none.
        """
        return self.codec.decoder(type_)(self.payload)
