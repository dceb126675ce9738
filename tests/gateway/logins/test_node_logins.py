"""Second logins across nodes: the owner decides, and nobody waits for ever."""

import pytest

from cluster.gateway.logins.login_records import (
    ASK,
    STAMP_MAX,
    TELL,
    LoginRecord,
    pack_login_record,
)
from cluster.shared.user_records import BindResult, SecondLogin
from tests.gateway.links.world import TIMEOUT_S
from tests.gateway.logins.world import LoginSession, LoginWorld

REPLACE, REJECT = SecondLogin
YES, NO = BindResult
OWNERS = pytest.mark.parametrize("owner", [1, 2, 3])


def bound(world: LoginWorld, node: int, user: str, policy: SecondLogin = REPLACE) -> LoginSession:
    session = world[node].open()
    session.bind(user, policy)
    world.settle()
    assert session.results == [(YES, user)]
    return session


def holders(world: LoginWorld, user: str) -> list[LoginSession]:
    found = [host.holds(user) for host in world.living()]
    return [session for session in found if session is not None]


@OWNERS
def test_a_login_on_another_node_replaces_the_older(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    older = bound(world, 1, user)
    newer = bound(world, 2, user)
    assert (older.cause, older.user) == ("replaced", None)
    assert holders(world, user) == [newer]
    older.close()
    world.settle()
    last = bound(world, 1, user)
    assert holders(world, user) == [last]
    assert last.login_stamp > newer.login_stamp


@OWNERS
def test_a_login_on_another_node_is_rejected_while_the_user_is_there(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    older = bound(world, 1, user, REJECT)
    other = world.user_of(3, 5)
    newer = bound(world, 2, other, REJECT)
    newer.bind(user, REJECT)
    world.settle()
    assert newer.results == [(YES, other), (NO, other)]
    assert older.is_present
    assert holders(world, user) == [older]
    assert world[2].count("binds_rejected") == 1
    # One that is ending keeps nobody out, though the owner has not heard of it.
    older.is_present = False
    newer.bind(user, REJECT)
    world.settle()
    assert newer.results[2:] == [(YES, user)]
    assert holders(world, other) == []
    older.close()
    world.settle()
    assert [session for session in holders(world, user) if session.is_present] == [newer]


@OWNERS
@pytest.mark.parametrize("how", ["unbind", "close", "another"])
def test_a_user_who_has_gone_is_free(world: LoginWorld, owner: int, how: str):
    user = world.user_of(owner)
    older = bound(world, 1, user, REJECT)
    if how == "unbind":
        older.unbind()
    elif how == "close":
        older.close()
    else:
        older.bind(world.user_of(owner, 1))
    world.settle()
    assert world[owner].users.logins.owned.directory.find(user) is None
    bound(world, 2, user, REJECT)


def test_two_who_ask_at_once_do_not_both_get_the_user(world: LoginWorld):
    user = world.user_of(3)
    sessions = [world[node].open() for node in (1, 2)]
    for session in sessions:
        session.bind(user)
    world.settle()
    assert all(session.results[0] == (YES, user) for session in sessions)
    assert sorted(session.cause is None for session in sessions) == [False, True]
    assert len(holders(world, user)) == 1


def test_of_two_who_ask_at_once_under_reject_one_is_rejected(world: LoginWorld):
    user = world.user_of(3)
    sessions = [world[node].open() for node in (1, 2)]
    for session in sessions:
        session.bind(user, REJECT)
    world.settle()
    assert sorted(session.results[0] for session in sessions) == [(YES, user), (NO, None)]


@OWNERS
def test_an_unbind_voids_what_the_owner_has_not_answered(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    session = world[1].open()
    session.bind(user)
    session.bind("somebody else")
    session.unbind()
    if owner != 1:
        assert [answer.request for answer in session.answers] == [2]
        assert session.results == [(NO, None)]
    world.settle()
    assert session.user is None
    assert holders(world, user) == []
    assert world[owner].users.logins.owned.directory.find(user) is None
    session.bind(user)
    world.settle()
    assert session.results[-1] == (YES, user)
    assert world[owner].users.logins.owned.directory.find(user) is not None


def test_a_session_that_ends_before_the_answer_has_no_user(world: LoginWorld):
    user = world.user_of(2)
    gone, ending = world[1].open(), world[1].open()
    gone.bind(user)
    gone.close()
    ending.bind(world.user_of(2, 1))
    ending.is_present = False
    world.settle()
    assert gone.answers == ending.answers == []
    assert len(world[2].users.logins.owned.directory) == 0


def test_of_binds_in_a_row_the_first_and_the_last_are_answered(world: LoginWorld):
    users = [world.user_of(2, number) for number in range(4)]
    session = world[1].open()
    for user in users:
        session.bind(user)
    world.settle()
    assert [answer.request for answer in session.answers] == [1, 4]
    assert session.user == users[3]
    assert len(world[2].users.logins.owned.directory) == 1


# -- owners that cannot be reached -----------------------------------------------------------------


def test_a_parted_node_decides_alone_and_the_later_login_stays_at_the_heal(world: LoginWorld):
    user = world.user_of(3)
    older = bound(world, 2, user)
    world.part(1)
    newer = world[1].open()
    newer.bind(user, REJECT)
    world.run(lambda: newer.answers, "the answer", 2 * TIMEOUT_S)
    assert newer.results == [(YES, user)]
    assert world[1].count("binds_decided_alone") == 1
    assert older.is_present
    world.run_for(1.5 * TIMEOUT_S)
    # Nobody is waited for any more.
    another = world[1].open()
    another.bind(world.user_of(3, 1))
    assert another.results == [(YES, world.user_of(3, 1))]
    world.heal()
    world.run_linked()
    assert older.cause == "replaced"
    assert holders(world, user) == [newer]
    assert world[2].count("users_taken_by_other_nodes") == 1


def test_the_login_of_a_parted_node_loses_to_a_later_one(world: LoginWorld):
    user = world.user_of(3)
    world.part(1)
    older = world[1].open()
    older.bind(user)
    world.run(lambda: older.answers, "the answer", 2 * TIMEOUT_S)
    newer = bound(world, 2, user, REJECT)
    world.heal()
    world.run_linked()
    assert older.cause == "replaced"
    assert holders(world, user) == [newer]
    assert newer.is_present


def test_clocks_that_differ_count_only_between_parted_nodes(world: LoginWorld):
    user = world.user_of(3)
    world[1].wall_ahead_s = 100.0
    older = bound(world, 1, user)
    newer = bound(world, 2, user)
    assert older.cause == "replaced"
    assert newer.login_stamp > older.login_stamp
    # The clock of a node goes on from the latest login that it has heard of.
    world.part(1)
    world[1].wall_ahead_s = -1_000.0
    later = world[1].open()
    later.bind(user)
    world.run_for(2 * TIMEOUT_S)
    assert later.results == [(YES, user)]
    world.heal()
    world.run_linked()
    assert holders(world, user) == [newer]  # which node 1 had not heard of
    assert later.cause == "replaced"


def test_clocks_that_differ_count_no_more_when_a_cut_is_over(world: LoginWorld):
    world[3].wall_ahead_s = -100.0
    user = world.user_of(2)
    older = bound(world, 1, user)
    world[3].cut(2)
    world.run(lambda: not world[2].links.is_linked(3), "the cut")
    world.run_linked()
    newer = bound(world, 3, user)
    assert newer.is_present
    assert older.cause == "replaced"


def test_an_answer_that_a_cut_holds_up_is_waited_for(world: LoginWorld):
    user = world.user_of(2)
    session = world[1].open()
    session.bind(user)
    world[1].cut(2)
    world.settle()
    assert session.answers == []
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.results == [(YES, user)]
    assert world[1].count("binds_decided_alone") == 0


def test_a_bind_during_a_short_cut_waits_for_its_end(world: LoginWorld):
    user = world.user_of(2)
    older = bound(world, 3, user, REJECT)
    world[1].cut(2)
    world.settle()
    assert not world[1].traffic.is_linked(2)
    session = world[1].open()
    session.bind(user, REJECT)
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.results == [(NO, None)]
    assert older.is_present


def test_a_holder_that_cannot_be_reached_keeps_nobody_out(world: LoginWorld):
    user = world.user_of(2)
    older = bound(world, 1, user, REJECT)
    world.part(1)
    newer = world[3].open()
    newer.bind(user, REJECT)
    world.run(lambda: newer.answers, "the answer", TIMEOUT_S)
    assert newer.results == [(YES, user)]
    assert world[3].count("binds_decided_alone") == 0
    world.heal()
    world.run_linked()
    assert older.cause == "replaced"


def test_a_log_without_room_falls_back_and_is_made_up_for(world: LoginWorld):
    user, second = world.user_of(2), world.user_of(2, 1)
    freed = bound(world, 1, second)
    world[1].links._links[2].log.retained_bytes_max = 0
    session = world[1].open()
    session.bind(user)
    assert session.results == [(YES, user)]
    assert world[1].count("links_full") > 0
    freed.unbind()
    world.run_for(TIMEOUT_S)
    directory = world[2].users.logins.owned.directory
    assert directory.find(user) is None
    assert directory.find(second) is not None
    world[1].links._links[2].log.retained_bytes_max = 1 << 20
    world.run_for(TIMEOUT_S)
    login = directory.find(user)
    assert login is not None
    assert (login.node, login.session) == (1, session.id)
    assert directory.find(second) is None


def test_a_session_that_is_to_be_ended_is_in_the_end_also_if_the_log_was_full(world: LoginWorld):
    user = world.user_of(2)
    older = bound(world, 1, user)
    world[2].links._links[1].log.retained_bytes_max = 0
    newer = bound(world, 3, user)
    world.run_for(TIMEOUT_S)
    assert older.is_present
    world[2].links._links[1].log.retained_bytes_max = 1 << 20
    world.run_for(TIMEOUT_S)
    assert older.cause == "replaced"
    assert holders(world, user) == [newer]


def test_a_session_that_is_to_be_ended_is_in_the_end_also_if_the_newer_one_has_gone(
    world: LoginWorld,
):
    user = world.user_of(2)
    older = bound(world, 1, user)
    world[2].links._links[1].log.retained_bytes_max = 0
    newer = bound(world, 3, user)
    newer.close()
    world.run_for(TIMEOUT_S)
    assert older.is_present
    world[2].links._links[1].log.retained_bytes_max = 1 << 20
    world.run_for(TIMEOUT_S)
    assert older.cause == "replaced"
    assert world[2].users.logins.owned.directory.find(user) is None


def test_what_waits_for_room_is_told_as_soon_as_there_is_some(world: LoginWorld):
    """Not a moment later each time, as when nothing is settled that could make room."""
    world[1].links._links[2].log.retained_bytes_max = 1_000  # for about ten of them
    sessions = [world[1].open() for _ in range(200)]
    for number, session in enumerate(sessions):
        session.bind(world.user_of(2, number))
        world.settle()
    world[1].users.logins._tell_all(2)  # as when the log had no room for a change
    assert world[1].users.logins.is_telling(2)
    world.settle()
    assert not world[1].users.logins.is_telling(2)


# -- lives -----------------------------------------------------------------------------------------


def test_an_owner_that_began_anew_is_told_its_users_before_it_decides(world: LoginWorld):
    users = [world.user_of(2, number) for number in range(3)]
    older = [bound(world, 1, user, REJECT) for user in users]
    world[2].kill()
    world.settle()
    world[2].begin()
    newer = world[2].open()
    newer.bind(users[0], REJECT)
    assert newer.answers == []
    world.run(lambda: newer.answers, "the answer", TIMEOUT_S)
    assert newer.results == [(NO, None)]
    assert all(session.is_present for session in older)
    world.run_linked()
    assert len(world[2].users.logins.owned.directory) == 3


def test_an_owner_waits_not_for_ever_for_what_a_node_that_began_anew_has_to_tell(
    world: LoginWorld,
):
    user = world.user_of(1)
    world[2].kill()
    world.run_for(TIMEOUT_S)
    world[2].begin()
    world[2].links._links[1].log.retained_bytes_max = 0
    world.run(lambda: world[1].links.is_linked(2), "the link")
    session = world[3].open()
    session.bind(user)
    world.settle()
    assert session.answers == []
    world.run_for(1.25 * TIMEOUT_S)
    assert session.results == [(YES, user)]
    assert world[3].count("binds_decided_alone") == 0


def test_a_bind_that_waits_when_its_owner_dies_is_asked_again(world: LoginWorld):
    user = world.user_of(2)
    session = world[1].open()
    session.bind(user)
    world[2].kill()
    world.run_for(0.2)
    world[2].begin()
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.results == [(YES, user)]
    assert world[1].count("binds_decided_alone") == 0
    world.run_linked()
    assert world[2].users.logins.owned.directory.find(user) is not None


def test_the_users_of_a_node_that_died_are_free(world: LoginWorld):
    user = world.user_of(2)
    bound(world, 1, user, REJECT)
    world[1].kill()
    world.settle()
    world[1].begin()
    world.run_linked()
    assert len(world[2].users.logins.owned.directory) == 0
    bound(world, 3, user, REJECT)


def test_many_users_are_told_again_bit_by_bit(world: LoginWorld):
    world[1].links._links[2].log.retained_bytes_max = 20_000  # for about 150 of them
    sessions = []
    for number in range(1_500):
        sessions.append(world[1].open())
        sessions[-1].bind(f"user {number}")
        world.settle()
    mine = [each for each in sessions if world[1].users.logins.owner(str(each.user)) == 2]
    world[2].kill()
    world.settle()
    world[2].begin()
    world.run_linked()
    world.run_for(TIMEOUT_S)
    directory = world[2].users.logins.owned.directory
    assert 300 < len(mine) == len(directory)
    for session in mine:
        login = directory.find(str(session.user))
        assert login is not None
        assert login == (session.login_stamp, 1, session.id)


def test_what_cannot_be_read_is_counted_and_settled(world: LoginWorld):
    world[1].traffic.send(2, bytes([ASK]) + b"?")
    world[1].traffic.send(2, pack_login_record(LoginRecord(TELL, 1, what=9, user="ann")))
    world.settle()
    assert world[2].count("links_unreadable_records") == 2
    assert not world[1].traffic.untold_count


# -- nodes that come and go ------------------------------------------------------------------------


def test_when_a_node_leaves_its_keys_find_other_owners_and_its_users_are_free(world: LoginWorld):
    users = [world.user_of(2, number) for number in range(4)]
    kept = [bound(world, 1, user, REJECT) for user in users[:3]]
    bound(world, 2, users[3])
    world[2].kill()
    for node in (1, 3):
        world[node].forget_node(2)
    world.settle()
    owners = {world[1].users.logins.owner(user) for user in users}
    assert owners == {1, 3}
    newer = [world[3].open() for _ in users]
    for session, user in zip(newer, users, strict=True):
        session.bind(user, REJECT)
    world.settle()
    assert [session.results[0][0] for session in newer] == [NO, NO, NO, YES]
    assert all(session.is_present for session in kept)


def test_a_node_that_joins_is_told_what_it_owns(world: LoginWorld):
    world[2].kill()
    for node in (1, 3):
        world[node].forget_node(2)
    users = [f"user {number}" for number in range(30)]
    sessions = [bound(world, 1, user) for user in users]
    world[2].begin()
    for node in (1, 3):
        world[node].add_node(2)
    world.run_linked()
    for session, user in zip(sessions, users, strict=True):
        owner = world[1].users.logins.owner(user)
        for host in world.living():
            login = host.users.logins.owned.directory.find(user)
            assert (login is not None) == (host.node == owner)
            assert login is None or login.session == session.id


def test_who_waits_for_an_owner_is_decided_by_the_node_that_owns_the_user_now(world: LoginWorld):
    world[2].kill()
    users = [world.user_of(2, number) for number in range(9)]
    for node in (1, 3):
        world[node].forget_node(2)
    user = next(user for user in users if world[3].users.logins.owner(user) == 3)
    bound(world, 1, user, REJECT)
    world.part(1)
    session = world[3].open()
    session.bind(user, REJECT)
    world.settle()
    assert world[3].users.logins.owned.directory.has_contests
    world[2].begin()
    world[3].add_node(2)
    world.run(lambda: world[2].links.is_linked(3), "the link")
    world.run_for(0.75 * TIMEOUT_S)
    assert session.answers == []  # the new owner still waits for what node 1 has to tell
    world.run(lambda: session.answers, "the answer", TIMEOUT_S)
    assert session.results == [(YES, user)]
    assert world[2].users.logins.owned.directory.find(user) is not None
    assert world[3].users.logins.owned.directory.find(user) is None


def test_what_waits_for_room_is_not_for_a_node_that_has_left(world: LoginWorld):
    replaced, freed = world.user_of(2), world.user_of(3)
    bound(world, 3, replaced)
    session = bound(world, 2, freed)
    world[2].links._links[3].log.retained_bytes_max = 0
    bound(world, 2, replaced)
    session.unbind()
    world.settle()
    world[2].forget_node(3)
    lost = world[2].count("links_unlisted")
    world.run_for(2 * TIMEOUT_S)
    assert world[2].count("links_unlisted") == lost


@OWNERS
def test_one_who_gives_up_leaves_the_user_to_whoever_it_would_have_replaced(
    world: LoginWorld, owner: int
):
    user = world.user_of(owner)
    holder = bound(world, 1, user)
    world[1].cut(2)
    world[1].cut(3)
    one, two = world[1].open(), world[1].open()
    one.bind(user)
    two.bind(user)
    two.close()
    one.unbind()
    world.run_for(1.0)
    directory = world[owner].users.logins.owned.directory
    left = holders(world, user)
    if owner != 1:
        assert left == [holder]
    login = directory.find(user)
    assert (login and login.session) == (left[0].id if left else None)


@OWNERS
def test_one_who_gives_up_leaves_the_user_to_whoever_asked_before(world: LoginWorld, owner: int):
    user = world.user_of(owner)
    world[1].cut(2)
    world[1].cut(3)
    first, second = world[1].open(), world[1].open()
    first.bind(user)
    second.bind(user)
    second.unbind()
    world.run_for(1.0)
    login = world[owner].users.logins.owned.directory.find(user)
    if owner == 1:  # which decided at once
        assert (login, first.cause) == (None, "replaced")
        return
    assert first.results == [(YES, user)]
    assert login is not None
    assert login.session == first.id


def test_an_answer_that_comes_while_all_users_are_told_again_is_told_too(world: LoginWorld):
    sessions = [world[1].open() for _ in range(2_000)]
    for number, session in enumerate(sessions):
        session.bind(f"name {number}")
    world.settle()
    user = world.user_of(2)
    session = world[1].open()
    session.bind(user)
    logins = world[1].users.logins
    logins._tell_all(2)  # as when the log had no room for a change
    world.run(lambda: session.answers, "the answer")
    assert logins._tellings.is_telling(2)
    world.settle()
    assert not logins._tellings.is_telling(2)
    login = world[2].users.logins.owned.directory.find(user)
    assert login is not None
    assert login.session == session.id


IMPOSSIBLE_TIMES = pytest.mark.parametrize("stamp", [(1 << 63) - 1, STAMP_MAX - 1, STAMP_MAX])


@IMPOSSIBLE_TIMES
def test_behind_a_login_of_an_impossible_time_there_are_others(world: LoginWorld, stamp: int):
    user = world.user_of(2)
    ask = LoginRecord(ASK, 7, stamp, 1, int(REPLACE), user)
    world[1].traffic.send(2, pack_login_record(ask))
    world.settle()
    bound(world, 2, user)
    for owner in (1, 2, 3):
        bound(world, 2, world.user_of(owner, 1))
        bound(world, 3, world.user_of(owner, 1))


@IMPOSSIBLE_TIMES
def test_behind_a_login_of_an_impossible_time_a_cut_leaves_one_who_is_the_user(
    world: LoginWorld, stamp: int
):
    """Neither node insists on a stamp that the other takes for an earlier one."""
    ask = LoginRecord(ASK, 7, stamp, 1, int(REPLACE), world.user_of(2))
    world[1].traffic.send(2, pack_login_record(ask))
    world.settle()
    user = world.user_of(3, 1)
    world.part(2)
    older = world[2].open()
    older.bind(user, REPLACE)
    world.run(lambda: older.results, "a decision alone")
    world.heal()
    world.run_linked()
    newer = bound(world, 1, user)
    assert older.cause == "replaced"
    assert holders(world, user) == [newer]
