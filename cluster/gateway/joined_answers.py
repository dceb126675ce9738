"""Which joins the worker of a shard is to hear of next. No I/O, no clock.

A session has at most one `joined` record in the lane, so that joins, which nothing holds back, do
not fill it. What comes meanwhile waits, each group once, until that record is committed.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["JoinedAnswers"]


class JoinedAnswers:
    """Of one shard. Bounded by the groups of its sessions. For the dispatching thread."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[GatewaySession, dict[bytes, int]] = {}  # of those with one in the lane

    def add(self, session: "GatewaySession", name: bytes, request: int) -> bool:
        """The worker is to hear of a join; True if the record of it goes into the lane now."""
        waiting = self._waiting.get(session)
        if waiting is None:
            self._waiting[session] = {}
            return True
        waiting[name] = request
        return False

    def withdraw(self, session: "GatewaySession", name: bytes) -> None:
        """The session is not in the group any more."""
        waiting = self._waiting.get(session)
        if waiting is not None:
            waiting.pop(name, None)

    def committed(self, session: "GatewaySession") -> tuple[bytes, int] | None:
        """The record in the lane is done; return name and request of the next one, if any."""
        waiting = self._waiting[session]
        if not waiting or session.closed_appended:
            del self._waiting[session]
            return None
        name = next(iter(waiting))
        return name, waiting.pop(name)
