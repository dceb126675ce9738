"""When functions of an application are due, by a clock that is a number."""

import random
from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import Any

import pytest

from cluster.worker.app_timers import AppTimers, Repeated


class Bench:
    """Timers that note what was called and when it was asked for."""

    def __init__(self) -> None:
        self.timers = AppTimers()
        self.ran: list[tuple[float, Any]] = []
        self.now = 0.0

    def note(self, what: Any) -> None:
        self.ran.append((self.now, what))

    def run(self, now: float) -> None:
        """Call what is due at `now`."""
        self.now = now
        newest = self.timers.newest()
        while (function := self.timers.take_due(now, newest)) is not None:
            function()

    def start(self, interval_s: float, now: float = 0.0) -> None:
        self.timers.start([Repeated(interval_s, lambda: self.note(interval_s))], now)


def test_a_call_is_made_once_when_its_time_has_come():
    bench = Bench()
    bench.timers.call_at(2.0, bench.note, "two")
    bench.run(1.999)
    assert bench.ran == []
    assert bench.timers.next_due() == 2.0
    bench.run(2.0)
    bench.run(3.0)
    assert bench.ran == [(2.0, "two")]
    assert bench.timers.next_due() is None


def test_calls_come_in_the_order_in_which_they_are_due_and_were_planned():
    bench = Bench()
    for due, name in ((3, "c"), (1, "a"), (2, "b1"), (2, "b2")):
        bench.timers.call_at(due, bench.note, name)
    bench.run(5)
    assert [name for _, name in bench.ran] == ["a", "b1", "b2", "c"]


def test_a_cancelled_call_is_not_made():
    bench = Bench()
    first = bench.timers.call_at(1, bench.note, "first")
    second = bench.timers.call_at(1, bench.note, "second")
    first.cancel()
    first.cancel()
    bench.run(1)
    second.cancel()  # too late, and harmless
    assert bench.ran == [(1, "second")]
    assert bench.timers.waiting == 0


def test_a_call_may_cancel_another_that_is_due_with_it():
    bench = Bench()
    bench.timers.call_at(1, lambda: other.cancel())
    other = bench.timers.call_at(1, bench.note, "other")
    bench.run(1)
    assert bench.ran == []


def test_what_is_planned_by_a_call_waits_for_the_next_turn():
    bench = Bench()

    def again() -> None:
        bench.note("again")
        bench.timers.call_at(bench.now, again)

    bench.timers.call_at(0, again)
    bench.run(1)
    assert len(bench.ran) == 1
    bench.run(1)
    assert len(bench.ran) == 2


def test_a_cancelled_call_holds_nothing_of_the_application():
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

        def method(self) -> None: ...

    timers = AppTimers()
    handle = timers.call_at(1, Held().method, Held())
    assert Held.alive == 2
    handle.cancel()
    assert Held.alive == 0


def test_the_number_of_calls_that_wait_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.worker.app_timers.TIMERS_MAX", 3)
    bench = Bench()
    handles = [bench.timers.call_at(1, bench.note, n) for n in range(3)]
    with pytest.raises(RuntimeError, match="3 calls wait for their time already"):
        bench.timers.call_at(1, bench.note, "too many")
    handles[0].cancel()
    bench.timers.call_at(1, bench.note, "in its place")
    bench.run(1)
    for n in range(3):
        bench.timers.call_at(2, bench.note, n)
    assert bench.timers.waiting == 3


def test_cancelled_calls_take_no_room_for_ever():
    """Timeouts that are nearly always cancelled are what most applications plan."""
    timers = AppTimers()
    for n in range(20_000):
        timers.call_at(n, print).cancel()
    assert timers.waiting == 0
    assert len(timers._timers) < 200


# -- series ----------------------------------------------------------------------------------------


def test_a_series_is_due_at_its_start_and_whole_intervals():
    bench = Bench()
    bench.start(0.5, now=10.0)
    assert bench.timers.next_due() == 10.5
    for now in (10.5, 11.0, 11.5):
        bench.run(now)
    assert bench.ran == [(10.5, 0.5), (11.0, 0.5), (11.5, 0.5)]


