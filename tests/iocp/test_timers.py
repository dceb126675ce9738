"""Timers: each runs once, when it is due, in order; cancelled ones never and at no cost."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.timers import Timer, Timers

due_times = st.lists(st.integers(0, 50), max_size=40)


@given(due_times, st.lists(st.integers(0, 60), max_size=10), st.sets(st.integers(0, 39)))
def test_every_live_timer_runs_once_in_order_and_not_before_its_time(
    dues: list[int], looks: list[int], cancelled: set[int]
):
    timers = Timers()
    ran: list[tuple[int, int]] = []
    made = [timers.add(due, partial(ran.append, (due, n))) for n, due in enumerate(dues)]
    for n in cancelled:
        if n < len(made):
            made[n].cancel()
    live = sorted((due, n) for n, due in enumerate(dues) if n not in cancelled)
    for now in sorted(looks):
        before = len(ran)
        assert timers.run_due(now) == len(ran) - before
        assert ran == [entry for entry in live if entry[0] <= now]
        left = [due for due, _ in live if due > now]
        assert timers.next_due() == (left[0] if left else None)
    timers.run_due(100)
    assert ran == live
    assert timers.next_due() is None


def test_a_timer_that_a_callback_adds_waits_for_the_next_look():
    timers = Timers()
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        timers.add(1, lambda: ran.append("added"))

    timers.add(1, first)
    timers.add(1, lambda: ran.append("second"))
    assert timers.run_due(1) == 2
    assert ran == ["first", "second"]
    assert timers.run_due(1) == 1
    assert ran == ["first", "second", "added"]


def test_a_callback_may_cancel_one_that_is_due_at_the_same_time():
    timers = Timers()
    ran: list[str] = []
    timers.add(1, lambda: second.cancel())
    second = timers.add(1, lambda: ran.append("second"))
    timers.run_due(2)
    assert ran == []


def test_a_callback_may_cancel_everything():
    timers = Timers()
    ran: list[int] = []
    timers.add(1, timers.clear)
    for n in range(5):
        timers.add(1, partial(ran.append, n))
    timers.run_due(1)
    assert ran == []
    assert timers.next_due() is None


def test_a_callback_that_raises_leaves_the_others_due():
    timers = Timers()
    ran: list[int] = []

    def fail() -> None:
        # Enough of them that the heap is rebuilt while it is being run.
        for n in range(200):
            timers.add(10, partial(ran.append, n)).cancel()
        raise RuntimeError("boom")

    timers.add(1, fail)
    timers.add(2, lambda: ran.append(-1))
    timers.add(3, lambda: ran.append(-2))
    with pytest.raises(RuntimeError, match="boom"):
        timers.run_due(5)
    assert timers.next_due() == 2
    assert timers.run_due(5) == 2
    assert ran == [-1, -2]


def test_cancelled_timers_do_not_pile_up():
    timers = Timers()
    for n in range(10_000):
        timers.add(1_000 + n, lambda: None).cancel()
        assert len(timers) <= 200
    live = [timers.add(5, lambda: None) for _ in range(300)]
    for n in range(10_000):
        timers.add(1_000 + n, lambda: None).cancel()
    assert len(timers) <= 3 * len(live)
    assert timers.run_due(5) == len(live)


def test_adding_beside_many_live_timers_does_not_look_at_them_all_each_time():
    looks = 0

    class Counted(Timers):
        def _drop_cancelled(self) -> None:
            nonlocal looks
            looks += 1
            super()._drop_cancelled()

    counted = Counted()
    for n in range(1_023):
        counted.add(n, lambda: None)
    looks = 0
    for n in range(1_000):
        counted.add(2_000 + n, lambda: None)
        assert counted.run_due(n) == 1
    assert looks <= 1


def test_a_timer_may_be_cancelled_twice_and_after_it_ran():
    timers = Timers()
    ran: list[int] = []
    timer = timers.add(1, lambda: ran.append(1))
    timers.run_due(1)
    timer.cancel()
    timer.cancel()
    timers.run_due(2)
    assert ran == [1]


def test_a_timer_that_ran_or_was_cancelled_keeps_nothing_alive():
    timers = Timers()
    timer: Timer = timers.add(1, lambda: None)
    other = timers.add(2, lambda: None)
    timers.run_due(1)
    other.cancel()
    assert timer.callback is None
    assert other.callback is None
