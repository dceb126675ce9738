"""Links on a network in memory with a clock of its own: who calls, cuts, silence, strangers."""

import random

import pytest

from cluster.gateway.links.frames import ALIVE, RECORD, RESUME, make_frame, make_progress_frame
from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.gateway.links.link_log import Progress
from cluster.gateway.links.links import UNPROVED_MAX
from cluster.gateway.links.node_session import HANDSHAKE_TIMEOUT_S
from cluster.iocp import ClientService, Session
from cluster.iocp.driver.memory import Faults
from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.world import SECRET, TIMEOUT_S, LinkWorld

RESUMED = make_progress_frame(RESUME, Progress(0, 0))


class Raw(Session):
    """A connection of a test's own to a private listener."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""
        self.ended: str | None = None

    def on_recv(self, data: bytes | memoryview) -> int:
        self.received += bytes(data)
        return len(data)

    def on_disconnected(self, cause: str) -> None:
        self.ended = cause

    def on_connect_failed(self, cause: str) -> None:
        self.ended = cause


def knock(world: LinkWorld, node: int, count: int = 1) -> list[Raw]:
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw())
        return made[-1]

    service = ClientService(world.addresses[node], world.core, make, count)
    service.start()
    world.run(lambda: service.current_session_count == count, "the connections")
    world.others.append(service)
    return made


def prove(world: LinkWorld, raw: Raw, node: int, as_node: int, life: int = 77) -> None:
    """Be `as_node` at the listener of `node`."""
    handshake = Handshake(LinkIdentity(as_node, life, "game", SECRET), node)
    raw.send(handshake.begin())
    while handshake.peer is None:
        world.run(lambda: len(raw.received) >= handshake.expected_bytes, "the handshake")
        expected = handshake.expected_bytes
        message, raw.received = raw.received[:expected], raw.received[expected:]
        answer = handshake.take(message)
        if answer:
            raw.send(answer)


def test_the_node_with_the_smaller_id_connects_and_all_links_stand(make_world: MakeWorld):
    world = make_world()
    world.run_linked()
    for low, high in ((1, 2), (1, 3), (2, 3)):
        assert world[low].session_with(high).dialled == high
        assert world[high].session_with(low).dialled is None
    assert world[2].state(1) == world[2].state(3) == "linked"


def test_records_go_both_ways_once_and_in_order(make_world: MakeWorld):
    world = make_world()
    for number in range(100):  # from before there is a link
        for node in world.nodes.values():
            node.links.send_all(b"%d" % number)
    world.run(lambda: all(len(n.got) == 200 for n in world.nodes.values()), "all records")
    for receiver in world.nodes.values():
        for sender in world.nodes:
            expected = [] if sender == receiver.node else [b"%d" % n for n in range(100)]
            assert [payload for node, payload in receiver.got if node == sender] == expected
    world.run_for(TIMEOUT_S)
    assert all(s.waiting_records == 0 for n in world.nodes.values() for s in n.links.status())


@pytest.mark.parametrize("number", range(5))
def test_cuts_at_any_moment_lose_and_repeat_nothing(
    make_world: MakeWorld, seed: int, number: int
) -> None:
    chosen = random.Random(seed + number)
    world = make_world((1, 2), seed=seed + number)
    world.network.faults = Faults(partial_send=0.5, partial_recv=0.5, late=0.3, late_s_max=0.05)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    for _ in range(120):
        for node, other in ((1, 2), (2, 1)):
            for _ in range(chosen.randrange(8)):
                payload = b"%d." % len(sent[node]) + bytes(chosen.randrange(3_000))
                if world[node].links.send(other, payload):
                    sent[node].append(payload)
        for _ in range(chosen.randrange(12)):
            world.turn(0.01)
        if chosen.random() < 0.5:
            if chosen.random() < 0.5:
                world[1].cut(2)
            else:
                world[2].cut(1)
    world.run(
        lambda: len(world[1].got) >= len(sent[2]) and len(world[2].got) >= len(sent[1]),
        "everything",
    )
    assert [payload for _, payload in world[1].got] == sent[2]
    assert [payload for _, payload in world[2].got] == sent[1]
    assert world[1].count("links_lost") + world[2].count("links_lost") > 5
    assert world[1].count("links_violations") == world[2].count("links_violations") == 0


def test_what_is_settled_in_any_order_is_told_in_order(make_world: MakeWorld):
    world = make_world((1, 2))
    held = world[2].hold()
    for number in range(6):
        world[1].links.send(2, b"%d" % number)
    world.run(lambda: len(held) == 6, "the records")
    world.run_for(TIMEOUT_S)
    assert world[1].settled_payloads == []
    world[1].cut(2)  # received is not settled: it is kept, and not sent again
    for number in (2, 0, 1, 5):
        world[2].links.settle(held[number])
    world.run(lambda: len(world[1].settled_payloads) == 3, "the first three")
    (status,) = world[1].links.status()
    assert status.waiting_records == 3
    world[2].links.settle(held[3])
    world[2].links.settle(held[4])
    world.run(lambda: len(world[1].settled_payloads) == 6, "the others")
    assert world[1].settled_payloads == [b"%d" % number for number in range(6)]
    assert len(world[2].got) == 6


def test_what_was_received_and_not_settled_is_undelivered_when_the_peer_begins_anew(
    make_world: MakeWorld,
) -> None:
    world = make_world((1, 2))
    held = world[2].hold()
    for number in range(3):
        world[1].links.send(2, b"%d" % number)
    world.run(lambda: len(held) == 3, "the records")
    world[2].links.settle(held[0])
    world.run(lambda: world[1].settled_payloads == [b"0"], "the first one")
    world[2].kill()
    world[2].begin()
    world[2].links.settle(held[1])  # of the last life: nobody waits for it
    world.run_linked()
    assert world[1].lost_payloads == [b"1", b"2"]
    assert world[2].got == []


def test_a_node_is_told_when_those_that_are_linked_have_settled_everything(make_world: MakeWorld):
    world = make_world((1, 2, 3))
    world.run_linked()
    held = world[2].hold()
    assert world[1].links.is_told
    world[1].links.send_all(b"to both")
    assert not world[1].links.is_told
    world.run(lambda: bool(held and world[3].got), "the record")
    world.run_for(TIMEOUT_S)
    assert not world[1].links.is_told  # one of two is not enough
    world[2].links.settle(held[0])
    world.run(lambda: world[1].links.is_told, "all told")
    world[2].kill()
    world.run(lambda: world[1].state(2) != "linked", "the loss")
    assert world[1].links.send(2, b"for its next life, if it has one")
    assert world[1].links.is_told
    world[1].links.close()
    world.run(lambda: world[1].links.is_over, "the end of all connections")


def test_a_full_log_is_told_and_counted_and_room_comes_back(make_world: MakeWorld):
    world = make_world((1, 2), retained_bytes_max=10_000)
    taken = [world[1].links.send(2, bytes(1_000)) for _ in range(20)]
    assert taken == [True] * 9 + [False] * 11
    assert world[1].count("links_full") == 11
    world.run(lambda: len(world[2].got) == 9, "what was taken")
    world.run_for(TIMEOUT_S)
    assert world[1].links.send(2, bytes(1_000))


def test_another_life_of_a_peer_gets_nothing_of_the_last_and_it_is_counted(make_world: MakeWorld):
    world = make_world((1, 2))
    world.run_linked()
    world[2].kill()
    for number in range(5):
        assert world[1].links.send(2, b"old %d" % number)
    assert world[1].state(2) != "linked"
    world[2].begin()
    world.run_linked()
    world[1].links.send(2, b"new")
    world.run(lambda: bool(world[2].got), "the new record")
    assert world[2].got == [(1, b"new")]
    assert world[1].count("links_undelivered") == 5
    assert world[1].lost_payloads == [b"old %d" % number for number in range(5)]


def test_each_connection_is_told_and_whether_the_peer_remembers(make_world: MakeWorld):
    world = make_world([1, 2])
    world.run_linked()
    assert world[1].connections == [("new life", 2)]
    assert world[2].connections == [("new life", 1)]
    world[2].cut(1)
    world.run(lambda: len(world[1].connections) == 3, "a new connection")
    world.run_linked()
    assert world[1].connections[1:] == [("lost", 2), ("linked", 2)]
    assert world[2].connections[1:] == [("lost", 1), ("linked", 1)]
    world[2].kill()
    world[2].begin()
    world.run(lambda: len(world[1].connections) == 5, "another life")
    world.run_linked()
    assert world[1].connections[3:] == [("lost", 2), ("new life", 2)]
    assert world[2].connections == [("new life", 1)]


def test_a_node_that_is_away_is_called_for_ever_with_a_growing_pause(make_world: MakeWorld):
    world = make_world((1, 2))
    world.run_linked()
    world[2].kill()
    world.run_for(3600)
    (status,) = world[1].links.status()
    assert 600 < status.failures < 1600  # about one in 2.5 to 5 s
    assert "cannot connect to 127.0.0.1:7802: refused" in status.reason
    world[2].begin()
    world.run_linked()
    (status,) = world[1].links.status()
    assert (status.failures, status.reason) == (0, "")


def test_a_peer_that_falls_silent_is_lost(make_world: MakeWorld):
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send(RESUMED)
    world.run(lambda: world[2].state(1) == "linked", "the link")
    world.run_for(TIMEOUT_S * 0.9)
    assert raw.ended is None
    world.run(lambda: raw.ended is not None, "its end", TIMEOUT_S)
    assert world[2].state(1) == "awaited"
    assert world[2].count("links_lost") == 1


def test_a_second_connection_of_the_same_node_replaces_the_first(make_world: MakeWorld):
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    first, second = knock(world, 2), knock(world, 2)
    for raw in (*first, *second):
        prove(world, raw, 2, as_node=1)
    world.run(lambda: first[0].ended is not None, "the end of the first")
    assert second[0].ended is None
    assert world[2].count("links_replaced") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n".ljust(200),
        bytes(74),
        bytes(75),
        random.Random(5).randbytes(10_000),
    ],
)
def test_strangers_get_nothing(make_world: MakeWorld, data: bytes):
    world = make_world((1, 2))
    world.run_linked()
    (raw,) = knock(world, 2)
    raw.send(data)
    world.run(lambda: raw.ended is not None, "its end", HANDSHAKE_TIMEOUT_S + 1)
    assert raw.received == b""
    assert sum(v for k, v in world[2].counters.snapshot().items() if "refused" in k) == 1
    assert world[2].state(1) == "linked"


def test_another_secret_is_told_on_both_sides(make_world: MakeWorld):
    world = make_world((1, 2))
    world[1].kill()
    world[1].secret = b"another secret, of some 32 bytes"
    world[1].begin()
    world.run_for(3)
    assert world[2].count("links_refused_proof") > 3
    (status,) = world[1].links.status()
    assert "secret" in status.reason
    assert status.state != "linked"


def test_who_knocks_and_says_nothing_holds_nobody_up(make_world: MakeWorld):
    world = make_world((1, 2))
    world[1].kill()
    idle = knock(world, 2, UNPROVED_MAX + 10)
    world.run_for(1)
    assert len([raw for raw in idle if raw.ended]) == 10
    assert world[2].count("links_refused_crowded") == 10
    world[1].begin()
    world.run_linked()
    world.run_for(HANDSHAKE_TIMEOUT_S)
    assert all(raw.ended for raw in idle)
    assert world[2].count("links_refused_timeout") + world[2].count("links_refused_crowded") == (
        UNPROVED_MAX + 10
    )
    assert len(world[2].sessions()) == 1


@pytest.mark.parametrize(
    "frames",
    [
        make_frame(RECORD, 1, b"before it says how far it is"),
        make_progress_frame(RESUME, Progress(5, 0)),
        RESUMED + RESUMED,
        RESUMED + make_frame(RECORD, 2, b"not the next one"),
        RESUMED + make_progress_frame(ALIVE, Progress(9, 0)),
        RESUMED + make_progress_frame(ALIVE, Progress(0, 1)),
        make_frame(RESUME, 0),
        make_frame(9, 0),
        make_frame(ALIVE, 0, b"with a payload"),
        b"\xff\xff\xff\xff\x02" + bytes(11),
    ],
)
def test_a_proved_peer_that_breaks_the_protocol_loses_its_connection(
    make_world: MakeWorld, frames: bytes
) -> None:
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send(frames)
    world.run(lambda: raw.ended is not None, "its end", 1)
    assert world[2].count("links_violations") == 1
    assert world[2].got == []
