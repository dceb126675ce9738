"""The hub of lanes in shared memory: one doorbell for all, and a door where workers get theirs.

Each incarnation has a segment and a doorbell of its own. A worker is given their descriptors, and
that of the gateway's doorbell, over a Unix socket, by the name that its grant told it. They are
nowhere else, so nothing of them is left when everything dies.
"""

from collections.abc import Sequence

from cluster.shared.shm_doorbell import Doorbell
from cluster.shared.shm_handover import Handover
from cluster.shared.shm_lane import ShmGatewayLane

__all__ = ["ShmLaneHub"]


class ShmLaneHub:
    """The gateway's doorbell for the lanes of all shards, and where workers get theirs."""

    kind = "shm"
    is_edge_triggered = False

    def __init__(self, path: str, bell: int | None = None) -> None:
        """Listen at `path` for workers; raises OSError when it cannot be had.

        They ring at the eventfd `bell`, if there is one whose owner is woken by it and then looks
        at the lanes. It stays the caller's, who is not told of it by `descriptors`.
        """
        self.endpoint = path
        self._lanes: list[ShmGatewayLane] = []
        self._own_bell: Doorbell | None = None
        if bell is None:
            self._own_bell = Doorbell()
            bell = self._own_bell.fd
        self._bell_fd = bell
        try:
            self._handover = Handover(path, self._descriptors_for)
        except BaseException:
            if self._own_bell is not None:
                self._own_bell.close()
            raise

    @property
    def dropped_batches(self) -> int:
        """Batches that were published and not yet looked at when their incarnation was fenced.

        What it publishes later is seen by nobody: its segment has no reader any more.
        """
        return sum(lane.dropped_batches for lane in self._lanes)

    @property
    def lanes_refused(self) -> int:
        """Processes that were sent away before they had said which lane is theirs."""
        return self._handover.refused

    def descriptors(self) -> Sequence[int]:
        """Return what to wait on: the hub's own doorbell, and workers that come for their lanes."""
        if self._own_bell is None:
            return (self._handover.fileno(),)
        return (self._own_bell.fd, self._handover.fileno())

    def clear(self, fd: int) -> None:
        """Attend to `fd`, which was readable, so that it is not any more."""
        if self._own_bell is not None and fd == self._own_bell.fd:
            self._own_bell.clear()
        else:
            self._handover.serve()

    def may_wait(self) -> bool:
        """Have the doorbell rung from now on; False if there is something already."""
        for lane in self._lanes:
            end = lane.end
            if end is not None and not end.reader.sleep():
                self.has_waited()
                return False
        return True

    def has_waited(self) -> None:
        """Have the doorbell rung no more."""
        for lane in self._lanes:
            end = lane.end
            if end is not None:
                end.reader.wake()

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> ShmGatewayLane:
        """Return a new vacant lane; OSError when there is no memory for it."""
        lane = ShmGatewayLane(self._is_granted, capacity_bytes, max_batch_bytes)
        self._lanes.append(lane)
        return lane

    def pump(self, messages_max: int) -> bool:
        """What workers publish is in the lanes already; workers that come may be waited for."""
        self._handover.go_on()
        return False

    def close(self) -> None:
        """Close the doorbell and the socket. Idempotent."""
        self._handover.close()
        if self._own_bell is not None:
            self._own_bell.close()

    def _is_granted(self, identity: bytes) -> bool:
        return any(lane.identity == identity for lane in self._lanes)

    def _descriptors_for(self, identity: bytes) -> Sequence[int]:
        for lane in self._lanes:
            end = lane.end
            if end is not None and lane.identity == identity:
                return (end.segment.fd, self._bell_fd, end.bell.fd)
        return ()
