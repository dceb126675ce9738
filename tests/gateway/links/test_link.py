"""One link, on a network in memory with a clock of its own: cuts, silence, lives, violations."""

import logging
import random

import pytest

from cluster.gateway.links.frames import (
    ALIVE,
    FRAME_BYTES,
    RECORD,
    RECORD_BYTES_MAX,
    RESUME,
    make_frame,
    make_progress_frame,
)
from cluster.gateway.links.link import (
    FULL_LINES_S,
    LINES_INTERVAL_S,
    LINES_MAX,
    QUEUED_BYTES_MAX,
)
from cluster.gateway.links.link_log import Progress
from cluster.gateway.links.seals import SEAL_BYTES
from cluster.iocp import NetAddress
from cluster.iocp.driver.memory import Faults
from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.raw import RESUMED, knock, prove
from tests.gateway.links.world import TIMEOUT_S, LinkedNode


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


def test_a_connection_is_given_little_more_than_it_has_sent(make_world: MakeWorld):
    world = make_world((1, 2), retained_bytes_max=4 << 20)
    world.run_linked()
    session = world[1].session_with(2)
    payload = bytes(10_000)
    sent = 0
    while world[1].links.send(2, payload):
        sent += 1
    world[1].links.flush()
    full = session.queued_bytes
    assert QUEUED_BYTES_MAX <= full < QUEUED_BYTES_MAX + len(payload) + FRAME_BYTES + SEAL_BYTES
    for _ in range(10):  # nor signs of life, which would not arrive any sooner
        world[1].links._links[2].beat(world.core.now(), TIMEOUT_S)
    assert session.queued_bytes <= full + FRAME_BYTES + SEAL_BYTES
    world.run(lambda: len(world[2].got) == sent, "everything")


def test_a_connection_goes_on_as_it_gets_rid_of_what_it_had(make_world: MakeWorld):
    """Whether or not anything comes the other way meanwhile."""
    world = make_world((1, 2), retained_bytes_max=4 << 20)
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send_frames(RESUMED)
    world.run(lambda: world[2].state(1) == "linked", "the link")
    sent = 0
    while world[2].links.send(1, bytes(10_000)):
        sent += 10_000
    assert sent > 10 * QUEUED_BYTES_MAX
    world.run(lambda: len(raw.received) > sent, "everything", TIMEOUT_S / 2)


def test_a_record_that_no_link_takes_is_refused(make_world: MakeWorld):
    world = make_world((1, 2))
    with pytest.raises(ValueError, match="a link takes"):
        world[1].links.send(2, bytes(RECORD_BYTES_MAX + 1))


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


