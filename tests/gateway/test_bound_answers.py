"""Which answers to binds go into the lane: one that the worker has not heard, of each session."""

from typing import Any

import pytest

from cluster.gateway import bound_answers
from cluster.gateway.bound_answers import BoundAnswers

ANN: Any = object()
BOB: Any = object()


def test_one_is_in_the_lane_and_the_last_one_waits_for_its_commit():
    answers = BoundAnswers()
    assert answers.add(ANN, b"1")
    answers.put(ANN, 5)
    assert [answers.add(ANN, answer) for answer in (b"2", b"3")] == [False, False]
    assert answers.add(BOB, b"1")
    answers.put(BOB, 6)
    answers.check_invariants()
    assert answers.committed(ANN) == b"3"
    assert answers.committed(BOB) is None
    assert answers.is_empty


def test_who_has_heard_it_ahead_is_told_the_next():
    answers = BoundAnswers()
    answers.add(ANN, b"1")
    answers.put(ANN, 5)
    answers.add(ANN, b"2")
    assert answers.heard(4) == []
    assert answers.heard(5) == [(ANN, b"2")]
    assert answers.add(ANN, b"2")
    answers.put(ANN, 8)
    assert not answers.add(ANN, b"3")
    assert answers.heard(8) == [(ANN, b"3")]
    assert answers.add(ANN, b"3")
    answers.put(ANN, 9)
    answers.check_invariants()
    assert not answers.add(ANN, b"4")
    assert [answers.committed(ANN) for _ in range(3)] == [None, None, b"4"]
    assert answers.is_empty
    answers.check_invariants()


def test_an_answer_that_comes_when_all_before_it_was_heard_goes_in_at_once():
    answers = BoundAnswers()
    answers.add(ANN, b"1")
    answers.put(ANN, 5)
    assert answers.heard(7) == []
    assert answers.add(ANN, b"2")
    answers.put(ANN, 8)
    assert not answers.add(ANN, b"3")


def test_what_goes_in_ahead_of_commits_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bound_answers, "AHEAD_MAX", 2)
    answers = BoundAnswers()
    position = 0
    for session in (ANN, BOB):
        answers.add(session, b"1")
        answers.put(session, position := position + 1)
    answers.heard(1_000)
    for _ in range(2):
        assert answers.add(ANN, b"ahead")
        answers.put(ANN, position := position + 1)
    assert not answers.add(ANN, b"waits")
    assert not answers.add(BOB, b"waits")
    answers.check_invariants()
    assert answers.committed(ANN) is None
    assert not answers.add(ANN, b"in place of the one that waits")
    assert [answers.committed(ANN), answers.committed(ANN)] == [
        None,
        b"in place of the one that waits",
    ]
    assert answers.committed(BOB) == b"waits"
    assert answers.is_empty
