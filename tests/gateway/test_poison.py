"""Which deaths count against a handler call, and when it is set aside."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.poison import DeathCount
from cluster.shared.lane import START, Commit
from cluster.shared.note import SEVERAL, HandlerCall

ONE, TWO = HandlerCall(5, 0), HandlerCall(5, 3)
RESUMED = HandlerCall(0, 0, 77)


def _died(count: DeathCount, *calls: HandlerCall | None) -> list[bool]:
    verdicts = []
    for call in calls:
        verdicts.append(count.died(call))
        count.check_invariants()
    return verdicts


def test_the_third_death_in_a_row_over_one_call_sets_it_aside():
    count = DeathCount(3)
    assert _died(count, ONE, ONE, ONE) == [False, False, True]
    assert count.suspects(START) == [(ONE, True)]


def test_from_the_first_death_on_a_call_is_suspect():
    count = DeathCount(3)
    assert count.suspects(START) == []
    _died(count, ONE)
    assert count.suspects(START) == [(ONE, False)]
    assert (count.suspect, count.deaths) == (ONE, 1)


def test_a_death_over_another_call_begins_a_new_count():
    count = DeathCount(3)
    assert not any(_died(count, ONE, ONE, TWO, ONE, ONE))
    assert count.deaths == 2
    assert count.suspects(START) == [(ONE, False)]


def test_a_death_with_nothing_in_hand_neither_counts_nor_acquits():
    count = DeathCount(3)
    assert _died(count, ONE, None, ONE, None, None, ONE) == [False] * 5 + [True]


def test_of_several_in_hand_the_first_is_suspect_and_that_death_alone_sets_nothing_aside():
    several = HandlerCall(5, SEVERAL)
    count = DeathCount(2)
    assert _died(count, several) == [False]
    assert count.suspects(START) == [(ONE, False)]
    assert _died(count, ONE) == [True]
    count = DeathCount(1)
    assert _died(count, several, TWO) == [False, True]
    assert count.suspects(START) == [(TWO, True)]


def test_a_resumption_that_came_back_in_a_later_life_is_acquitted():
    count = DeathCount(2)
    assert _died(count, RESUMED, None, RESUMED) == [False] * 3
    assert _died(count, RESUMED) == [True]


def test_a_resumption_is_in_no_record_that_a_successor_could_be_careful_with():
    count = DeathCount(2)
    _died(count, RESUMED)
    assert count.suspects(START) == []
    _died(count, RESUMED)
    assert count.suspects(START) == []
    assert _died(count, RESUMED, RESUMED) == [False, True], "a new session may be poison as well"


def test_what_the_commit_covers_is_forgotten():
    count = DeathCount(2)
    _died(count, ONE)
    assert count.suspects(Commit(5, 0)) == [(ONE, False)]
    assert count.suspects(Commit(5, 1)) == []
    assert _died(count, TWO, TWO) == [False, True]
    assert count.suspects(Commit(5, 3)) == [(TWO, True)]
    assert count.suspects(Commit(6, 0)) == []


def test_what_was_set_aside_stays_so_whatever_else_kills_before_it_is_committed():
    count = DeathCount(1)
    late, early = HandlerCall(9, 1), HandlerCall(8, 0)
    assert _died(count, late, early, late) == [True, True, False]
    assert count.suspects(START) == [(early, True), (late, True)]
    assert count.suspects(Commit(9, 0)) == [(late, True)]


def test_with_one_redelivery_the_first_death_is_enough():
    assert _died(DeathCount(1), ONE) == [True]


CALLS = [HandlerCall(position, index) for position in (1, 2) for index in (0, 1)]


@given(st.integers(1, 4), st.lists(st.sampled_from([None, RESUMED, *CALLS]), max_size=40))
def test_a_call_is_set_aside_once_after_deaths_in_a_row(
    limit: int, calls: list[HandlerCall | None]
):
    count = DeathCount(limit)
    in_a_row: list[HandlerCall] = []
    aside: list[HandlerCall] = []
    for call in calls:
        verdict = count.died(call)
        count.check_invariants()
        if call is None:
            in_a_row = [each for each in in_a_row if not each.is_resumption]
        elif call not in aside:
            in_a_row = [*in_a_row, call] if in_a_row[-1:] == [call] else [call]
        expected = call is not None and call not in aside and len(in_a_row) == limit
        assert verdict == expected
        if verdict and call is not None:
            in_a_row = []
            if not call.is_resumption:
                aside.append(call)
    assert [call for call, is_aside in count.suspects(START) if is_aside] == sorted(aside)
