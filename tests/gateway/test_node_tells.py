"""What one node tells another of messages: records that fit a link, and hostile ones."""

from struct import pack, unpack

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.links.frames import RECORD_BYTES_MAX
from cluster.gateway.links.link_log import RECORD_COST_BYTES
from cluster.gateway.links.link_user import Delivery, Life
from cluster.gateway.moved_tells import MovedTell
from cluster.gateway.node_tell_records import (
    HANDLED,
    MOVED,
    RECORD_FILL_BYTES,
    REFUSED,
    TOLD,
)
from cluster.gateway.node_tells import RETRY_S, NodeTells
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.shard_flow import ShardFlow
from cluster.gateway.shard_tells import TellOwner, ToldTell
from cluster.iocp import IocpCore
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.shared.shard_ids import SHARDS_MAX, ShardId
from cluster.shared.tell_records import Purpose, pack_content, pack_tell

HELLO = pack_tell(ShardId(1, 0), Purpose.TELL, 0, pack_content(b"Hello", b""))


class FullLinks:
    """Links whose log has room from the moment in which a test says so."""

    def __init__(self) -> None:
        self.has_room = False
        self.are_linked = True
        self.sent: list[bytes] = []
        self.settled: list[Delivery] = []

    def life_of(self, node: int) -> Life:
        return 1, 2

    def is_linked(self, node: int) -> bool:
        return self.are_linked

    def send(self, node: int, payload: bytes) -> bool:
        assert len(payload) <= RECORD_BYTES_MAX
        if self.has_room:
            self.sent.append(payload)
        return self.has_room

    def settle(self, delivery: Delivery) -> None:
        self.settled.append(delivery)


class Shard:
    """As much of one as is asked whether it takes a message."""

    flow = ShardFlow(0, Counters())


class World:
    """The messages of a node, and links that take nothing."""

    def __init__(self, taken_bytes_max: int = 1 << 24) -> None:
        self.clock = ManualClock()
        self.core = IocpCore(driver=MemoryDriver(MemoryNetwork(clock=self.clock)))
        self.counters = Counters()
        self.links = FullLinks()
        self.traffic = NodeTraffic(1, self.counters)
        self.traffic.links = self.links  # type: ignore[assignment]  # as much as is asked of it
        self.heard: list[bytes] | None = None
        """What came for its shards; None when it has none."""
        self.owners: list[TellOwner] = []
        self.tells = NodeTells(
            self.traffic,
            self.core,
            [Shard()],  # type: ignore[list-item]
            self.deliver,
            self.came_back,
            lambda node: None,
            self.counters,
            taken_bytes_max,
        )

    def deliver(self, told: ToldTell, owner: TellOwner) -> bool:
        if self.heard is None:
            return False
        self.heard.append(told.tell.content)
        self.owners.append(owner)
        return True

    def came_back(self, node: int, moved: list[MovedTell]) -> None:
        raise AssertionError("no keys move here")


def test_answers_that_have_waited_long_go_in_records_that_a_link_takes() -> None:
    world = World()
    count = RECORD_BYTES_MAX // 8 + 1_000
    for number in range(count):
        world.tells.handled(2, number, 0)
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


def told(*contents: bytes) -> list[MovedTell]:
    return [
        MovedTell(0, ToldTell(pack_tell(ShardId(2, 0), Purpose.TELL, 0, content)))
        for content in contents
    ]


@pytest.mark.parametrize(
    ("count", "num_bytes", "records"),
    [(500, 10, 1), (40, 10_000, 7), (3, RECORD_FILL_BYTES - 100, 3)],
)
def test_what_a_batch_tells_a_node_goes_in_as_few_records_as_hold_it(
    count: int, num_bytes: int, records: int
) -> None:
    world, other = World(), World()
    world.links.has_room = True
    contents = [b"%d" % number + bytes(num_bytes) for number in range(count)]
    world.tells.send(2, told(*contents))
    assert len(world.links.sent) == records
    other.heard = []
    for record in world.links.sent:
        other.traffic.delivered(Delivery(1, 2, 1, 1), record)
    assert other.heard == contents
    world.core.close()
    other.core.close()