def test_a_series_does_not_drift():
    """Each call comes late by a while, as on any real loop; the thousandth is not later."""
    bench = Bench()
    bench.start(0.05)
    rng = random.Random(1)
    for n in range(1, 1_001):
        due = bench.timers.next_due()
        assert due is not None
        assert due == pytest.approx(n * 0.05, abs=1e-9)
        bench.run(due + rng.uniform(0.0, 0.04))
    assert len(bench.ran) == 1_000


@pytest.mark.parametrize(("late", "then"), [(1.9, 2.0), (2.0, 3.0), (7.5, 8.0), (1e6, 1e6 + 1)])
def test_what_was_missed_is_skipped_and_the_series_keeps_its_beat(late: float, then: float):
    bench = Bench()
    bench.start(1.0)
    bench.run(late)
    assert len(bench.ran) == 1
    assert bench.timers.next_due() == then


def test_a_call_of_a_series_that_raises_does_not_end_it():
    bench = Bench()

    def fail() -> None:
        bench.note("failed")
        raise ZeroDivisionError

    bench.timers.start([Repeated(1.0, fail)], 0.0)
    for now in (1.0, 2.0):
        with pytest.raises(ZeroDivisionError):
            bench.run(now)
    assert bench.timers.next_due() == 3.0


def test_a_turn_makes_one_call_of_a_series_however_long_each_takes():
    bench = Bench()

    def slow() -> None:
        bench.note("slow")
        bench.now += 5

    bench.timers.start([Repeated(1.0, slow)], 0.0)
    newest = bench.timers.newest()
    bench.now = 1.0
    while (function := bench.timers.take_due(bench.now, newest)) is not None:
        function()
    assert len(bench.ran) == 1


def test_a_call_that_awaits_is_not_begun_a_second_time_beside_itself():
    bench = Bench()
    awaiting: list[Any] = []

    class Pause:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def slow() -> None:
        bench.note("begun")
        await Pause()
        bench.note("done")

    def begin(now: float) -> None:
        """As the worker does: a coroutine takes its first step at once, and goes on later."""
        bench.now = now
        function = bench.timers.take_due(now, bench.timers.newest())
        assert function is not None
        result = function()
        if result is not None:
            result.send(None)
            awaiting.append(result)

    bench.timers.start([Repeated(1.0, slow)], 0.0)
    begin(1.0)
    begin(2.0)
    assert bench.ran == [(1.0, "begun")]
    with pytest.raises(StopIteration):
        awaiting[0].send(None)
    begin(3.0)
    assert bench.ran[1:] == [(2.0, "done"), (3.0, "begun")]
    # One that was cancelled is over as well.
    awaiting[1].close()
    begin(4.0)
    assert bench.ran[-1] == (4.0, "begun")
    awaiting[2].close()


def test_after_clear_nothing_is_due():
    bench = Bench()
    bench.start(1.0)
    handle = bench.timers.call_at(1, bench.note, "call")
    bench.timers.clear()
    bench.run(10)
    assert bench.ran == []
    assert bench.timers.next_due() is None
    handle.cancel()


def test_random_plans_are_kept():
    """Against a list that is sorted: nothing is lost, doubled, early, or out of order."""
    rng = random.Random(7)
    bench = Bench()
    planned: dict[int, float] = {}
    handles: dict[int, Callable[[], None]] = {}
    for n in range(3_000):
        action = rng.random()
        if action < 0.5:
            planned[n] = bench.now + rng.choice((0.0, 0.1, 0.1, rng.uniform(0, 3)))
            handles[n] = bench.timers.call_at(planned[n], partial(bench.note, n)).cancel
        elif action < 0.7 and planned:
            chosen = rng.choice(list(planned))
            handles.pop(chosen)()
            del planned[chosen]
        else:
            now = bench.now + rng.uniform(0, 0.5)
            expected = sorted((due, key) for key, due in planned.items() if due <= now)
            bench.ran.clear()
            bench.run(now)
            assert [key for _, key in bench.ran] == [key for _, key in expected]
            for _, key in expected:
                del planned[key]
        assert bench.timers.waiting == len(planned)
        first = min(planned.values(), default=inf)
        assert bench.timers.soonest <= first
        if n % 3 == 0:
            assert bench.timers.next_due() == (None if first == inf else first)
            assert bench.timers.soonest == first
