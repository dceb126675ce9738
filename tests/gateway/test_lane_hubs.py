"""Two hubs as one: whatever comes to either is noticed."""

from collections.abc import Sequence

import pytest

from cluster.gateway.lane_hubs import LaneHubs
from cluster.shared.lane import GatewayLane
from cluster.shared.local_lane import LocalGatewayLane


class Hub:
    """A hub that notes what is asked of it."""

    def __init__(self, kind: str, fds: Sequence[int]) -> None:
        self.kind = kind
        self.endpoint = f"{kind}-endpoint"
        self.dropped_batches = len(fds)
        self.lanes_refused = 10 * len(fds)
        self.has_more = self.is_awake = self.is_closed = False
        self.calls: list[object] = []
        self.is_edge_triggered = kind == "zmq"
        self._fds = fds

    def descriptors(self) -> Sequence[int]:
        return self._fds

    def clear(self, fd: int) -> None:
        self.calls.append(fd)

    def pump(self, messages_max: int) -> bool:
        self.calls.append("pump")
        return self.has_more

    def may_wait(self) -> bool:
        return not self.is_awake

    def has_waited(self) -> None:
        self.calls.append("has_waited")

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> GatewayLane:
        self.calls.append("open_lane")
        return LocalGatewayLane(capacity_bytes, max_batch_bytes)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pair() -> tuple[LaneHubs, Hub, Hub]:
    local, remote = Hub("shm", [3, 4]), Hub("zmq", [5])
    return LaneHubs(local, remote), local, remote


def test_it_is_waited_for_both_and_each_attends_to_its_own(pair: tuple[LaneHubs, Hub, Hub]):
    hubs, local, remote = pair
    assert list(hubs.descriptors()) == [3, 4, 5]
    hubs.clear(4)
    hubs.clear(5)
    assert (local.calls, remote.calls) == ([4], [5])
    assert (hubs.kind, hubs.endpoint) == ("shm", "shm-endpoint")
    assert (hubs.dropped_batches, hubs.lanes_refused) == (3, 30)


@pytest.mark.parametrize(("local_more", "remote_more"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_both_are_pumped_and_more_in_either_is_more(
    pair: tuple[LaneHubs, Hub, Hub], local_more: int, remote_more: int
):
    hubs, local, remote = pair
    local.has_more, remote.has_more = bool(local_more), bool(remote_more)
    assert hubs.pump(64) == bool(local_more or remote_more)
    assert local.calls == remote.calls == ["pump"]


@pytest.mark.parametrize("awake", [0, 1])
def test_nobody_waits_while_either_has_something(pair: tuple[LaneHubs, Hub, Hub], awake: int):
    hubs, local, remote = pair
    assert hubs.may_wait()
    (local, remote)[awake].is_awake = True
    assert not hubs.may_wait()
    hubs.has_waited()
    assert local.calls == remote.calls == ["has_waited"]


def test_new_lanes_are_of_this_machine_and_the_end_is_of_both(pair: tuple[LaneHubs, Hub, Hub]):
    hubs, local, remote = pair
    hubs.open_lane(1 << 20, 1 << 20)
    assert (local.calls, remote.calls) == (["open_lane"], [])
    hubs.close()
    assert local.is_closed
    assert remote.is_closed