def test_what_waits_goes_as_soon_as_the_link_has_room() -> None:
    world = World()
    world.tells.send(2, told(b"a message"))
    world.tells.handled(2, 5, 0)
    world.tells.settled(2, bytes([TOLD]))
    assert world.links.sent == []
    world.links.has_room = True
    world.tells.settled(3, bytes([TOLD]))  # of a node that nothing is for
    world.tells.settled(2, bytes([TOLD]))
    assert [record[0] for record in world.links.sent] == [TOLD, HANDLED]
    world.tells.handled(2, 6, 0)
    world.links.has_room = False
    world.tells.handled(2, 7, 0)
    world.links.has_room = True
    world.tells.settled(2, bytes([TOLD]))
    world.tells.settled(2, bytes([TOLD]))
    numbers = [unpack("<Q", record[1:]) for record in world.links.sent[1:]]
    assert numbers == [(5,), (6,), (7,)]
    world.core.close()


@pytest.mark.parametrize(
    "payload",
    [
        pack("<BI", HANDLED, 1),
        pack("<B9s", REFUSED, b"\xff" * 9),
        pack("<B", TOLD),
        pack("<BQIH", TOLD, 1, 1 << 31, 0),
        pack("<BQIH", TOLD, 1, 0, 0),
        # Nobody could answer that shard.
        pack("<BQIH", TOLD, 1, len(HELLO), SHARDS_MAX) + HELLO,
        # No answer can have the number of the second one.
        pack("<BQ", TOLD, (1 << 64) - 1) + 2 * (pack("<IH", len(HELLO), 0) + HELLO),
    ],
)
def test_what_nobody_can_read_is_counted_and_harms_nothing(payload: bytes) -> None:
    world = World()
    world.traffic.delivered(Delivery(2, 2, 1, 1), payload)
    assert world.counters.snapshot()["messages_unreadable"] == 1
    world.core.close()


def test_what_nobody_can_read_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for number in range(1, 101):
        world.traffic.delivered(Delivery(2, 2, 1, number), pack("<B", TOLD))
    assert len(caplog.messages) == 5
    world.clock.advance(10.0)
    world.traffic.delivered(Delivery(2, 2, 1, 101), pack("<B", TOLD))
    assert len(caplog.messages) == 6
    assert caplog.messages[-1].endswith("(95 more such)")
    assert world.counters.snapshot()["messages_unreadable"] == 101
    world.core.close()


