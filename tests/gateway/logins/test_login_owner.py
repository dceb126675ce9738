"""What an owner gives to which node, in which order, and whom it waits for how long."""

from collections.abc import Callable

import pytest

from cluster.gateway.logins.login_owner import LoginOwner
from cluster.gateway.logins.login_records import (
    ANSWER,
    ASK,
    CHECK,
    CHECKED,
    TAKEN,
    TELL,
    Login,
    LoginNews,
    LoginRecord,
)
from cluster.shared.user_records import SecondLogin

REPLACE, REJECT = SecondLogin
TIMEOUT_S = 2.0
OWNER = 1


class Bench:
    """An owner, and what it has given to nodes; its own may answer at once."""

    def __init__(self) -> None:
        self.given: list[tuple[int, LoginRecord]] = []
        self.unreachable: set[int] = set()
        self.is_giving = False
        self.on_own: Callable[[LoginRecord], None] = lambda record: None
        self.completions = 0
        self.owner = LoginOwner(TIMEOUT_S, self.give, lambda node: node not in self.unreachable)
        self.owner.on_complete = self.completed

    def give(self, node: int, record: LoginRecord) -> None:
        assert not self.is_giving  # a node is not told of the next while it carries out one
        self.is_giving = True
        self.given.append((node, record))
        if node == OWNER:
            self.on_own(record)
        self.is_giving = False

    def completed(self) -> None:
        assert self.owner.directory.is_complete
        assert not self.given  # what waited is decided behind this
        self.completions += 1

    def ask(self, node: int, stamp: int, policy: SecondLogin = REPLACE, now: float = 0.0) -> None:
        """Have the session of a node, which has the node's number, ask to be ann."""
        self.owner.take(node, LoginRecord(ASK, node, stamp, 1, int(policy), "ann"), now)

    def tell(self, node: int, what: LoginNews, stamp: int = 0, now: float = 0.0) -> None:
        user = "" if what in (LoginNews.BEGIN, LoginNews.END) else "ann"
        self.owner.take(node, LoginRecord(TELL, node, stamp, what=what, user=user), now)

    def took(self) -> list[tuple[int, int, int]]:
        """Take what was given: to which node, the kind, and what."""
        given, self.given = self.given, []
        return [(node, record.kind, record.what) for node, record in given]

    @property
    def holder(self) -> Login | None:
        return self.owner.directory.find("ann")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_one_node_is_given_is_in_the_order_in_which_it_was_decided(bench: Bench):
    """Also when the owner's own node answers in the midst of it."""
    bench.ask(OWNER, 10)
    bench.took()
    bench.ask(2, 20, REJECT)
    assert bench.took() == [(OWNER, CHECK, 0)]
    bench.ask(3, 30, REJECT)

    def end_itself(record: LoginRecord) -> None:
        if record.kind == TAKEN:
            bench.ask(3, 50)  # comes meanwhile, by the same thread

    bench.on_own = end_itself
    bench.ask(2, 40)
    assert bench.took() == [
        (2, ANSWER, 1),
        (3, ANSWER, 0),
        (OWNER, TAKEN, 0),
        (3, ANSWER, 1),
        (2, TAKEN, 0),
    ]


def test_an_answer_of_its_own_node_comes_behind_what_led_to_the_question(bench: Bench):
    bench.ask(OWNER, 10)
    bench.took()

    def answer(record: LoginRecord) -> None:
        if record.kind == CHECK:
            bench.owner.take(OWNER, record._replace(kind=CHECKED, what=0), 0.0)

    bench.on_own = answer
    bench.ask(2, 20, REJECT)
    assert bench.took() == [(OWNER, CHECK, 0), (2, ANSWER, 1)]


def test_a_holder_out_of_reach_is_not_asked_and_hears_what_was_decided(bench: Bench):
    bench.ask(2, 10)
    bench.took()
    bench.unreachable.add(2)
    bench.ask(3, 20, REJECT)
    assert bench.took() == [(3, ANSWER, 1), (2, TAKEN, 0)]
    assert not bench.owner.is_waiting


def test_a_holder_that_does_not_answer_gives_way_after_half_the_time(bench: Bench):
    bench.ask(2, 10)
    bench.ask(3, 20, REJECT, now=5.0)
    bench.took()
    assert bench.owner.is_waiting
    bench.owner.look(5.0 + TIMEOUT_S / 2 - 0.1)
    assert bench.took() == []
    bench.owner.look(5.0 + TIMEOUT_S / 2)
    assert bench.took() == [(3, ANSWER, 1), (2, TAKEN, 0)]
    assert not bench.owner.is_waiting


def test_nothing_is_decided_before_the_nodes_have_told_their_users(bench: Bench):
    bench.owner.await_nodes([2, 3], 0.0)
    bench.ask(3, 20, REJECT)
    bench.tell(2, LoginNews.BEGIN)
    bench.tell(2, LoginNews.HOLD, 10)
    bench.tell(2, LoginNews.END)
    assert (bench.took(), bench.completions) == ([], 0)
    assert bench.owner.is_waiting
    bench.tell(3, LoginNews.END)
    assert (bench.took(), bench.completions) == ([(2, CHECK, 0)], 1)


def test_nodes_that_tell_nothing_are_waited_for_in_turn_of_their_coming(bench: Bench):
    bench.owner.await_nodes([2], 0.0)
    bench.owner.linked(3, is_new_life=True, now=1.0)
    bench.ask(4, 20)
    bench.owner.look(TIMEOUT_S)
    assert (bench.took(), bench.completions) == ([], 0)
    bench.owner.look(1.0 + TIMEOUT_S)
    assert (bench.took(), bench.completions) == ([(4, ANSWER, 1)], 1)
    assert not bench.owner.is_waiting


@pytest.mark.parametrize("has_left", [True, False])
def test_a_node_that_left_or_began_another_life_has_no_users(bench: Bench, has_left: bool):
    bench.ask(2, 10)
    bench.took()
    if has_left:
        bench.owner.forget(2, 0.0)
    else:
        bench.owner.linked(2, is_new_life=True, now=0.0)
    assert bench.holder is None
    assert bench.owner.is_waiting == (not has_left)


def test_a_node_that_left_is_not_waited_for(bench: Bench):
    bench.owner.await_nodes([2], 0.0)
    bench.ask(3, 20)
    bench.owner.forget(2, 0.0)
    assert (bench.took(), bench.completions) == ([(3, ANSWER, 1)], 1)


def test_what_may_be_from_before_a_cut_counts_by_its_stamp_until_that_was_all(bench: Bench):
    bench.ask(2, 20)
    bench.owner.linked(3, is_new_life=False, now=0.0)
    bench.took()
    bench.ask(3, 10)
    assert bench.took() == [(3, ANSWER, 1), (3, TAKEN, 0)]
    bench.tell(3, LoginNews.END)
    bench.ask(3, 10)
    assert bench.took() == [(3, ANSWER, 1), (2, TAKEN, 0)]
    assert bench.holder is not None
    assert bench.holder[1:] == (3, 3)


def test_a_node_that_begins_life_after_life_is_waited_for_no_longer():
    bench = Bench()
    bench.owner.linked(2, True, 0.0)
    bench.ask(3, 10)
    for now in (0.5, 1.0, 1.5):
        bench.owner.linked(2, True, now)
        bench.owner.look(now)
    assert bench.given == []
    bench.owner.look(TIMEOUT_S)
    assert [node for node, _ in bench.given] == [3]
