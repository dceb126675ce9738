"""The lanes of workers on this machine and of those on others, as one hub.

A node without the others has the one hub alone, and pays nothing for this.
"""

from collections.abc import Sequence

from cluster.shared.lane import GatewayLane, LaneHub

__all__ = ["LaneHubs"]


class LaneHubs:
    """`LaneHub` of two hubs. New lanes are opened in the hub that they are to be of."""

    def __init__(self, local: LaneHub, remote: LaneHub) -> None:
        """Be both of them."""
        self.kind = local.kind
        self.is_edge_triggered = local.is_edge_triggered or remote.is_edge_triggered
        self.endpoint = local.endpoint
        self._local = local
        self._remote = remote
        self._hub_of = {fd: hub for hub in (local, remote) for fd in hub.descriptors()}

    @property
    def dropped_batches(self) -> int:
        """Batches of incarnations that have no lane (any more)."""
        return self._local.dropped_batches + self._remote.dropped_batches

    @property
    def lanes_refused(self) -> int:
        """Processes that came for a lane and were sent away, as too many did at once."""
        return self._local.lanes_refused + self._remote.lanes_refused

    def descriptors(self) -> Sequence[int]:
        return tuple(self._hub_of)

    def clear(self, fd: int) -> None:
        self._hub_of[fd].clear(fd)

    def pump(self, messages_max: int) -> bool:
        has_local, has_remote = self._local.pump(messages_max), self._remote.pump(messages_max)
        return has_local or has_remote

    def may_wait(self) -> bool:
        return self._remote.may_wait() and self._local.may_wait()

    def has_waited(self) -> None:
        self._remote.has_waited()
        self._local.has_waited()

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> GatewayLane:
        return self._local.open_lane(capacity_bytes, max_batch_bytes)

    def close(self) -> None:
        self._remote.close()
        self._local.close()
