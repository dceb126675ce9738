"""Links whose list of nodes changes: who joins is called, who leaves is forgotten, once for all."""

import random

import pytest

from cluster.gateway.links.frames import RESUME, make_progress_frame
from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.gateway.links.link_log import Progress
from cluster.gateway.links.links import NODES_MAX
from cluster.iocp import NetAddress
from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.raw import knock
from tests.gateway.links.world import SECRET, TIMEOUT_S


def leave_each_other(world, *pairs: tuple[int, int]) -> None:
    for one, other in pairs:
        world[one].links.remove_node(other)
        world[other].links.remove_node(one)


def test_who_joins_is_linked_whoever_hears_of_the_other_first(make_world: MakeWorld):
    world = make_world((1, 2, 3))
    world.run_linked()
    leave_each_other(world, (1, 3), (2, 3))
    assert (world[1].links.nodes, world[3].links.nodes) == ([2], [])
    world[1].links.add_node(3, world.addresses[3])  # calls, and is not known there yet
    world[3].links.add_node(2, world.addresses[2])  # waits to be called
    world.run_for(1)
    assert world[3].count("links_refused_node") > 1
    world[3].links.add_node(1, world.addresses[1])
    world[2].links.add_node(3, world.addresses[3])
    world.run_linked()
    assert [world[node].links.nodes for node in (1, 2, 3)] == [[2, 3], [1, 3], [1, 2]]
    world[3].links.send_all(b"here I am")
    world.run(lambda: world[1].got == world[2].got == [(3, b"here I am")], "the records")


def test_a_node_that_leaves_gives_back_what_it_had_not_settled_and_is_called_no_more(
    make_world: MakeWorld,
) -> None:
    world = make_world((1, 2))
    world.run_linked()
    held = world[2].hold()
    for number in range(3):
        world[1].links.send(2, b"%d" % number)
    world.run(lambda: len(held) == 3, "the records")
    world[2].links.settle(held[0])
    world.run(lambda: world[1].settled_payloads == [b"0"], "the first one")
    session = world[1].session_with(2)
    world[1].links.remove_node(2)
    world[1].links.remove_node(2)
    assert world[1].lost_payloads == [b"1", b"2"]
    assert world[1].connections[1:] == [("lost", 2), ("removed", 2)]
    assert world[1].count("links_undelivered") == 2
    assert not world[1].links.is_linked(2)
    assert not world[1].links.send(2, b"to nobody")
    assert world[1].count("links_unlisted") == 1
    world.run(lambda: not session.is_connected, "the end of the connection")
    world.run_for(5 * TIMEOUT_S)
    assert world[1].sessions() == world[2].sessions() == []
    assert world[2].count("links_refused_node") == 0  # nobody has called
    assert world[1].links.status() == []


def test_what_was_delivered_by_a_node_that_has_left_may_still_be_settled(make_world: MakeWorld):
    world = make_world((1, 2))
    held = world[2].hold()
    world[1].links.send(2, b"of the old life")
    world.run(lambda: len(held) == 1, "the record")
    world[2].links.remove_node(1)
    world[2].links.settle(held[0])
    world[1].links.begin_life(555)
    world[2].links.add_node(1, world.addresses[1])
    world.run_linked()
    world[1].links.send(2, b"of the new life")
    world.run(lambda: len(held) == 2, "another record")
    world[2].links.settle(held[0])
    world.run_for(TIMEOUT_S)
    assert world[1].settled_payloads == []
    world[2].links.settle(held[1])
    world.run(lambda: world[1].settled_payloads == [b"of the new life"], "that it is settled")


@pytest.mark.parametrize("back", [1, 2])
def test_who_was_taken_for_gone_comes_back_as_another_life(make_world: MakeWorld, back: int):
    """`back` is told nothing by the other, which has removed and added it again."""
    world = make_world((1, 2))
    other = 3 - back
    returning, staying = world[back], world[other]
    world.run_linked()
    held = returning.hold()
    for node in (returning, staying):
        node.links.send_all(b"before")
    world.run(lambda: bool(held and staying.got), "the records")
    world.run_for(TIMEOUT_S)
    staying.links.remove_node(back)
    assert staying.lost_payloads == [b"before"]
    returning.links.send(other, b"into the void")
    returning.links.begin_life(4_711)
    assert returning.lost_payloads == [b"into the void"]
    returning.links.settle(held[0])  # came in the life of before
    staying.links.add_node(back, world.addresses[back])
    world.run_linked()
    assert ("new life", back) == staying.connections[-1]
    assert ("new life", other) == returning.connections[-1]
    for node in (returning, staying):
        node.links.send_all(b"after")
    world.run(lambda: len(held) == 2 and len(staying.got) == 2, "the records behind")
    world.run_for(TIMEOUT_S)
    assert staying.settled_payloads == []
    returning.links.settle(held[1])
    world.run(lambda: staying.settled_payloads == [b"after"], "that it is settled")
    for node in (returning, staying):
        assert node.count("links_violations") == 0


