"""The gateway's listener and sessions: no accept is armed while every lane is full.

`opened` and `closed` records always go in, because the worker has to hear of them. What bounds
them is that a shard whose lane is full gets no new session, and that clients wait in the backlog
when all shards are. On a port that nodes share (`node.shared_port`) clients wait for moments like
these, but not for the end of a session: a gateway with as many as it may have closes theirs.
"""

from functools import partial
from typing import Any

from cluster.gateway.limited_session import session_type
from cluster.gateway.session_table import SessionTable
from cluster.iocp import NetAddress, ServerService

__all__ = ["GatewayService"]


class GatewayService(ServerService):
    """A server service whose sessions get a shard from `table`. For the dispatching thread."""

    def __init__(self, table: SessionTable, *arguments: Any, **options: Any) -> None:
        """Accept for `table`; the other arguments are those of `ServerService`."""
        super().__init__(*arguments, **options)
        self.set_session_factory(partial(session_type(table.limits), table))
        self._table = table
        self._is_paused = False

    @property
    def free_slot_count(self) -> int:
        if not self._table.is_full:
            return super().free_slot_count
        if not self._is_paused:
            self._is_paused = True
            self._table.counters.add("accepting_paused")
        return 0

    def admits(self, address: NetAddress | None) -> bool:
        # Whose client a load balancer passes on, and whether that one is admitted, comes later.
        return address in self._table.limits.proxies or self._table.admits(address)

    def resume_accepting(self) -> None:
        """Accept again when a lane has room again; to be called after each batch of completions."""
        if self._is_paused and not self._table.is_full:
            self._is_paused = False
            self.listener.replenish()
