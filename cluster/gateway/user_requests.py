"""Carries out what workers ask about users: binds, unbinds, and what is for a user."""

from collections.abc import Mapping

from cluster.gateway.node_users import NodeUsers
from cluster.gateway.session import GatewaySession
from cluster.gateway.succession import Succession
from cluster.shared.records import BIND, UNBIND
from cluster.shared.user_records import read_bind, read_unbind

__all__ = ["UserRequests"]


class UserRequests:
    """What the worker of one shard asks about users. For the dispatching thread."""

    __slots__ = ("_send", "_sessions", "_succession", "_users")

    def __init__(
        self, sessions: Mapping[int, GatewaySession], users: NodeUsers, succession: Succession
    ) -> None:
        """Have `users` decide; a successor hears by `succession` of what was asked."""
        self._sessions = sessions
        self._users = users
        self._send = users.sends.send
        self._succession = succession

    def carry_out(self, kind: int, session_id: int, payload: bytes) -> None:
        """Carry out one bind, unbind, send_to or kick; RecordError if it cannot be one."""
        if kind == BIND:
            self._bind(session_id, payload)
        elif kind == UNBIND:
            self._unbind(session_id, payload)
        else:
            self._send(kind, payload)

    def _bind(self, session_id: int, payload: bytes) -> None:
        bind = read_bind(payload)
        self._succession.bind_asked(session_id, bind.request)
        session = self._sessions.get(session_id)
        # Else its end is in the log, or will be, and is the answer.
        if session is not None and session.is_present:
            self._users.bind(session, bind)

    def _unbind(self, session_id: int, payload: bytes) -> None:
        # Noted also when the connection is gone: a successor hears of its end.
        self._succession.unbind_asked(session_id, read_unbind(payload))
        session = self._sessions.get(session_id)
        if session is not None:
            self._users.unbind(session)
