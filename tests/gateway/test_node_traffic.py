"""Records between nodes find their topic."""

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.node_traffic import Members, NodeTraffic, Topic


class Heard(Topic):
    """A topic that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        self.calls.append(("delivered", delivery, payload))

    def settled(self, node: int, payload: bytes) -> None:
        self.calls.append(("settled", node, payload))

    def undelivered(self, node: int, count: int) -> None:
        self.calls.append(("undelivered", node, count))

    def linked(self, node: int, is_new_life: bool) -> None:
        self.calls.append(("linked", node, is_new_life))

    def lost(self, node: int) -> None:
        self.calls.append(("lost", node))

    def removed(self, node: int) -> None:
        self.calls.append(("removed", node))


def test_each_kind_goes_to_its_topic_and_connections_to_all():
    traffic = NodeTraffic(1, Counters())
    one, two = Heard(), Heard()
    traffic.register([1], one)
    traffic.register([2, 3], two)
    delivery = Delivery(2, 77, 1)
    traffic.delivered(delivery, b"\x01a")
    traffic.delivered(delivery, b"\x03b")
    traffic.settled(2, [b"\x02c", b"\x01d"])
    traffic.undelivered(2, [b"\x03e", b"\x03f"])
    traffic.linked(2, True)
    traffic.lost(2)
    traffic.removed(2)
    both = [("linked", 2, True), ("lost", 2), ("removed", 2)]
    assert one.calls == [("delivered", delivery, b"\x01a"), ("settled", 2, b"\x01d"), *both]
    assert two.calls == [
        ("delivered", delivery, b"\x03b"),
        ("settled", 2, b"\x02c"),
        ("undelivered", 2, 2),
        *both,
    ]


def test_what_nobody_knows_is_counted():
    counters = Counters()
    traffic = NodeTraffic(1, counters)
    traffic.delivered(Delivery(2, 77, 1), b"\xff")
    traffic.delivered(Delivery(2, 77, 2), b"")
    assert counters.snapshot()["links_unknown_records"] == 2


def test_a_node_that_stands_alone_sends_to_nobody():
    traffic = NodeTraffic(1, Counters())
    traffic.send_all(b"\x01")
    assert traffic.nodes == []
    assert not traffic.send(2, b"\x01")
    assert not traffic.is_linked(2)
    assert not traffic.untold_count


def test_a_change_of_the_members_is_told_once_with_a_version():
    traffic = NodeTraffic(2, Counters())
    assert traffic.members == (0, (2,), (), (2,))
    told: list[Members] = []
    traffic.on_members(told.append)
    traffic.change_members([3, 1, 2])
    traffic.change_members([1, 2, 3])
    traffic.change_members([], [2, 1])
    traffic.change_members([], [2, 1], [2, 1])
    assert told == [
        (1, (1, 2, 3), (), (1, 2, 3)),
        (2, (), (1, 2), ()),
        (3, (), (1, 2), (1, 2)),
    ]
    assert traffic.members == told[-1]
