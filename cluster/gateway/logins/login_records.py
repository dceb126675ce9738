"""What nodes tell each other about logins: one layout, little-endian, for all kinds of it.

    u8 kind, u8 what, u64 session, u64 stamp, u32 request, user

What the fields are for depends on the kind; those that it does not need are 0, or no user.
"""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from cluster.shared.names import decode_name
from cluster.shared.records import RecordError

__all__ = [
    "ANSWER",
    "ASK",
    "CHECK",
    "CHECKED",
    "LOGIN_KINDS",
    "STAMP_MAX",
    "TAKEN",
    "TELL",
    "Login",
    "LoginNews",
    "LoginRecord",
    "pack_login_record",
    "read_login_record",
]

ASK = 8
"""To the owner: may `session` be `user`? `what` is the policy, `stamp` the time of the bind."""
ANSWER = 9
"""To who asked: `what` is 1 if it is from now on, since `stamp`."""
TELL = 10
"""To the owner: what is so (`LoginNews`), without a question."""
TAKEN = 11
"""To the holder: another session is `user`, since `stamp`; `session` is to be ended."""
CHECK = 12
"""To the holder: is `session` still `user`, and its client still there?"""
CHECKED = 13
"""To the owner: `what` is 1 if it is."""

LOGIN_KINDS = (ASK, ANSWER, TELL, TAKEN, CHECK, CHECKED)

_RECORD = Struct("<BBQQI")

STAMP_MAX = (1 << 64) - 1
"""What a record has room for. Logins behind one of this stamp have it as well, so that a stamp is
the same wherever it is compared."""


class LoginNews(IntEnum):
    """What a `TELL` tells an owner."""

    FREE = 0
    """`session` is `user` no more, and does not ask for it."""
    HOLD = 1
    """`session` is `user`, since `stamp`."""
    BEGIN = 2
    """All users that it has and you own follow; what you thought else is wrong."""
    END = 3
    """That was all; and what follows was asked and told after the connection began."""


class Login(NamedTuple):
    """Which session a user is, and since when. The greater of two is the later one."""

    stamp: int
    """Microseconds of its node's clock, or one more than those of the login before it."""
    node: int
    session: int


class LoginRecord(NamedTuple):
    """One record of a link."""

    kind: int
    session: int = 0
    stamp: int = 0
    request: int = 0
    what: int = 0
    user: str = ""


def pack_login_record(record: LoginRecord) -> bytes:
    """Return the payload for a link."""
    kind, session, stamp, request, what, user = record
    return _RECORD.pack(kind, what, session, stamp, request) + user.encode()


def read_login_record(payload: bytes) -> LoginRecord:
    """Return what a record says; RecordError if it cannot be one."""
    if len(payload) >= _RECORD.size:
        kind, what, session, stamp, request = _RECORD.unpack_from(payload)
        is_bare = kind == TELL and what in (LoginNews.BEGIN, LoginNews.END)
        user = "" if is_bare else decode_name(payload[_RECORD.size :])
        if user is not None and what <= (LoginNews.END if kind == TELL else 1):
            return LoginRecord(kind, session, stamp, request, what, user)
    raise RecordError(f"a record about logins that cannot be read: {payload[:300]!r}")
