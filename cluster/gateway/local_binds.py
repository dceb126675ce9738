"""Binds as the table of this node decides them, and their answers.

A replaced session is ended in good order; the answer goes through the log of the session's shard,
so that a worker's death does not lose it.
"""

from cluster.gateway.counters import Counters
from cluster.gateway.session import GatewaySession
from cluster.gateway.users import UserTable
from cluster.shared.causes import Cause
from cluster.shared.user_records import Bind, BindResult, Bound, pack_bound

__all__ = ["LocalBinds"]


class LocalBinds:
    """Carries out binds in one table. For the dispatching thread."""

    __slots__ = ("_counters", "users")

    def __init__(self, users: UserTable[GatewaySession], counters: Counters) -> None:
        self.users = users
        self._counters = counters

    def bind(self, session: GatewaySession, bind: Bind) -> BindResult:
        """Let `session`, which is present, be the user unless the policy forbids; answer it."""
        result, replaced = self.users.bind(session, bind.user, bind.policy)
        if replaced is not None:
            replaced.disconnect(Cause.REPLACED)
        if result is BindResult.REJECTED:
            self.reject(session, bind.request)
        else:
            session.accept()
            self._answer(session, result, bind.request)
        return result

    def reject(self, session: GatewaySession, request: int) -> None:
        """Answer that `session` is who it was before."""
        self._counters.add("binds_rejected")
        self._answer(session, BindResult.REJECTED, request)

    def void(self, session: GatewaySession, request: int) -> None:
        """Answer a bind that an unbind has made void: whoever awaits it hears of that."""
        self._answer(session, BindResult.REJECTED, request)

    @staticmethod
    def _answer(session: GatewaySession, result: BindResult, request: int) -> None:
        session.shard.append_bound(session, pack_bound(Bound(result, request, session.user)))