def test_what_comes_back_is_settled_once_its_node_has_heard_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The news of that comes on the same link, which is not read while too much is not settled."""
    payload = pack("<BQ", TOLD, 1) + pack("<IH", len(HELLO), 0) + HELLO
    held_bytes = len(payload) + RECORD_COST_BYTES
    world = World(taken_bytes_max=2 * 3 * held_bytes)
    world.links.has_room = True

    def come_back(told: ToldTell, owner: TellOwner) -> bool:
        world.tells.moved(owner)
        return True

    monkeypatch.setattr(world.tells, "_deliver", come_back)
    deliveries = [Delivery(2, 2, number, 1) for number in range(1, 6)]
    for delivery in deliveries:
        world.traffic.delivered(delivery, payload)
    assert [record[0] for record in world.links.sent] == [MOVED] * 5
    assert world.links.settled == deliveries[3:]
    for record in world.links.sent:
        world.tells.settled(2, record)
    assert world.links.settled == [*deliveries[3:], *deliveries[:3]]
    world.traffic.delivered(Delivery(2, 2, 6, 1), payload)
    assert len(world.links.settled) == 5, "there is room again"
    world.core.close()


def test_what_a_node_tells_without_end_is_refused_until_some_of_it_is_handled() -> None:
    """Whoever keeps to its windows never has as much on its way."""
    cost = ToldTell(HELLO).cost
    world = World(taken_bytes_max=3 * cost)
    world.links.has_room = True
    world.heard = []

    def tell(node: int, number: int, count: int) -> None:
        each = pack("<IH", len(HELLO), 0) + HELLO
        payload = pack("<BQ", TOLD, number) + count * each
        world.traffic.delivered(Delivery(node, 2, number, 1), payload)

    tell(2, 1, 5)
    assert len(world.heard) == 3
    assert world.links.sent == [pack("<BQ", REFUSED, number) for number in (4, 5)]
    assert world.counters.snapshot()["messages_refused"] == 2
    tell(3, 1, 3)
    assert len(world.heard) == 6, "another node has its own room"
    for owner in world.owners:
        world.tells.handled(owner.sender.node, owner.number, owner.cost)
    tell(2, 6, 3)
    assert len(world.heard) == 9
    assert world.counters.snapshot()["messages_refused"] == 2
    world.core.close()


@pytest.mark.parametrize("kind", [HANDLED, REFUSED, MOVED])
@pytest.mark.parametrize("is_at_once", [False, True])
def test_answers_to_a_node_that_takes_none_are_bounded_and_each_delivery_is_settled_once(
    monkeypatch: pytest.MonkeyPatch, kind: int, is_at_once: bool
) -> None:
    """One that lies about what it has told may tell for ever, and settle nothing."""
    payload = pack("<IH", len(HELLO), 0) + HELLO
    bytes_max, count = 1 << 14, 5_000
    world = World(taken_bytes_max=bytes_max)
    owners: list[TellOwner] = []

    def end(owner: TellOwner) -> None:
        if kind == HANDLED:
            world.tells.handled(2, owner.number, owner.cost)
        else:
            world.tells.moved(owner)

    def deliver(told: ToldTell, owner: TellOwner) -> bool:
        if kind != REFUSED and is_at_once:
            end(owner)
        elif kind != REFUSED:
            owners.append(owner)
        return kind != REFUSED

    monkeypatch.setattr(world.tells, "_deliver", deliver)
    deliveries = [Delivery(2, 2, number, 1) for number in range(1, count + 1)]
    for delivery in deliveries:
        told = pack("<BQ", TOLD, delivery.position) + payload
        world.traffic.delivered(delivery, told)
        while owners:
            end(owners.pop())
    world.links.has_room = True
    world.clock.advance(RETRY_S)
    world.core.dispatch(0)
    assert {record[0] for record in world.links.sent} == {kind}
    num_bytes = sum(len(record) - 1 for record in world.links.sent)
    assert bytes_max <= num_bytes <= bytes_max + 8
    for record in world.links.sent:
        world.tells.settled(2, record)
    assert sorted(world.links.settled) == deliveries
    world.tells.handled(2, 1, 0)
    assert world.links.sent[-1] == pack("<BQ", HANDLED, 1)
    world.core.close()


def test_messages_that_come_back_one_by_one_go_in_few_records() -> None:
    """Those that have waited for room in the lane."""
    world = World()
    for number in range(20_000):
        world.tells.moved(TellOwner(ShardId(2, 0), 1, 0, number, (1, 2)))
    world.links.has_room = True
    world.clock.advance(RETRY_S)
    world.core.dispatch(0)
    assert len(world.links.sent) == 3
    numbers = b"".join(record[1:] for record in world.links.sent)
    assert list(unpack("<20000Q", numbers)) == list(range(20_000))
    world.core.close()


@pytest.mark.parametrize("kind", [TOLD, HANDLED, REFUSED, MOVED])
def test_a_drain_waits_for_what_has_no_room_in_the_log_of_a_link_that_stands(kind: int) -> None:
    """What others had there may be settled before the next try."""
    world = World()
    if kind == TOLD:
        world.tells.send(2, told(b"a message"))
    elif kind == REFUSED:
        payload = pack("<BQIH", TOLD, 1, len(HELLO), 0) + HELLO
        world.traffic.delivered(Delivery(2, 2, 1, 1), payload)
    elif kind == HANDLED:
        world.tells.handled(2, 1, 0)
    else:
        world.tells.moved(TellOwner(ShardId(2, 0), 1, 0, 1, (1, 2)))
    assert world.tells.untold_count
    world.links.are_linked = False
    assert not world.tells.untold_count, "nobody waits for a node that may never come back"
    world.links.are_linked = True
    world.links.has_room = True
    world.clock.advance(RETRY_S)
    world.core.dispatch(0)
    assert [record[0] for record in world.links.sent] == [kind]
    assert not world.tells.untold_count
    world.core.close()
