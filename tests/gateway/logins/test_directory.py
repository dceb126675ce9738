"""The owner of a user decides: in the order of asking, by stamps only where nobody could."""

import time

import pytest

from cluster.gateway.logins.directory import Ask, Command, UserDirectory
from cluster.gateway.logins.login_records import ANSWER, CHECK, TAKEN, Login, LoginRecord
from cluster.shared.user_records import SecondLogin

REPLACE, REJECT = SecondLogin


@pytest.fixture
def directory() -> UserDirectory:
    return UserDirectory()


def ask(
    node: int,
    stamp: int,
    policy: SecondLogin = REPLACE,
    *,
    session: int | None = None,
    user: str = "ann",
    is_late: bool = False,
) -> Ask:
    """The session of a node that has the node's number, by default."""
    place = session or node
    return Ask(user, Login(stamp, node, place), request=7, policy=policy, is_late=is_late)


def bound(node: int, stamp: int, session: int | None = None, user: str = "ann") -> Command:
    return node, LoginRecord(ANSWER, session or node, stamp, 7, 1, user)


def rejected(node: int, user: str = "ann") -> Command:
    return node, LoginRecord(ANSWER, node, 0, 7, 0, user)


def taken(node: int, stamp: int, session: int | None = None) -> Command:
    return node, LoginRecord(TAKEN, session or node, stamp, user="ann")


def check(node: int) -> Command:
    return node, LoginRecord(CHECK, node, user="ann")


def test_whoever_asks_for_a_user_that_nobody_is_gets_it(directory: UserDirectory):
    assert directory.ask(ask(1, 10), 0) == [bound(1, 10)]
    assert directory.find("ann") == Login(10, 1, 1)
    assert directory.find("bob") is None
    assert len(directory) == 1


def test_a_second_login_takes_the_user_whatever_the_clocks_say(directory: UserDirectory):
    directory.ask(ask(1, 1_000), 0)
    assert directory.ask(ask(2, 10), 0) == [bound(2, 1_001), taken(1, 1_001)]
    assert directory.find("ann") == Login(1_001, 2, 2)


def test_another_session_of_the_same_node_takes_it_without_a_word_to_the_older(
    directory: UserDirectory,
):
    directory.ask(ask(1, 10), 0)
    assert directory.ask(ask(1, 11, session=5), 0) == [bound(1, 11, 5)]
    directory.free("ann", 1, 1, 0)  # which the older one still says
    assert directory.find("ann") == Login(11, 1, 5)


@pytest.mark.parametrize("is_late", [False, True])
def test_of_two_logins_of_one_node_at_once_the_second_is_rejected_if_the_first_stays(
    directory: UserDirectory, is_late: bool
):
    directory.ask(ask(1, 10, REJECT), 0)
    second = ask(1, 11, REJECT, session=5, is_late=is_late)
    assert directory.ask(second, 0) == [check(1)]
    assert directory.checked("ann", 1, 1, True, 0) == [
        (1, LoginRecord(ANSWER, 5, 0, 7, 0, "ann")),
    ]
    assert directory.find("ann") == Login(10, 1, 1)
    assert directory.ask(second, 0) == [check(1)]
    assert directory.checked("ann", 1, 1, False, 0) == [bound(1, 11, 5)]
    assert directory.ask(second, 0) == [bound(1, 11, 5)]
    directory.check_invariants()