def test_a_changed_address_is_called_at_once_and_breaks_no_connection(make_world: MakeWorld):
    world = make_world((1, 2))
    world.run_linked()
    moved = NetAddress("127.0.0.1", 9_000)
    session = world[1].session_with(2)
    world[1].links.add_node(2, moved)
    world.run_for(1)
    assert world[1].session_with(2) is session
    world[2].kill()
    world.addresses[2] = moved
    world[2].begin()
    world.run_linked()
    world[2].kill()
    world.run(lambda: world[1].state(2) == "backoff", "a pause")
    world.addresses[2] = NetAddress("127.0.0.1", 9_001)
    world[2].begin()
    world[1].links.add_node(2, world.addresses[2])
    began = world.core.now()
    world.run_linked()
    assert world.core.now() - began < 0.1
    (status,) = world[1].links.status()
    assert status.address == "127.0.0.1:9001"


def test_a_proof_behind_the_removal_of_its_node_counts_for_nothing(make_world: MakeWorld):
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (raw,) = knock(world, 2)
    handshake = Handshake(LinkIdentity(1, 77, "game", SECRET), 2)
    raw.send(handshake.begin())
    world.run(lambda: len(raw.received) >= handshake.expected_bytes, "its greeting")
    world[2].links.remove_node(1)
    raw.send(handshake.take(raw.received))
    raw.send(make_progress_frame(RESUME, Progress(0, 0)))
    world.run(lambda: raw.ended is not None, "its end")
    assert world[2].count("links_refused_node") == 1
    assert world[2].connections == [("removed", 1)]


def test_the_list_is_bounded_and_what_is_too_much_counted(make_world: MakeWorld):
    world = make_world((1,))
    links = world[1].links
    added = [links.add_node(node, NetAddress("127.0.0.1", 1)) for node in range(1, NODES_MAX + 3)]
    assert added == [True] * (NODES_MAX + 1) + [False]  # its own id takes no place
    assert world[1].count("links_too_many_nodes") == 1
    assert len(links.nodes) == NODES_MAX


@pytest.mark.parametrize("number", range(3))
def test_nodes_that_come_and_go_at_random_get_each_record_of_a_life_at_most_once_and_in_order(
    make_world: MakeWorld, seed: int, number: int
) -> None:
    chosen = random.Random(seed + number)
    world = make_world((1, 2, 3), seed=seed + number)
    sent = 0
    life = 10_000
    for _ in range(60):
        for node in world.nodes.values():
            sent += 1
            node.links.send_all(b"%d" % sent)
        for _ in range(chosen.randrange(20)):
            world.turn(0.01)
        gone = chosen.choice([1, 2, 3])
        others = [node for node in world.nodes if node != gone]
        for other in others:
            world[other].links.remove_node(gone)
        for _ in range(chosen.randrange(20)):
            world.turn(0.01)
        life += 1
        world[gone].links.begin_life(life)
        for other in others:
            world[other].links.add_node(gone, world.addresses[gone])
    world.run_linked()
    world.run(lambda: all(node.links.is_told for node in world.nodes.values()), "quiet")
    for node in world.nodes.values():
        assert node.count("links_violations") == 0
        for other in world.nodes:
            numbers = [int(payload) for sender, payload in node.got if sender == other]
            assert numbers == sorted(set(numbers))
        told = sorted(map(int, node.settled_payloads + node.lost_payloads))
        assert len(told) == 120  # of each record to each of two, exactly one of both
        for link in node.links._links.values():
            link.log.check_invariants()


@pytest.mark.parametrize("back", [1, 2])
def test_who_is_removed_and_added_while_it_stays_begins_anew_with_both(
    make_world: MakeWorld, back: int
) -> None:
    """It came back, was met, and only then the news arrives that it had been gone."""
    world = make_world((1, 2))
    other = 3 - back
    returning, staying = world[back], world[other]
    returning.links.begin_life(4_711)
    world.run_linked()
    held = staying.hold()
    for node in (returning, staying):
        node.links.send_all(b"before")
    world.run(lambda: bool(held and returning.got), "the records")
    world.run_for(TIMEOUT_S)
    staying.links.remove_node(back)
    staying.links.add_node(back, world.addresses[back])
    world.run_linked()
    assert returning.lost_payloads == [b"before"]
    assert ("new life", other) == returning.connections[-1]
    staying.links.settle(held[0])  # nobody waits for it any more
    for node in (returning, staying):
        node.links.send_all(b"after")
    world.run(lambda: len(held) == len(returning.got) == 2, "the records behind")
    world.run_for(TIMEOUT_S)
    assert returning.settled_payloads == []
    staying.links.settle(held[1])
    world.run(lambda: returning.settled_payloads == [b"after"], "that it is settled")
    for node in (returning, staying):
        assert node.count("links_violations") == 0
