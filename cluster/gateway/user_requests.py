"""Carries out what workers ask about users: binds, unbinds, and what is for a user.

A node that stands alone decides by its own table; in a cluster the owner of the user's key does.
The answer comes through the log, so that a worker's death does not lose it.
"""

from collections.abc import Mapping

from cluster.gateway.node_users import NodeUsers
from cluster.gateway.session import GatewaySession
from cluster.gateway.succession import Succession
from cluster.shared.records import BIND, UNBIND
from cluster.shared.user_records import BindResult, read_bind, read_unbind

__all__ = ["UserRequests"]


class UserRequests:
    """What the worker of one shard asks about users. For the dispatching thread."""

    __slots__ = ("_asker", "_binds", "_logins", "_sends", "_sessions", "_succession")

    def __init__(
        self, sessions: Mapping[int, GatewaySession], users: NodeUsers, succession: Succession
    ) -> None:
        """Have `users` decide; a successor hears by `succession` of what was asked."""
        self._sessions = sessions
        self._binds = users.binds
        self._logins = users.logins
        self._asker = users.logins.asker
        self._sends = users.sends
        self._succession = succession

    def carry_out(self, kind: int, session_id: int, payload: bytes) -> None:
        """Carry out one bind, unbind, send_to or kick; RecordError if it cannot be one."""
        if kind == BIND:
            self._bind(session_id, payload)
        elif kind == UNBIND:
            self._unbind(session_id, payload)
        else:
            self._sends.send(kind, payload)

    def _bind(self, session_id: int, payload: bytes) -> None:
        bind = read_bind(payload)
        self._succession.bind_asked(session_id, bind.request)
        session = self._sessions.get(session_id)
        if session is None or not session.is_present:
            return  # its end is in the log, or will be, and is the answer
        if self._logins.look_around():
            self._asker.bind(session, bind)
        else:
            if self._binds.bind(session, bind) is BindResult.BOUND:
                session.login_stamp = self._asker.next_stamp()

    def _unbind(self, session_id: int, payload: bytes) -> None:
        # Noted also when the connection is gone: a successor hears of its end.
        self._succession.unbind_asked(session_id, read_unbind(payload))
        session = self._sessions.get(session_id)
        if session is not None:
            self._asker.unbind(session)
