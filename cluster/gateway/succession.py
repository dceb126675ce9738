"""What a worker's successor is told: which sessions there are, how far each one is, what is saved.

Everything here is as of the commit. Opened and closed come with the inbound records that a commit
frees, and so do answers to binds; a save, an end, a bind, an unbind, a join or a leave that a
worker has published waits until the batch with it is committed, and is forgotten if that never
happens. What is known of a session goes with it, and lies here under its id, which is never used
again, so nothing can reach another session. No I/O, no clock.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.gateway.deferred import Deferred
from cluster.gateway.shard_saves import ShardSaves
from cluster.shared.group_records import GROUPS_MAX
from cluster.shared.records import BIND, DISCONNECT, JOIN, LEAVE, SAVE, UNBIND
from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.takeover import ReplayedSession
from cluster.shared.user_records import Bound

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Succession"]


class _Login:
    """Who a session is, as its workers know it, and how far their requests are."""

    __slots__ = ("request", "unbind_request", "user")

    def __init__(self) -> None:
        self.user: str | None = None
        self.request = 0
        self.unbind_request = 0


class _GroupNames(dict[bytes, str]):
    """The names of groups as text, each of them made once."""

    def __missing__(self, name: bytes) -> str:
        text = self[name] = name.decode("utf-8", "replace")
        return text


class Succession:
    """The sessions of one shard and what is saved, as of its commit. For the dispatching thread.

    Bounded: a session has at most one saved blob of `SAVE_BYTES_MAX` bytes, and `pending` is no
    larger than a batch.
    """

    __slots__ = (
        "_closing",
        "_groups",
        "_join_requests",
        "_logins",
        "_saved",
        "_sessions",
        "deferred",
        "pending",
        "saves",
    )

    def __init__(self, saved_bytes_max: int = SAVED_BYTES_MAX) -> None:
        self._sessions: dict[int, GatewaySession] = {}
        self._saved: dict[int, bytes] = {}
        self._closing: set[int] = set()
        self.deferred = Deferred()
        """What is committed and goes on in coroutines."""
        self.saves = ShardSaves(saved_bytes_max)
        """What is saved for the shard and not for a session of it."""
        self._logins: dict[int, _Login] = {}
        self._groups: dict[int, dict[bytes, int]] = {}  # with the numbers of their joins
        self._join_requests: dict[int, int] = {}
        self.pending: list[tuple[int, int, Any]] = []
        """What the batch in hand changes: the kind of its record, the session, what it says."""

    # -- the batch in hand -------------------------------------------------------------------------

    def save(self, session_id: int, blob: bytes) -> None:
        """Know `blob` of a session once the batch in hand is committed."""
        self.pending.append((SAVE, session_id, blob))

    def end(self, session_id: int) -> None:
        """Know that the worker has ended a session once the batch in hand is committed."""
        self.pending.append((DISCONNECT, session_id, None))

    def bind_asked(self, session_id: int, request: int) -> None:
        """Know the number of a bind once the batch in hand is committed."""
        self.pending.append((BIND, session_id, request))

    def unbind_asked(self, session_id: int, request: int) -> None:
        """Know a session as nobody, and answers to binds before `request` as void, from then on."""
        self.pending.append((UNBIND, session_id, request))

    def join_asked(self, session_id: int, request: int, name: bytes) -> None:
        """Know that a session is in a group once the batch in hand is committed."""
        self.pending.append((JOIN, session_id, (request, name)))

    def left(self, session_id: int, name: bytes) -> None:
        """Know that it is not in a group any more from then on."""
        self.pending.append((LEAVE, session_id, name))

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        for kind, session_id, value in self.pending:
            if kind == JOIN and session_id in self._sessions:
                self._number_join(session_id, value[0])  # which may be answered already
        self.pending.clear()
        self.deferred.abandon()
        self.saves.abandon()

    # -- commits -----------------------------------------------------------------------------------

    def opened(self, session: "GatewaySession") -> None:
        """A worker has handled, for good, that `session` was opened."""
        self._sessions[session.id] = session

    def closed(self, session: "GatewaySession") -> None:
        """A worker has handled, for good, that `session` was closed: forget it."""
        session_id = session.id
        self._sessions.pop(session_id, None)
        self._saved.pop(session_id, None)
        self._closing.discard(session_id)
        self._logins.pop(session_id, None)
        self._groups.pop(session_id, None)
        self._join_requests.pop(session_id, None)

    def bound(self, session_id: int, bound: Bound) -> None:
        """A worker has handled, for good, the answer to a bind."""
        login = self._logins.get(session_id)
        if login is not None and bound.request > login.unbind_request:
            login.user = bound.user

    def commit(self) -> None:
        """The batch in hand is committed, and what it opened and closed has been told."""
        for kind, session_id, value in self.pending:
            if session_id not in self._sessions:
                continue
            if kind == SAVE:
                self._saved[session_id] = value
            elif kind == DISCONNECT:
                self._closing.add(session_id)
            elif kind == JOIN:
                request, name = value
                self._number_join(session_id, request)
                groups = self._groups.setdefault(session_id, {})
                if len(groups) < GROUPS_MAX:
                    groups[name] = request
            elif kind == LEAVE:
                self._groups.get(session_id, {}).pop(value, None)
            else:
                self._asked(kind, session_id, value)
        self.pending.clear()

    def _number_join(self, session_id: int, request: int) -> None:
        if request:
            self._join_requests[session_id] = request

    def _asked(self, kind: int, session_id: int, request: int) -> None:
        login = self._logins.setdefault(session_id, _Login())
        login.request = request
        if kind == UNBIND:
            login.unbind_request = request
            login.user = None

    def end_now(self, session_id: int) -> None:
        """The gateway ends a session that no worker can be given back as it was."""
        if session_id in self._sessions:
            self._closing.add(session_id)

    # -- the successor -----------------------------------------------------------------------------

    def find(self, session_id: int) -> "GatewaySession | None":
        """Return a session that a successor would take over as open or closing; else None."""
        return self._sessions.get(session_id)

    def groups(self, session_id: int) -> dict[bytes, int]:
        """Return the groups that a session is in as of the commit, in the order of joining.

        With the number of each join, 0 for one that wants no answer.
        """
        return dict(self._groups.get(session_id, ()))

    def sessions(self) -> "list[GatewaySession]":
        """Return every session whose opening is committed and whose end is not, in that order."""
        return list(self._sessions.values())

    def tell_of(
        self, sessions: "Iterable[GatewaySession]", packets_left: Mapping[int, int]
    ) -> list[ReplayedSession]:
        """Return what a successor is told of `sessions`, of which so many packets each, by its id,
        have been received and are not committed."""
        nobody, no_groups = _Login(), dict[bytes, int]()
        find_login, find_groups = self._logins.get, self._groups.get
        find_request, find_saved = self._join_requests.get, self._saved.get
        find_left = packets_left.get
        closing, text_of = self._closing, _GroupNames().__getitem__
        replayed = []
        for session in sessions:
            session_id = session.id
            login = find_login(session_id, nobody)
            groups = find_groups(session_id, no_groups)
            join_request = find_request(session_id, 0)
            replayed.append(
                ReplayedSession(
                    id=session_id,
                    address=session.address_text,
                    closing=session_id in closing,
                    sequence=session.next_sequence - 1 - find_left(session_id, 0),
                    saved=find_saved(session_id),
                    user=login.user,
                    bind_request=login.request,
                    unbind_request=login.unbind_request,
                    groups=tuple(map(text_of, groups)) if groups else (),
                    group_requests=tuple(groups.values()) if join_request else (),
                    join_request=join_request,
                    # A record of it that is not committed says the opposite of what was before it.
                    send_blocked=session.told_send_blocked != session.send_record_in_lane,
                )
            )
        return replayed

    def check_invariants(self) -> None:
        """Raise AssertionError if anything is known of a session that is not there."""
        self.deferred.check_invariants()
        self.saves.check_invariants()
        assert self._saved.keys() <= self._sessions.keys()
        assert self._closing <= self._sessions.keys()
        assert self._logins.keys() <= self._sessions.keys()
        assert self._groups.keys() <= self._sessions.keys()
        assert self._join_requests.keys() <= self._sessions.keys()
        assert all(session.id == number for number, session in self._sessions.items())