def test_a_full_log_is_logged_once_in_a_while_for_each_node(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world((1, 2, 3), retained_bytes_max=10_000)

    def fill(node: int) -> list[str]:
        caplog.clear()
        while world[1].links.send(node, bytes(1_000)):
            pass
        for _ in range(4):
            world[1].links.send(node, bytes(1_000))
        return [record.message for record in caplog.records if "is full" in record.message]

    said = (
        "the log of the link to node {} is full, with 9 records (links.retained_bytes_max = 10000)"
    )
    rest = "what is for that node now is not kept until there is room; the link is down"
    assert fill(2) == [f"{said.format(2)}: {rest}"]
    assert fill(3) == [f"{said.format(3)}: {rest}"]
    assert fill(2) == []
    world.run_linked()
    world.run(lambda: len(world[2].got) == 9, "what was taken")
    world[2].kill()
    world.run_for(FULL_LINES_S)
    assert fill(2) == [f"{said.format(2)}: {rest} (9 more such)"]


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


@pytest.mark.parametrize("doubled", [1, 2])
def test_a_node_that_was_cut_off_while_another_had_its_id_is_linked_again(
    make_world: MakeWorld, doubled: int
) -> None:
    """Its peer has forgotten where they were; what was between them is given back or arrives."""
    world = make_world((1, 2))
    original, peer = world[doubled], world[3 - doubled]
    world.run_linked()
    for node in (original, peer):
        node.links.send_all(b"before")
    world.run(lambda: all(node.settled_payloads for node in (original, peer)), "the records")
    home, elsewhere = world.addresses[2], NetAddress("127.0.0.1", 9_000)
    world[1].links.add_node(2, elsewhere)  # it calls there from now on
    world[1].cut(2)
    world.run(lambda: original.state(peer.node) != "linked" != peer.state(doubled), "the cut")
    original.links.send_all(b"into the void")
    world.addresses[doubled] = elsewhere
    double = world.nodes[9] = LinkedNode(world, doubled, life=500)
    world.run(lambda: double.state(peer.node) == "linked", "the link with the other one")
    for node in (double, peer):
        node.links.send_all(b"between")
    world.run(lambda: bool(double.got) and len(peer.got) == 2, "its records")
    world.run(lambda: peer.links.is_told, "that they are settled")
    double.kill()
    del world.nodes[9]
    for _ in range(5):  # more than were settled before: what the original has is none of these
        peer.links.send_all(b"to nobody")
    world[1].links.add_node(2, home)
    world.run_linked()
    for node in (original, peer):
        node.links.send_all(b"after")
    world.run(lambda: len(original.got) == 2 and len(peer.got) == 3, "the records behind")
    world.run(lambda: all(node.links.is_told for node in (original, peer)), "quiet")
    assert [payload for _, payload in original.got] == [b"before", b"after"]
    assert [payload for _, payload in peer.got] == [b"before", b"between", b"after"]
    assert original.lost_payloads == [b"into the void"]
    assert peer.lost_payloads == [b"to nobody"] * 5
    for node in (original, peer):
        assert ("new life", 3 - node.node) == node.connections[-1]
        assert node.count("links_violations") <= 1


def test_a_peer_that_falls_silent_is_lost(make_world: MakeWorld):
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send_frames(RESUMED)
    world.run(lambda: world[2].state(1) == "linked", "the link")
    world.run_for(TIMEOUT_S * 0.9)
    assert raw.ended is None
    world.run(lambda: raw.ended is not None, "its end", TIMEOUT_S)
    assert world[2].state(1) == "awaited"
    assert world[2].count("links_lost") == 1


def test_a_node_that_ends_has_not_lost_its_links(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
):
    world = make_world((1, 2))
    world.run_linked()
    caplog.clear()
    world[1].links.close()
    world.run(lambda: world[1].links.is_over and world[2].links.is_over, "the end")
    assert world[1].count("links_lost") == 0
    assert world[2].count("links_lost") == 1
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == []


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
        RESUMED[:-1],
        RESUMED + RESUMED[:10],
    ],
)
def test_a_proved_peer_that_breaks_the_protocol_loses_its_connection(
    make_world: MakeWorld, frames: bytes
) -> None:
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send_frames(frames)
    world.run(lambda: raw.ended is not None, "its end", 1)
    assert world[2].count("links_violations") == 1
    assert world[2].got == []


def test_a_peer_that_sends_more_than_it_may_keep_is_not_read_until_some_is_settled(
    make_world: MakeWorld,
) -> None:
    """And not lost meanwhile, however long that takes; nor is what it has sent."""
    world = make_world((1, 2), retained_bytes_max=10_000)
    world.nodes.pop(1).kill()
    held = world[2].hold()
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1)
    raw.send_frames(RESUMED)
    count = 200
    for position in range(1, count + 1):
        raw.send_frames(make_frame(RECORD, position, bytes(4_000)))
    world.run(lambda: world[2].count("links_paused") == 1, "that it is not read")
    world.run_for(5 * TIMEOUT_S)
    taken = len(held)
    assert 1 <= taken < count / 2
    assert raw.ended is None
    while len(held) < count or world[2].links._links[1].log.progress.settled != count:
        for delivery in held[world[2].links._links[1].log.progress.settled :]:
            world[2].links.settle(delivery)
        world.turn(0.01)
        raw.send_frames(make_progress_frame(ALIVE, Progress(0, 0)))
    assert len(world[2].got) == count
    assert world[2].count("links_violations") == 0
    world.run(lambda: raw.ended is not None, "that its silence counts again", 2 * TIMEOUT_S)


def test_a_peer_that_connects_again_and_again_does_not_fill_the_log(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    caplog.set_level(logging.INFO)
    caplog.clear()

    def connect(life: int) -> None:
        (raw,) = knock(world, 2)
        prove(world, raw, 2, as_node=1, life=life)
        raw.send_frames(RESUMED)
        world.run(lambda: world[2].state(1) == "linked", "the link")
        raw.abort()
        world.run(lambda: world[2].state(1) == "awaited", "its end")

    began, lives = world.core.now(), LINES_MAX
    for life in range(1, lives + 1):
        connect(life)
    assert world.core.now() < began + LINES_INTERVAL_S
    assert len(caplog.messages) == LINES_MAX
    world.run_for(LINES_INTERVAL_S)
    connect(lives + 1)
    assert len(caplog.messages) == LINES_MAX + 2
    assert f" ({2 * lives - LINES_MAX} more such)" in caplog.messages[LINES_MAX]
