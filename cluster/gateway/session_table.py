"""The sessions of this node by id, user and group, and which shard each one has."""

from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.gateway.counters import Counters
from cluster.gateway.groups import GroupTable
from cluster.gateway.limits import Limits
from cluster.gateway.routing import Routing
from cluster.gateway.session import GatewaySession
from cluster.gateway.session_ids import SessionIds
from cluster.gateway.shard import Shard
from cluster.gateway.users import UserTable
from cluster.iocp import NetAddress
from cluster.shared.causes import Cause
from cluster.shared.lane import LaneState

__all__ = ["SessionTable", "SessionWatcher"]

# Applications may end sessions with any string; the number of counters stays bounded.
_CAUSES = frozenset(Cause)

_GRANTED = LaneState.GRANTED


class SessionWatcher(Protocol):
    """Who looks on as sessions come and go."""

    def opened(self, session: GatewaySession) -> None:
        """A session was given its id and shard."""
        ...

    def closed(self, address: NetAddress | None, cause: str) -> None:
        """A connection from `address` has ended, also one that never became a session."""
        ...


class SessionTable:
    """Opens and forgets sessions. For the dispatching thread."""

    __slots__ = (
        "_ids",
        "_routing",
        "_shards",
        "counters",
        "groups",
        "limits",
        "on_ids_running_out",
        "sessions",
        "users",
        "watcher",
    )

    def __init__(
        self,
        ids: SessionIds,
        shards: Sequence[Shard],
        routing: Routing,
        counters: Counters,
        limits: Limits,
    ) -> None:
        """Give each session one of `shards`, the one that `routing` chooses, under `limits`."""
        self._ids = ids
        self._shards = shards
        self._routing = routing
        self.counters = counters
        self.limits = limits
        self.sessions: dict[int, GatewaySession] = {}
        self.users: UserTable[GatewaySession] = UserTable()
        self.watcher: SessionWatcher | None = None
        self.groups: GroupTable[GatewaySession] = GroupTable()
        self.on_ids_running_out: Callable[[], None] = lambda: None
        """Called for each session that is opened with one of the last ids of this life."""

    @property
    def is_full(self) -> bool:
        """Whether there is no shard whose lane has room."""
        return all(shard.lane.is_full for shard in self._shards)

    @property
    def counts(self) -> Sequence[int]:
        """How many sessions each shard has."""
        return self._routing.counts

    def admits(self, address: NetAddress | None) -> bool:
        """Whether the limits let a new connection from `address` in; it is counted if they do."""
        if self.limits.admits(address):
            return True
        if self.watcher is not None:
            self.watcher.closed(address, Cause.RATE_LIMITED)
        return False

    def open(self, session: GatewaySession) -> None:
        """Give a session that has connected an id and a shard, and tell the shard's worker."""
        try:
            session_id = self._ids.next_id()
        except Exception:
            self.limits.release(session)
            raise
        if self._ids.is_running_out:
            self.on_ids_running_out()
        self.limits.begin(session)
        shard = self._shards[self._choose_shard()]
        session.shard = shard
        session.id = session_id
        self.sessions[session.id] = session
        self.counters.add("sessions_opened")
        shard.append_opened(session)
        if self.watcher is not None:
            self.watcher.opened(session)

    def _choose_shard(self) -> int:
        lanes = [shard.lane for shard in self._shards]
        allowed = [lane.state is _GRANTED and not lane.is_full for lane in lanes]
        if True not in allowed:
            # What always goes in, the news of sessions, goes where there is room.
            allowed = [not lane.is_full for lane in lanes]
        return self._routing.choose(allowed)

    def forget(self, session: GatewaySession, cause: str) -> None:
        """Take out a session whose connection has ended, and tell its worker the cause."""
        if self.watcher is not None:
            self.watcher.closed(session.address, cause)
        if self.sessions.pop(session.id, None) is None:
            return  # there was no id left for it
        self.limits.release(session)
        self.users.forget(session)
        self.groups.leave_all(session)
        self._routing.release(session.shard.index)
        self.counters.add("sessions_closed")
        self.counters.add(f"closed_{cause}" if cause in _CAUSES else "closed_application")
        session.shard.append_closed(session, cause)

    def check_invariants(self) -> None:
        """Raise AssertionError unless each session is counted once, and users have theirs."""
        self.users.check_invariants()
        self.groups.check_invariants()
        self.limits.deadlines.check_invariants()
        assert len(self.users) == sum(s.user is not None for s in self.sessions.values())
        assert sum(self._routing.counts) == len(self.sessions)
        for index, shard in enumerate(self._shards):
            mine = [session for session in self.sessions.values() if session.shard is shard]
            assert len(mine) == self._routing.counts[index]
