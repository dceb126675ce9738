"""The payloads of the records that users come with, little-endian, in one place for both sides.

    bind     u8 policy, u32 request, user
    unbind   u32 request
    bound    u8 result, u32 request, user or nothing
    send_to  u8 length of the user, user, packets

A user is 1 to 255 bytes of UTF-8. That of an answer is who the session is then, whatever the
result, because an answer may stand for those before it. `request` numbers a session's binds and
unbinds from 1, also across the lives of its workers: the answer to a bind has the bind's, so that
one which came before an unbind is known for what it is.
"""

from enum import IntEnum, StrEnum
from struct import Struct
from typing import NamedTuple

from cluster.shared.names import NAME_BYTES_MAX, decode_name
from cluster.shared.records import RecordError

__all__ = [
    "BIND_BYTES_MAX",
    "UNBIND_BYTES",
    "Bind",
    "BindResult",
    "Bound",
    "SecondLogin",
    "pack_bind",
    "pack_bound",
    "pack_send_to",
    "pack_unbind",
    "read_bind",
    "read_bound",
    "read_send_to",
    "read_unbind",
]

_BIND = Struct("<BI")
_UNBIND = Struct("<I")

BIND_BYTES_MAX = _BIND.size + NAME_BYTES_MAX
UNBIND_BYTES = _UNBIND.size


class BindResult(StrEnum):
    """What became of a bind."""

    BOUND = "bound"
    """The session is this user now."""
    REJECTED = "rejected"
    """It is not, and is what it was before."""


class SecondLogin(IntEnum):
    """What becomes of a bind to a user that another session has."""

    REPLACE = 0
    """The other session is ended."""
    REJECT = 1
    """The bind is rejected."""


_RESULTS = (BindResult.BOUND, BindResult.REJECTED)


class Bind(NamedTuple):
    """A worker asks for a session to be `user`."""

    policy: SecondLogin
    request: int
    user: str


class Bound(NamedTuple):
    """The answer to the bind with the same `request`, and who the session is then."""

    result: BindResult
    request: int
    user: str | None


def pack_bind(policy: SecondLogin, request: int, user: bytes) -> bytes:
    """Return the payload of a `bind` record."""
    return _BIND.pack(policy, request) + user


def read_bind(payload: bytes) -> Bind:
    """Return what a `bind` record says; RecordError if it cannot be one."""
    if len(payload) > _BIND.size:
        policy, request = _BIND.unpack_from(payload)
        user = decode_name(payload[_BIND.size :])
        if user is not None and policy in (SecondLogin.REPLACE, SecondLogin.REJECT):
            return Bind(SecondLogin(policy), request, user)
    raise RecordError(f"a bind that cannot be read: {payload!r}")


def pack_unbind(request: int) -> bytes:
    """Return the payload of an `unbind` record."""
    return _UNBIND.pack(request)


def read_unbind(payload: bytes) -> int:
    """Return the request of an `unbind` record; RecordError if it cannot be one."""
    if len(payload) != _UNBIND.size:
        raise RecordError(f"an unbind that cannot be read: {payload!r}")
    request: int = _UNBIND.unpack(payload)[0]
    return request


def pack_bound(bound: Bound) -> bytes:
    """Return the payload of a `bound` record."""
    return _BIND.pack(_RESULTS.index(bound.result), bound.request) + (bound.user or "").encode()


def read_bound(payload: bytes) -> Bound:
    """Return what a `bound` record says; it comes from the gateway, which is trusted."""
    result, request = _BIND.unpack_from(payload)
    return Bound(_RESULTS[result], request, payload[_BIND.size :].decode() or None)


def pack_send_to(user: bytes, packets: bytes) -> bytes:
    """Return the payload of a `send_to` record."""
    return b"%c%b%b" % (len(user), user, packets)


def read_send_to(payload: bytes) -> tuple[str, bytes]:
    """Return user and packets of a `send_to` record; RecordError if it cannot be one."""
    end = 1 + payload[0] if payload else 0
    user = decode_name(payload[1:end])
    if user is None or end >= len(payload):
        raise RecordError(f"a send_to that cannot be read: {payload[:300]!r}")
    return user, payload[end:]
