"""A session of the gateway that tells its node when it begins and how it ends."""

from typing import Protocol

from cluster.gateway.session import GatewaySession
from cluster.gateway.session_table import SessionTable

__all__ = ["SessionWatcher", "WatchedSession"]


class SessionWatcher(Protocol):
    """Who is told."""

    def opened(self, session: GatewaySession) -> None:
        """The gateway has opened a session; it has its id."""
        ...

    def closed(self, session: GatewaySession, cause: str) -> None:
        """The gateway has closed a session."""
        ...


class WatchedSession(GatewaySession):
    """A session like any other, but for what it tells."""

    __slots__ = ("_watcher",)

    def __init__(self, table: SessionTable, watcher: SessionWatcher) -> None:
        self._watcher = watcher
        super().__init__(table)

    def on_connected(self) -> None:
        super().on_connected()
        self._watcher.opened(self)

    def on_disconnected(self, cause: str) -> None:
        super().on_disconnected(cause)
        self._watcher.closed(self, cause)
