"""What decides about the users of a node, wired: its own table, and the cluster's."""

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

__all__ = ["NodeUsers"]


class NodeUsers:
    """The parts for users of one node. For the dispatching thread."""

    __slots__ = ("binds", "logins", "sends")

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
        self.binds = LocalBinds(users, counters)
        self.logins = NodeLogins(
            traffic, core, sessions, self.binds, counters, timeout_s, wall_clock
        )
        self.sends = UserSends(traffic, self.logins, users, counters)
