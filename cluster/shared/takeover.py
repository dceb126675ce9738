"""What gateway and worker tell each other of a shard's past when a worker takes the shard.

These are parts of two control messages: what came before this life is told in `Grant`, as of the
commit, and what a machine's notes tell of earlier lives in `Hello`.
"""

import msgspec

__all__ = [
    "PAST_CALLS_MAX",
    "DeferredRecord",
    "PastCall",
    "ReplayedSession",
    "Suspect",
    "TellState",
]

PAST_CALLS_MAX = 16
"""Earlier lives that a worker tells of."""


class ReplayedSession(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A session that the predecessor had: opened and not closed, as of the commit.

    `closing` says that its end is committed: what it sent behind that is done without a handler.
    `sequence` is the number of its last packet that is done, `saved` what was saved last. `user` is
    who it is, by the answers that are done; `bind_request` the number of its last bind or unbind,
    `unbind_request` that of its last unbind: answers to binds before that are void. `groups` are
    those that it is in. `send_blocked` is what the workers were told of its send queue.
    `group_requests` are the numbers of the joins to `groups`, or empty where none has one, and
    `join_request` that of its last join.
    """

    id: int
    address: str
    closing: bool = False
    sequence: int = 0
    saved: bytes | None = None
    user: str | None = None
    bind_request: int = 0
    unbind_request: int = 0
    groups: tuple[str, ...] = ()
    send_blocked: bool = False
    group_requests: tuple[int, ...] = ()
    join_request: int = 0


class DeferredRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A handler call that is committed and not done: packet `index` of the record at `position`.

    `payload` is the packet, header and all, with its `sequence`; of a record of another `kind`
    it is what that holds.
    """

    session: int
    position: int
    index: int
    kind: int
    sequence: int
    payload: bytes


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A handler call in which a predecessor died: packet `index` of the record at `position`.

    What comes before it is to be committed before it runs. One that `is_set_aside` is skipped,
    and its session ended.
    """

    position: int
    index: int
    is_set_aside: bool


class TellState(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What a shard has `told` one node since the gateway began, as of the commit, in bytes.

    That much of it as `returned` says has come to its end, as its workers know.
    """

    node: int
    told: int
    returned: int


class PastCall(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What an earlier worker on another machine had in hand when it died, or 0 for nothing.

    Of the life `incarnation` under the gateway with that `nonce`: packet `index` of the record at
    `position`, or with position 0 the resumption of `session`.
    """

    nonce: int
    incarnation: int
    position: int
    index: int
    session: int
