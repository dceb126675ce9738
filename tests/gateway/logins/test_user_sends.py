"""What is for a user reaches its session wherever it is, in order; and so does a kick."""

import pytest

from cluster.gateway.links.link_log import RECORD_COST_BYTES
from cluster.gateway.logins import user_sends
from cluster.gateway.logins.user_sends import TO_HOLDER, TO_OWNER
from cluster.shared.user_records import SecondLogin, pack_send_to
from tests.gateway.links.world import TIMEOUT_S
from tests.gateway.logins.world import LoginSession, LoginWorld

OWNERS = pytest.mark.parametrize("owner", [1, 2, 3])


def bound(world: LoginWorld, node: int, user: str) -> LoginSession:
    session = world[node].open()
    session.bind(user)
    world.settle()
    assert session.user == user
    return session


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


@OWNERS
def test_a_user_is_reached_from_every_node_in_order(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    session = bound(world, 2, user)
    for node in (1, 2, 3):
        session.received.clear()
        for data in numbers(20):
            world[node].send_to(user, data)
        world.settle()
        assert session.received == numbers(20)
    for host in world.living():
        assert not host.traffic.untold_count
    assert world[2].count("sends") == 60
    assert sum(host.count("sends_to_absent_users") for host in world.living()) == 0


@OWNERS
@pytest.mark.parametrize("without_lease", [(1,), (1, 2, 3)])
def test_users_are_reached_and_replaced_as_before_while_nodes_have_no_lease(
    world: LoginWorld, owner: int, without_lease: tuple[int, ...]
):
    user = world.user_of(owner)
    session = bound(world, 2, user)
    for node in without_lease:
        world[node].lose_lease()
    for node in (1, 3):
        world[node].send_to(user, b"from %d" % node)
        world.settle()
    assert session.received == [b"from 1", b"from 3"]
    later = bound(world, 3, user)
    assert session.cause == "replaced"
    world[1].send_to(user, b"to the later")
    world.settle()
    assert later.received == [b"to the later"]
    assert sum(host.count("sends_to_absent_users") for host in world.living()) == 0


@OWNERS
def test_a_user_that_nobody_is_gets_nothing_and_is_counted_once(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    world[1].send_to(user, b"hello")
    world[1].kick(user, b"go")
    world.settle()
    counted = [
        (host.count("sends_to_absent_users"), host.count("kicks_of_absent_users"))
        for host in world.living()
    ]
    assert sorted(counted) == [(0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize("is_after_the_bind", [False, True])
def test_what_goes_straight_overtakes_nothing(world: LoginWorld, is_after_the_bind: bool):
    """The user logs in on the node of the sender, by an owner that is another one."""
    user = world.user_of(2)
    session = world[1].open()
    if not is_after_the_bind:
        world[1].send_to(user, b"too early")
    session.bind(user)
    for data in numbers(5):
        world[1].send_to(user, data)
    sent = 5
    while not session.received:
        world.run_for(0.000_1)
        world[1].send_to(user, b"%d" % sent)
        sent += 1
    world[1].send_to(user, b"%d" % sent)
    world.settle()
    assert session.received == numbers(sent + 1)


def test_what_waits_for_a_user_of_a_parted_node_arrives_at_the_heal(world: LoginWorld):
    user = world.user_of(3)
    session = bound(world, 1, user)
    world.part(1)
    for data in numbers(3):
        world[2].send_to(user, data)
    world.run_for(2 * TIMEOUT_S)
    # It waits for the link with node 1, not with the owner.
    assert not world[2].traffic.untold_count
    world[2].send_to(user, b"3")
    world.heal()
    world.run_linked()
    assert session.received == numbers(4)


def test_what_was_for_a_node_that_died_is_counted(world: LoginWorld):
    user, other = world.user_of(2), world.user_of(3)
    bound(world, 1, other)
    for node in (1, 2):
        world.part(node)
    world[1].send_to(user, b"by an owner that dies")
    world[3].send_to(other, b"for a holder that dies")
    world[2].kill()
    world[1].kill()
    world.heal()
    world.run_linked()
    # The new life of node 1 knows nothing; node 3 cannot say what became of its packet.
    assert world[3].count("sends_to_users_lost") == 1
    world.part(1)
    world[1].send_to(user, b"by an owner that dies")
    world[2].kill()
    world.heal()
    world.run_linked()
    assert world[1].count("sends_to_users_lost") == 1


@OWNERS
def test_a_log_without_room_is_counted(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    session = bound(world, 2, user)
    world[1].links._links[2].log.retained_bytes_max = 0
    world[1].links._links[3].log.retained_bytes_max = 0
    world[1].send_to(user, b"lost")
    world.settle()
    assert session.received == []
    assert world[1].count("sends_to_users_lost") == 1


def test_an_owner_that_began_anew_passes_on_what_it_has_when_it_knows_its_users(
    world: LoginWorld,
):
    user = world.user_of(2)
    session = bound(world, 1, user)
    world[2].kill()
    world.settle()
    world[3].send_to(user, b"from another node")
    world[2].begin()
    assert world[2].users.logins.look_around()
    for data in numbers(20):
        world[2].send_to(user, data)
    assert session.received == []
    world.run_linked()
    # What was sent to the life before is lost, if that had taken it.
    assert [data for data in session.received if len(data) < 3] == numbers(20)
    lost = world[3].count("sends_to_users_lost")
    assert session.received.count(b"from another node") + lost == 1


def test_what_waits_is_bounded(world: LoginWorld):
    user = world.user_of(2)
    world[1].cut(2)
    world.settle()
    session = world[1].open()
    session.bind(user)
    large = bytes(1 << 20)
    for _ in range(5):
        world[1].send_to(user, large)
    assert world[1].count("sends_to_users_lost") == 2
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.received == [large] * 3


def test_small_packets_that_wait_count_for_what_they_take(
    world: LoginWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(user_sends, "WAITING_BYTES_MAX", 5 * RECORD_COST_BYTES)
    user = world.user_of(2)
    world[1].cut(2)
    world.settle()
    session = world[1].open()
    session.bind(user)
    for data in numbers(5):
        world[1].send_to(user, data)
    assert world[1].count("sends_to_users_lost") == 1
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.received == numbers(4)


def test_what_waits_for_an_answer_goes_where_the_user_is(world: LoginWorld):
    user = world.user_of(2)
    holder = bound(world, 3, user)
    session = world[1].open()
    session.bind(user, SecondLogin.REJECT)
    world[1].send_to(user, b"to the holder")
    world.settle()
    assert session.user is None
    assert holder.received == [b"to the holder"]
    session.bind(user, SecondLogin.REJECT)
    world[1].send_to(user, b"while it asks")
    session.unbind()
    session.bind(user, SecondLogin.REJECT)
    world[1].kick(user, b"while it asks again")
    session.close()
    world.settle()
    assert holder.received[1:] == [b"while it asks", b"while it asks again"]
    assert holder.cause == "kicked"


def test_a_kick_that_waits_for_an_answer_ends_the_session_that_got_the_user(world: LoginWorld):
    user = world.user_of(2)
    session = world[1].open()
    session.bind(user)
    world[1].send_to(user, b"last")
    world[1].kick(user, b"go")
    assert session.received == []
    world.settle()
    assert session.received == [b"last", b"go"]
    assert session.cause == "kicked"


@OWNERS
def test_a_user_is_kicked_from_any_node_behind_what_was_sent(world: LoginWorld, owner: int):
    for node in (1, 2, 3):
        user = world.user_of(owner, node)
        session = bound(world, 2, user)
        world[node].send_to(user, b"last")
        world[node].kick(user, b"go")
        world[node].send_to(user, b"too late")
        world.settle()
        assert session.received == [b"last", b"go"]
        assert session.cause == "kicked"
        world[node].kick(user, b"again")
        world.settle()
    absent = sum(host.count("kicks_of_absent_users") for host in world.living())
    assert absent == 3


def test_a_node_that_stands_alone_has_its_own_users_only(world: LoginWorld):
    for node in (1, 2):
        world[node].forget_node(3)
    world[1].forget_node(2)
    session = world[1].open()
    assert not world[1].users.logins.look_around()
    world[1].send_to("ann", b"nobody")
    world[1].kick("ann", b"nobody")
    assert world[1].count("sends_to_absent_users") == 1
    assert world[1].count("kicks_of_absent_users") == 1
    assert session.received == []


@pytest.mark.parametrize(
    "payload",
    [
        bytes([TO_OWNER]),
        bytes([TO_OWNER, 16]) + pack_send_to(b"ann", b"hello"),
        bytes([TO_HOLDER, 25]) + b"\x03ann",
        bytes([TO_HOLDER, 30]) + b"\x00hello",
    ],
)
def test_what_cannot_be_read_is_counted_and_settled(world: LoginWorld, payload: bytes):
    world[1].links.send(2, payload)
    world.settle()
    assert world[2].count("links_unreadable_records") == 1
    assert not world[1].traffic.untold_count


def test_what_waited_for_an_owner_is_not_for_a_session_that_came_later():
    """It would come behind what was sent since, straight."""
    world = LoginWorld()
    try:
        world.part(1)  # before it was linked at all
        user = world.user_of(2)
        world[1].send_to(user, b"too early")
        session = world[1].open()
        session.bind(user)
        world.run(lambda: session.answers, "the answer")
        world[1].send_to(user, b"in time")
        world.heal()
        world.run_linked()
        assert session.received == [b"in time"]
        assert world[2].count("sends_to_absent_users") == 1
    finally:
        world.close()


def test_what_waits_for_several_that_ask_waits_until_all_are_decided(world: LoginWorld):
    """The first of two has ended when its node decides alone; the second one gets everything."""
    user = world.user_of(3)
    world.part(1)
    first, second = world[1].open(), world[1].open()
    first.bind(user)
    second.bind(user)
    world[1].send_to(user, b"0")
    first.disconnect("its own end")
    world.run_for(2 * TIMEOUT_S)
    assert second.user == user
    world[1].send_to(user, b"1")
    assert second.received == numbers(2)
