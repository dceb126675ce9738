"""Failures on purpose, one by one, each against what links promise (`FailingWorld.check_recovery`).

`test_random_failures` has all of them together.
"""

import pytest

from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.iocp import ClientService
from cluster.iocp.driver.memory import Faults
from tests.gateway.links.conftest import MakeFailingWorld
from tests.gateway.links.failing_world import RECOVERY_S, FailingWorld
from tests.gateway.links.raw import Raw
from tests.gateway.links.world import SECRET, TIMEOUT_S

LOST_WITHIN_S = 1.5 * TIMEOUT_S
"""A silence is noticed within this."""


@pytest.fixture
def world(make_failing_world: MakeFailingWorld) -> FailingWorld:
    """Three nodes that are linked, with something on the way between any two."""
    made = make_failing_world()
    made.network.faults = Faults(partial_send=0.3, partial_recv=0.3)
    made.run(lambda: made.is_linked, "all links")
    send_everywhere(made)
    return made


def send_everywhere(world: FailingWorld, count: int = 3) -> None:
    for host in world.living():
        for other in host.ledgers:
            for _ in range(count):
                host.send(other, 900)


def test_a_parted_node_is_lost_at_both_ends_and_nothing_is_when_it_is_back(
    world: FailingWorld,
) -> None:
    world.part(2)
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert world[1].state(3) == world[3].state(1) == "linked"
    assert "linked" not in (world[1].state(2), world[2].state(1), world[2].state(3))
    send_everywhere(world)
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize(("source", "target"), [(1, 2), (2, 1)])
def test_a_way_that_loses_everything_is_noticed_at_both_its_ends(
    world: FailingWorld, source: int, target: int
) -> None:
    world.block(source, target)
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert world[target].state(source) != "linked"
    world.run_for(LOST_WITHIN_S)
    assert world[source].state(target) != "linked"
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize("unheard", [False, True])
def test_a_node_that_is_killed_and_begun_anew_has_its_peers_told(
    world: FailingWorld, unheard: bool
) -> None:
    """Also where nobody heard of its end: as a machine that loses its power."""
    world.run(lambda: len(world[2].held) == 6, "the records")
    for host in (world[1], world[3]):
        host.send(2, 900)
    if unheard:
        world.part(2)
    world[2].kill()
    world.heal()
    world[2].begin()
    world.run(lambda: world.is_linked, "all links")
    for node in (1, 3):
        assert world[node].fates["undelivered"] == 4
    world.check_recovery()
    assert world.count("links_undelivered") == 8


def test_a_node_that_was_taken_for_gone_comes_back_as_another_life(world: FailingWorld) -> None:
    world.run(lambda: len(world[2].held) == 6, "the records")
    world[2].come_back()
    assert world[2].fates["undelivered"] == 6
    send_everywhere(world)
    world.run(lambda: world.is_linked, "all links")
    assert world[1].fates["undelivered"] == world[3].fates["undelivered"] == 6
    world.check_recovery()


def test_a_node_that_is_forgotten_by_another_begins_anew_with_it_alone(
    world: FailingWorld,
) -> None:
    world.run(lambda: len(world[2].held) == len(world[3].held) == 6, "the records")
    world[2].forget(3)
    send_everywhere(world)
    world.run(lambda: world.is_linked, "all links")
    assert [world[node].fates["undelivered"] for node in (1, 2, 3)] == [0, 3, 6]
    world.check_recovery()


def test_a_node_that_was_paused_is_lost_and_goes_on_where_it_was(world: FailingWorld) -> None:
    world.run(lambda: len(world[2].held) == 6, "the records")
    world[2].is_running = False
    send_everywhere(world)
    world.run_for(LOST_WITHIN_S)
    assert "linked" not in (world[1].state(2), world[3].state(2))
    world.check_recovery()
    assert world.count("links_undelivered") == 0


@pytest.mark.parametrize("ahead_s", [0.1, TIMEOUT_S, 86_400])
def test_a_clock_that_jumps_costs_a_connection_at_most(world: FailingWorld, ahead_s: float) -> None:
    for host in (world[1], world[2]):
        host.driver.ahead_s += ahead_s
        send_everywhere(world)
        world.run_for(1.0)
    world.check_recovery()
    assert world.count("links_undelivered") == 0
    assert world.count("links_lost") <= 8  # both ends of the two links of who jumped


def test_the_node_with_the_greater_id_is_refused_when_both_call_at_once(
    world: FailingWorld,
) -> None:
    world.part(1)
    world.run_for(LOST_WITHIN_S)
    wrong_way = WrongWay()
    service = ClientService(world.addresses[1], world[3].core, lambda: wrong_way, 1)
    service.start()
    world.heal()  # and node 1 calls as well
    world.run(lambda: wrong_way.ended is not None, "its end")
    world.run(lambda: world.is_linked, "all links")
    assert wrong_way.received == b""
    assert world[1].count("links_refused_node") == 1
    world.check_recovery()


class WrongWay(Raw):
    """Node 3, which knows the secret and calls node 1."""

    def on_connected(self) -> None:
        self.send(Handshake(LinkIdentity(3, 3001, "game", SECRET), 1).begin())


def test_two_calls_of_a_node_at_once_leave_one_connection(world: FailingWorld) -> None:
    """The caller has given the first one up, and whom it called has not heard of that."""
    world.run_for(1.0 + 0.01)  # just behind a beat: nothing is said on the first one meanwhile
    world.block(1, 2)
    assert world[1].cut(2)
    world.run(lambda: world[1].state(2) != "linked", "its end")
    world.heal()
    world.run(lambda: world[1].state(2) == "linked", "the second one")
    assert world[2].count("links_replaced") == 1
    world.check_recovery()
    assert world.count("links_undelivered") == 0


def test_a_log_that_is_full_takes_nothing_until_its_peer_is_back(world: FailingWorld) -> None:
    world.part(2)
    while world[1].send(2, 900):
        pass
    world.run_for(RECOVERY_S)
    assert not world[1].send(2, 900)
    assert world[1].count("links_full") == 2
    world.check_recovery()
    assert world[1].send(2, 900)
