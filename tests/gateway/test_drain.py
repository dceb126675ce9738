"""The phases of a drain: what leads from one to the next, and that time ends each."""

import itertools

import pytest

from cluster.gateway.drain import DrainPhase, next_drain_phase

SERVING, FINISHING = DrainPhase.SERVING, DrainPhase.FINISHING
CLOSING, DRAINED = DrainPhase.CLOSING, DrainPhase.DRAINED


@pytest.mark.parametrize(
    ("phase", "is_committed", "session_count", "is_told", "follows"),
    [
        (FINISHING, False, 3, True, FINISHING),
        (FINISHING, False, 0, True, FINISHING),
        (FINISHING, True, 3, True, CLOSING),
        (FINISHING, True, 0, False, CLOSING),
        (CLOSING, False, 0, True, CLOSING),  # a worker has not heard of the last end yet
        (CLOSING, True, 1, True, CLOSING),
        (CLOSING, True, 0, False, CLOSING),  # another node has not had all that is for it
        (CLOSING, True, 0, True, DRAINED),
        (DRAINED, True, 0, True, DRAINED),
    ],
)
def test_each_phase_ends_when_its_work_is_done(
    phase: DrainPhase, is_committed: bool, session_count: int, is_told: bool, follows: DrainPhase
):
    found = next_drain_phase(
        phase,
        is_committed=is_committed,
        session_count=session_count,
        is_told=is_told,
        is_late=False,
    )
    assert found is follows


@pytest.mark.parametrize("phase", [FINISHING, CLOSING, DRAINED])
def test_when_the_time_is_up_whatever_is_left_stays_undone(phase: DrainPhase):
    for is_committed, session_count in itertools.product((False, True), (0, 5)):
        found = next_drain_phase(
            phase,
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
        found = next_drain_phase(
            SERVING,
            is_committed=is_committed,
            session_count=session_count,
            is_told=True,
            is_late=is_late,
        )
        assert found is SERVING
