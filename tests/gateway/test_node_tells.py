"""What one node tells another of messages: records that fit a link, and hostile ones."""

from struct import pack, unpack

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.links.frames import RECORD_BYTES_MAX
from cluster.gateway.links.link_user import Delivery, Life
from cluster.gateway.node_tells import HANDLED, REFUSED, RETRY_S, TOLD, NodeTells
from cluster.gateway.node_traffic import NodeTraffic
from cluster.iocp import IocpCore
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork


class FullLinks:
    """Links whose log has room from the moment in which a test says so."""

    def __init__(self) -> None:
        self.has_room = False
        self.sent: list[bytes] = []

    def life_of(self, node: int) -> Life:
        return 1, 2

    def send(self, node: int, payload: bytes) -> bool:
        assert len(payload) <= RECORD_BYTES_MAX
        if self.has_room:
            self.sent.append(payload)
        return self.has_room

    def settle(self, delivery: Delivery) -> None:
        """Nothing depends on it."""


class World:
    """The messages of a node that has no shard, and links that take nothing."""

    def __init__(self) -> None:
        self.core = IocpCore(driver=MemoryDriver(MemoryNetwork(clock=ManualClock())))
        self.counters = Counters()
        self.links = FullLinks()
        self.traffic = NodeTraffic(1, self.counters)
        self.traffic.links = self.links  # type: ignore[assignment]  # as much as is asked of it
        self.tells = NodeTells(
            self.traffic, self.core, [], lambda tell, owner: False, self.counters
        )


def test_answers_that_have_waited_long_go_in_records_that_a_link_takes() -> None:
    world = World()
    count = RECORD_BYTES_MAX // 8 + 1_000
    for number in range(count):
        world.tells.handled(2, number)
    world.links.has_room = True
    deadline = world.core.now() + 2 * RETRY_S
    while world.core.now() < deadline:
        world.core.dispatch(RETRY_S)
    numbers: list[int] = []
    for record in world.links.sent:
        assert record[0] == HANDLED
        numbers += unpack(f"<{len(record) // 8}Q", record[1:])
    assert numbers == list(range(count))
    world.core.close()


@pytest.mark.parametrize(
    "payload",
    [
        pack("<BI", HANDLED, 1),
        pack("<B9s", REFUSED, b"\xff" * 9),
        pack("<B", TOLD),
        pack("<BQIH", TOLD, 1, 1 << 31, 0),
        pack("<BQIH", TOLD, 1, 0, 0),
    ],
)
def test_what_nobody_can_read_is_counted_and_harms_nothing(payload: bytes) -> None:
    world = World()
    world.traffic.delivered(Delivery(2, 2, 1, 1), payload)
    assert world.counters.snapshot()["messages_unreadable"] == 1
    world.core.close()
