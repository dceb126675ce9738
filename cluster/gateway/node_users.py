"""What decides about the users of a node, wired: its own table, and the cluster's.

A node that stands alone decides by its own table; in a cluster the owner of the user's key does.
The answer comes through the log, so that a worker's death does not lose it.
"""

import time
from collections.abc import Callable, Mapping

from cluster.gateway.counters import Counters
from cluster.gateway.local_binds import LocalBinds
from cluster.gateway.logins.node_logins import NodeLogins
from cluster.gateway.logins.user_sends import UserSends
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.session import GatewaySession
from cluster.gateway.users import UserTable
from cluster.iocp import IocpCore
from cluster.shared.user_records import Bind, BindResult

__all__ = ["NodeUsers"]


class NodeUsers:
    """The parts for users of one node. For the dispatching thread."""

    __slots__ = ("_binds", "logins", "sends")

    def __init__(
        self,
        traffic: NodeTraffic,
        core: IocpCore,
        sessions: Mapping[int, GatewaySession],
        users: UserTable[GatewaySession],
        counters: Counters,
        timeout_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Decide which of `sessions` are `users`; an owner is waited for `timeout_s` seconds.

        `wall_clock` gives the seconds since the epoch, by which logins of parted nodes compare.
        """
        self._binds = binds = LocalBinds(users, counters)
        self.logins = NodeLogins(traffic, core, sessions, binds, counters, timeout_s, wall_clock)
        self.sends = UserSends(traffic, self.logins, users, counters)

    def bind(self, session: GatewaySession, bind: Bind) -> None:
        """Decide about a bind of a session that is present; answered in its log, now or later."""
        if self.logins.look_around():
            self.logins.asker.bind(session, bind)
        elif self._binds.bind(session, bind) is BindResult.BOUND:
            session.login_stamp = self.logins.asker.next_stamp()

    def unbind(self, session: GatewaySession) -> None:
        """Let `session` be nobody, and void what it asks for."""
        self.logins.asker.unbind(session)
