"""The places where processes wait, and who of them is taken."""

import pytest

from cluster.supervisor.spare import REFILL_AFTER_S, Spare
from cluster.supervisor.spares import Spares
from tests.supervisor.fake_child import fake_child, process_of


def fill(spare: Spare, now: float = 0.0, *, version: int = 0, is_ready: bool = True) -> Spare:
    spare.started(fake_child(version), now)
    if is_ready:
        spare.became_ready(now)
    return spare


def test_the_one_that_is_ready_is_taken_else_the_one_that_was_started_first():
    spares = Spares(4)
    assert spares.choose() is None
    empty, late, early, ready = spares.lasting
    fill(late, 102.0, is_ready=False)
    fill(early, 101.0, is_ready=False)
    assert spares.choose() is early
    fill(ready, 103.0)
    assert spares.choose() is ready
    assert not spares.are_ready
    assert empty.child is None


def test_one_of_the_latest_version_is_taken_first_among_those_that_are_ready():
    spares = Spares(2)
    old, new = spares.lasting
    fill(old)
    fill(new, version=1)
    fill(spares.add_candidate(), version=2, is_ready=False)
    assert spares.are_ready
    assert spares.choose() is new
    spares.retire(new)
    assert spares.choose() is old


def test_a_spare_leaves_a_place_and_a_candidate_none():
    spares = Spares(1)
    (spare,) = spares.lasting
    candidate = fill(spares.add_candidate())
    fill(spare)
    assert list(spares) == [spare, candidate]
    spares.take(spare, 5.0)
    spares.take(candidate, 5.0)
    assert list(spares) == [spare]
    assert spare.restart_due == 5.0 + REFILL_AFTER_S


def test_one_that_is_retired_leaves_a_place_that_is_filled_when_it_is_gone():
    spares = Spares(1)
    (spare,) = spares.lasting
    candidate, never_started = fill(spares.add_candidate()), spares.add_candidate()
    for each in (fill(spare), candidate, never_started):
        spares.retire(each)
    assert process_of(spare.child).was_killed
    assert list(spares) == [spare, candidate]
    for each in (spare, candidate):
        spares.retired(each, 5.0)
    assert list(spares) == [spare]
    assert spare.restart_due == 5.0


@pytest.mark.parametrize("how", ["taken", "retired"])
def test_a_node_that_is_about_to_end_fills_no_places(how: str):
    spares = Spares(2)
    there, due = spares.lasting
    fill(there)
    fill(due)
    spares.take(due, 4.0)
    spares.refill_no_more()
    if how == "taken":
        spares.take(there, 5.0)
    else:
        spares.retire(there)
        spares.retired(there, 5.0)
    assert (there.restart_due, due.restart_due) == (None, None)


def test_while_places_are_held_candidates_are_started_alone():
    spares = Spares(1)
    candidate = spares.add_candidate()
    assert spares.fillable == [*spares.lasting, candidate]
    spares.holds = True
    assert spares.fillable == [candidate]
