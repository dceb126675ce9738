"""The phases of a drain: what leads from one to the next, and that time ends each."""

import itertools
from typing import Any

import pytest

from cluster.gateway.drain import DrainPhase, finishing_s, leaving_s, next_drain_phase

SERVING, LEAVING, FINISHING = DrainPhase.SERVING, DrainPhase.LEAVING, DrainPhase.FINISHING
CLOSING, DRAINED = DrainPhase.CLOSING, DrainPhase.DRAINED


def following(phase: DrainPhase, **left: Any) -> DrainPhase:
    """Return what follows `phase` if nothing is left to do but for `left`."""
    nothing_left = {
        "kept_count": 0,
        "owns_keys": False,
        "is_answered": True,
        "is_committed": True,
        "session_count": 0,
        "is_told": True,
        "closes_anyway": False,
        "is_late": False,
    }
    return next_drain_phase(phase, **{**nothing_left, **left})


@pytest.mark.parametrize(
    ("phase", "kept_count", "is_committed", "session_count", "is_told", "follows"),
    [
        (LEAVING, 2, True, 3, True, LEAVING),  # two are the application's to let go
        (LEAVING, 0, False, 3, True, FINISHING),
        (FINISHING, 0, False, 3, True, FINISHING),
        (FINISHING, 0, False, 0, True, FINISHING),
        (FINISHING, 0, True, 3, True, CLOSING),
        (FINISHING, 0, True, 0, False, CLOSING),
        (CLOSING, 0, False, 0, True, CLOSING),  # a worker has not heard of the last end yet
        (CLOSING, 0, True, 1, True, CLOSING),
        (CLOSING, 0, True, 0, False, CLOSING),  # another node has not had all that is for it
        (CLOSING, 0, True, 0, True, DRAINED),
        (DRAINED, 0, True, 0, True, DRAINED),
    ],
)
def test_each_phase_ends_when_its_work_is_done(
    phase: DrainPhase,
    kept_count: int,
    is_committed: bool,
    session_count: int,
    is_told: bool,
    follows: DrainPhase,
):
    found = following(
        phase,
        kept_count=kept_count,
        is_answered=is_committed,
        is_committed=is_committed,
        session_count=session_count,
        is_told=is_told,
    )
    assert found is follows


@pytest.mark.parametrize("phase", [LEAVING, FINISHING, CLOSING, DRAINED])
def test_when_the_time_is_up_whatever_is_left_stays_undone(phase: DrainPhase):
    for is_committed, session_count in itertools.product((False, True), (0, 5)):
        found = following(
            phase,
            kept_count=3,
            is_answered=is_committed,
            is_committed=is_committed,
            session_count=session_count,
            is_told=False,
            is_late=True,
        )
        assert found is DRAINED


def test_who_was_not_asked_to_drain_serves_on():
    for is_committed, session_count, is_late in itertools.product(
        (False, True), (0, 5), (False, True)
    ):
        found = following(
            SERVING,
            is_answered=is_committed,
            is_committed=is_committed,
            session_count=session_count,
            is_late=is_late,
        )
        assert found is SERVING


def test_sessions_are_ended_while_there_is_time_for_it_whatever_workers_have_not_done():
    left = {"is_answered": False, "is_committed": False, "closes_anyway": True}
    assert following(FINISHING, **left) is CLOSING
    assert following(CLOSING, **left) is CLOSING
    assert finishing_s(10.0) == 9.0
    assert finishing_s(4.0) == 3.5
    assert finishing_s(0.0) == 0.0
    assert all(leaving_s(each) <= finishing_s(each) for each in (0.0, 0.5, 4.0, 8.0, 60.0))


def test_an_application_has_most_of_the_time():
    assert leaving_s(10.0) == 8.0
    assert leaving_s(60.0) == 58.0
    assert leaving_s(2.0) == 1.5
    assert leaving_s(0.0) == 0.0


def test_a_call_about_the_drain_that_goes_on_lets_sessions_be_ended_and_is_waited_for():
    for phase, follows in ((FINISHING, CLOSING), (CLOSING, CLOSING)):
        found = following(phase, is_committed=False)
        assert found is follows


def test_a_node_that_gives_its_keys_away_finishes_when_it_has_heard_that_they_are():
    for kept_count, owns_keys in itertools.product((0, 1), (False, True)):
        found = following(LEAVING, kept_count=kept_count, owns_keys=owns_keys)
        assert found is (LEAVING if kept_count or owns_keys else FINISHING)
