"""All links of a node, on a network in memory with a clock of its own: who calls, what all get."""

from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.world import TIMEOUT_S


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


def test_a_node_that_ends_tells_what_it_has_settled_last(make_world: MakeWorld):
    world = make_world((1, 2, 3))
    world.run_linked()
    held = world[2].hold()
    for number in range(3):
        world[1].links.send(2, b"%d" % number)
    world.run(lambda: len(held) == 3, "the records")
    world.run_for(TIMEOUT_S)
    for delivery in held[:2]:
        world[2].links.settle(delivery)
    world[2].links.close()
    world.run(lambda: world[1].state(2) != "linked", "its end")
    world[1].links.remove_node(2)
    assert world[1].settled_payloads == [b"0", b"1"]
    assert world[1].lost_payloads == [b"2"]
    assert world[1].count("links_undelivered") == 1
