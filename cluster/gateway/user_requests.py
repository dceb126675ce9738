"""Carries out what workers ask about users: binds, unbinds, and sends to a user.

The table decides; here a replaced session is ended and the answer to a bind put in the lane of the
session's shard. The answer comes through the log, so that a worker's death does not lose it.
"""

from collections.abc import Mapping

from cluster.gateway.counters import Counters
from cluster.gateway.session import GatewaySession
from cluster.gateway.succession import Succession
from cluster.gateway.users import UserTable
from cluster.shared.causes import Cause
from cluster.shared.records import BIND, UNBIND
from cluster.shared.user_records import (
    BindResult,
    Bound,
    pack_bound,
    read_bind,
    read_send_to,
    read_unbind,
)

__all__ = ["UserRequests"]


class UserRequests:
    """What the worker of one shard asks about users. For the dispatching thread."""

    __slots__ = ("_counters", "_sessions", "_succession", "_users")

    def __init__(
        self,
        sessions: Mapping[int, GatewaySession],
        users: UserTable[GatewaySession],
        counters: Counters,
        succession: Succession,
    ) -> None:
        """Change `users`; a successor hears by `succession` of what was asked."""
        self._sessions = sessions
        self._users = users
        self._counters = counters
        self._succession = succession

    def carry_out(self, kind: int, session_id: int, payload: bytes) -> None:
        """Carry out one bind, unbind or send_to; RecordError if it cannot be one."""
        if kind == BIND:
            self._bind(session_id, payload)
        elif kind == UNBIND:
            self._unbind(session_id, payload)
        else:
            self._send_to(payload)

    def _bind(self, session_id: int, payload: bytes) -> None:
        policy, request, user = read_bind(payload)
        self._succession.bind_asked(session_id, request)
        session = self._sessions.get(session_id)
        if session is None or not session.is_present:
            return  # its end is in the log, or will be, and is the answer
        result, replaced = self._users.bind(session, user, policy)
        if replaced is not None:
            replaced.disconnect(Cause.REPLACED)
        if result is BindResult.REJECTED:
            self._counters.add("binds_rejected")
        else:
            session.accept()
        session.shard.append_bound(session, pack_bound(Bound(result, request, session.user)))

    def _unbind(self, session_id: int, payload: bytes) -> None:
        # Noted also when the connection is gone: a successor hears of its end.
        self._succession.unbind_asked(session_id, read_unbind(payload))
        session = self._sessions.get(session_id)
        if session is not None:
            self._users.release(session)

    def _send_to(self, payload: bytes) -> None:
        user, packets = read_send_to(payload)
        session = self._users.find(user)
        if session is not None and session.send_now(packets):
            self._counters.sends += 1
            self._counters.bytes_sent += len(packets)
        else:
            self._counters.add("sends_to_absent_users")