def test_a_login_is_rejected_only_when_the_holder_is_there(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    assert directory.ask(ask(2, 20, REJECT), 0) == [check(1)]
    assert directory.has_contests
    assert directory.ask(ask(3, 30, REJECT), 0) == []
    assert directory.checked("ann", 1, 1, True, 0) == [rejected(2), rejected(3)]
    assert directory.find("ann") == Login(10, 1, 1)
    assert not directory.has_contests


def test_of_those_who_wait_for_a_holder_that_is_gone_the_first_gets_the_user(
    directory: UserDirectory,
):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    directory.ask(ask(3, 30, REJECT), 0)
    assert directory.checked("ann", 1, 1, False, 0) == [bound(2, 20), check(2)]
    assert directory.checked("ann", 1, 1, False, 0) == []  # it is about another holder now
    assert directory.checked("ann", 2, 2, True, 0) == [rejected(3)]


def test_a_holder_that_logs_out_meanwhile_lets_the_next_one_in(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    assert directory.free("ann", 1, 1, 0) == [bound(2, 20)]


def test_a_holder_that_cannot_be_reached_gives_way_and_hears_of_it(directory: UserDirectory):
    directory.ask(ask(1, 10), 5.0)
    directory.ask(ask(2, 20, REJECT), 5.0)
    directory.ask(ask(3, 30, REJECT), 9.0)
    assert directory.expire(4.9) == []
    assert directory.expire(5.0) == [bound(2, 20), rejected(3), taken(1, 20)]
    directory.ask(ask(3, 40, REJECT), 9.0)
    assert directory.unreachable("ann") == [bound(3, 40), taken(2, 40)]
    assert directory.unreachable("ann") == []


def test_a_replacement_ends_the_wait_of_others(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    assert directory.ask(ask(3, 30), 0) == [bound(3, 30), rejected(2), taken(1, 30)]
    assert not directory.has_contests


def test_who_waits_and_gives_up_is_not_answered(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    assert directory.free("ann", 2, 2, 0) == []
    assert directory.checked("ann", 1, 1, False, 0) == []
    assert directory.find("ann") is None
    directory.ask(ask(1, 30), 0)
    directory.ask(ask(2, 40, REJECT), 0)
    directory.free("ann", 2, 2, 0)
    assert directory.expire(9.0) == []
    assert directory.find("ann") == Login(30, 1, 1)
    directory.check_invariants()


def test_who_asks_after_one_who_gave_up_is_rejected_by_a_holder_that_is_there(
    directory: UserDirectory,
):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    directory.free("ann", 2, 2, 0)
    assert directory.expire(9.0) == []
    assert not directory.has_contests
    assert directory.ask(ask(3, 30, REJECT), 10.0) == [check(1)]
    assert directory.expire(9.5) == []
    assert directory.checked("ann", 1, 1, True, 10.0) == [rejected(3)]


def test_to_ask_again_is_answered_again(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    assert directory.ask(ask(1, 10), 0) == [bound(1, 10)]
    directory.ask(ask(2, 20, REJECT), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    assert directory.checked("ann", 1, 1, True, 0) == [rejected(2)]


# -- what was decided without the owner ------------------------------------------------------------


def test_of_two_that_were_decided_apart_the_later_one_counts(directory: UserDirectory):
    assert directory.hold("ann", Login(10, 1, 1)) == []
    assert directory.hold("ann", Login(30, 2, 2)) == [taken(1, 30)]
    assert directory.hold("ann", Login(20, 3, 3)) == [taken(3, 30)]
    # Of the same stamp the node with the greater number.
    assert directory.hold("ann", Login(30, 3, 3)) == [taken(2, 30)]
    assert directory.find("ann") == Login(30, 3, 3)


def test_what_a_node_says_of_its_own_sessions_counts_whatever_the_stamps(
    directory: UserDirectory,
):
    directory.hold("ann", Login(10, 1, 1))
    assert directory.hold("ann", Login(9, 1, 5)) == []
    assert directory.find("ann") == Login(9, 1, 5)
    assert directory.hold("ann", Login(8, 1, 5)) == []
    assert directory.find("ann") == Login(9, 1, 5)


def test_an_ask_from_before_a_cut_counts_by_its_stamp(directory: UserDirectory):
    directory.ask(ask(1, 20), 0)
    late = ask(2, 10, is_late=True)
    assert directory.ask(late, 0) == [bound(2, 10), taken(2, 20)]
    assert directory.ask(late._replace(policy=REJECT), 0) == [rejected(2)]
    assert directory.find("ann") == Login(20, 1, 1)
    assert directory.ask(ask(2, 21, is_late=True), 0) == [bound(2, 21), taken(1, 21)]


def test_one_who_waits_and_then_decides_alone_waits_no_more(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    directory.ask(ask(3, 30, REJECT), 0)
    assert directory.hold("ann", Login(20, 2, 2)) == [rejected(3), taken(1, 20)]


# -- lives of nodes --------------------------------------------------------------------------------


def test_nothing_is_decided_before_all_have_told_their_users(directory: UserDirectory):
    directory.await_nodes([2, 3])
    assert not directory.is_complete
    assert directory.ask(ask(1, 50, REJECT), 0) == []
    assert directory.ask(ask(1, 51, session=6, user="bob"), 0) == []
    assert directory.ask(ask(2, 52, session=7, user="eve"), 0) == []
    directory.free("eve", 2, 7, 0)
    directory.begin(2)
    directory.hold("ann", Login(10, 2, 2))
    assert directory.end(2, 0) == []
    assert not directory.is_complete
    directory.give_up(3)
    assert directory.is_complete
    assert directory.decide_early(0) == [check(2), bound(1, 51, 6, "bob")]
    assert directory.decide_early(0) == []
    assert directory.find("eve") is None


def test_what_a_node_does_not_tell_again_it_does_not_have(directory: UserDirectory):
    for number, user in enumerate(("ann", "bob", "eve"), 10):
        directory.hold(user, Login(number, 1, number))
    directory.hold("dan", Login(10, 2, 2))
    directory.begin(1)
    directory.hold("ann", Login(10, 1, 10))
    directory.ask(ask(1, 20, session=11, user="bob"), 0)
    directory.ask(ask(3, 20, REJECT, user="eve"), 0)
    assert directory.end(1, 0) == [bound(3, 20, user="eve")]
    assert directory.find("ann") == Login(10, 1, 10)
    assert directory.find("bob") == Login(20, 1, 11)
    assert directory.find("dan") == Login(10, 2, 2)


def test_a_user_that_another_node_took_meanwhile_stays_when_the_telling_ends(
    directory: UserDirectory,
):
    directory.hold("ann", Login(10, 1, 1))
    directory.begin(1)
    directory.ask(ask(2, 20), 0)
    assert directory.end(1, 0) == []
    assert directory.find("ann") == Login(20, 2, 2)


def test_a_user_that_is_free_before_the_telling_ends_is_free(directory: UserDirectory):
    directory.hold("ann", Login(10, 1, 1))
    directory.begin(1)
    directory.free("ann", 1, 1, 0)
    assert directory.end(1, 0) == []
    assert directory.find("ann") is None


def test_a_node_that_began_another_life_has_nobody_and_asks_for_nobody(
    directory: UserDirectory,
):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT, session=7), 0)
    directory.ask(ask(3, 30, REJECT), 0)
    assert directory.forget_node(2, 0) == []
    assert directory.forget_node(1, 0) == [bound(3, 30)]
    directory.await_nodes([5])
    directory.ask(ask(2, 40, session=3, user="bob"), 0)
    directory.ask(ask(3, 40, session=2, user="eve"), 0)
    directory.forget_node(2, 0)
    directory.give_up(5)
    assert directory.decide_early(0) == [bound(3, 40, 2, user="eve")]


def test_users_that_another_node_owns_now_are_forgotten(directory: UserDirectory):
    directory.ask(ask(1, 10), 0)
    directory.ask(ask(2, 20, REJECT), 0)
    directory.ask(ask(1, 10, user="bob"), 0)
    directory.keep(lambda user: user == "bob")
    assert directory.find("ann") is None
    assert directory.find("bob") is not None
    assert directory.checked("ann", 1, 1, False, 0) == []
    directory.check_invariants()


def hold(directory: UserDirectory, user: str, node: int = 1, session: int = 1) -> list[Command]:
    return directory.hold(user, Login(10, node, session))


@pytest.fixture
def unkept(directory: UserDirectory, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Room for two users of each node; what is not kept."""
    monkeypatch.setattr("cluster.gateway.logins.directory.USERS_MAX", 2)
    found: list[None] = []
    directory.on_unkept = lambda: found.append(None)
    return found


def test_a_node_with_too_many_users_gets_more_but_they_are_not_found(
    directory: UserDirectory, unkept: list[None]
) -> None:
    for session, user in enumerate(["a", "b", "c"], 1):
        assert hold(directory, user, session=session) == []
    assert directory.ask(ask(1, 20, session=4, user="d"), 0) == [bound(1, 20, 4, "d")]
    assert [directory.find(user) is not None for user in "abcd"] == [True, True, False, False]
    assert len(unkept) == 2
    assert directory.ask(ask(2, 20, user="e"), 0) == [bound(2, 20, user="e")], "others have room"
    assert directory.find("e") is not None
    hold(directory, "a")  # which it has
    assert len(unkept) == 2
    directory.free("a", 1, 1, 0)
    hold(directory, "c", session=3)
    assert directory.find("c") is not None
    directory.check_invariants()


def test_a_user_that_is_taken_and_not_kept_is_taken_all_the_same(
    directory: UserDirectory, unkept: list[None]
) -> None:
    directory.ask(ask(2, 10), 0)
    for session, user in enumerate(["a", "b"], 1):
        hold(directory, user, session=session)
    assert directory.ask(ask(1, 20, session=9), 0) == [bound(1, 20, 9), taken(2, 20)]
    assert directory.find("ann") is None
    assert len(unkept) == 1
    directory.check_invariants()


def test_users_that_are_told_again_are_confirmed_within_the_bound(
    directory: UserDirectory, unkept: list[None]
) -> None:
    for session, user in enumerate(["a", "b"], 1):
        hold(directory, user, session=session)
    directory.begin(1)
    directory.check_invariants()
    hold(directory, "c", session=3)  # the others may be there still
    hold(directory, "b", session=2)
    directory.begin(1)  # again, in the midst of it
    hold(directory, "a", session=1)
    directory.check_invariants()
    directory.end(1, 0)
    directory.check_invariants()
    assert [directory.find(user) is not None for user in "abc"] == [True, False, False]
    hold(directory, "c", session=3)
    assert directory.find("c") is not None
    assert len(unkept) == 1


def test_asks_that_wait_are_bounded_for_each_node(
    directory: UserDirectory, unkept: list[None]
) -> None:
    directory.await_nodes([3])
    for session in range(1, 5):
        directory.ask(ask(1, 10, session=session, user=f"u{session}"), 0)
    directory.ask(ask(1, 11, session=2, user="again"), 0)
    directory.ask(ask(2, 10), 0)
    directory.check_invariants()
    assert len(unkept) == 2
    directory.free("u1", 1, 1, 0)
    directory.ask(ask(1, 10, session=4, user="u4"), 0)
    directory.check_invariants()
    directory.keep(lambda user: user != "again")
    directory.ask(ask(1, 10, session=5, user="u5"), 0)
    directory.check_invariants()
    directory.forget_node(2, 0)
    directory.check_invariants()
    directory.give_up(3)
    assert directory.decide_early(0) == [bound(1, 10, 4, "u4"), bound(1, 10, 5, "u5")]
    directory.check_invariants()
    assert len(unkept) == 2


def test_asks_for_one_holder_are_bounded_and_the_others_rejected(
    directory: UserDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.gateway.logins.directory.CONTEST_ASKS_MAX", 2)
    directory.ask(ask(1, 10), 0)
    assert directory.ask(ask(2, 20, REJECT), 0) == [check(1)]
    assert directory.ask(ask(3, 20, REJECT), 0) == []
    assert directory.ask(ask(4, 20, REJECT), 0) == [rejected(4)]
    assert directory.ask(ask(3, 21, REJECT), 0) == []
    directory.check_invariants()
    assert directory.checked("ann", 1, 1, True, 0) == [rejected(2), rejected(3)]


def test_a_node_that_begins_again_and_again_costs_no_more_than_it_tells(directory: UserDirectory):
    """A liar would have the owner look at all its users for each record of a few bytes."""
    count = 100_000
    for number in range(count):
        hold(directory, f"user {number}", session=number)
    began = time.process_time()
    for _ in range(1_000):
        directory.begin(1)
        hold(directory, "user 1", session=1)
    assert time.process_time() - began < 1
    directory.end(1, 0)
    assert len(directory) == 0 or directory.find("user 1") is not None
    assert len(directory) <= 1
