"""The hub of lanes inside one process. Nothing has to be waited for: who runs the gateway runs the
workers too, and turns both until nothing is left to do."""

from collections.abc import Sequence

from cluster.shared.local_lane import LocalGatewayLane

__all__ = ["LocalHub"]


class LocalHub:
    """`LaneHub` of lanes whose other ends are in the same thread."""

    kind = "local"
    is_edge_triggered = False
    endpoint = ""
    dropped_batches = 0
    """Each lane counts its own."""
    lanes_refused = 0

    def __init__(self) -> None:
        self.lanes: list[LocalGatewayLane] = []

    def descriptors(self) -> Sequence[int]:
        return ()

    def clear(self, fd: int) -> None:
        raise ValueError(f"descriptor {fd} is not one of this hub, which has none")

    def pump(self, messages_max: int) -> bool:
        return False

    def may_wait(self) -> bool:
        return not any(lane.has_received for lane in self.lanes)

    def has_waited(self) -> None:
        pass

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> LocalGatewayLane:
        lane = LocalGatewayLane(capacity_bytes, max_batch_bytes)
        self.lanes.append(lane)
        return lane

    def close(self) -> None:
        self.lanes.clear()
