"""The wheel: every entry is looked at once its time has come, never before, and late by a tick."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp.timer_wheel import TimerWheel


class Entry:
    def __init__(self, name: int = 0) -> None:
        self.name = name
        self.wheel_tick = 0
        self.due: float | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.name} due {self.due}>"


class Looks:
    """Notes who is looked at and when, and ends those whose time is up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[tuple[float, Entry]] = []
        self.ended: list[tuple[float, Entry]] = []

    def __call__(self, entry: Entry) -> float | None:
        self.seen.append((self.now, entry))
        if entry.due is not None and entry.due <= self.now:
            self.ended.append((self.now, entry))
            return None
        return entry.due


def never(entry: Entry) -> float | None:
    raise AssertionError(f"{entry} was looked at")


TICKS = st.sampled_from([0.01, 0.5, 1.0, 3.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 7), st.floats(0, 60)),
        st.tuples(st.just("move"), st.integers(0, 7), st.floats(0, 60)),
        st.tuples(st.just("remove"), st.integers(0, 7), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0, 40)),
    ),
    max_size=60,
)


@given(STEPS, TICKS, st.sampled_from([2, 8, 256]), st.integers(1, 20))
def test_what_is_due_is_ended_in_time_and_what_moved_on_is_left(
    steps: list[tuple[str, int, float]], tick_s: float, slots: int, looks_max: int
):
    looks = Looks()
    wheel: TimerWheel[Entry] = TimerWheel(tick_s, slots, 0.0)
    entries = [Entry(n) for n in range(8)]
    live: set[Entry] = set()
    for what, number, amount in steps:
        entry = entries[number]
        if what == "add":
            if entry in live:  # a deadline that comes nearer is told
                entry.due = min(entry.due or math.inf, looks.now + amount)
            else:
                entry.due = looks.now + amount
            live.add(entry)
            assert wheel.add(entry, entry.due) <= entry.due + tick_s + 1e-6 or amount == 0
        elif what == "move" and entry in live:  # and one that moves away is not
            assert entry.due is not None
            entry.due += amount
        elif what == "remove":
            wheel.remove(entry)
            live.discard(entry)
        elif what == "pass":
            looks.now += amount
            while True:
                before = len(looks.seen)
                wheel.advance(looks.now, looks, looks_max)
                assert len(looks.seen) - before <= looks_max
                due = wheel.next_due()
                if due is None or due > looks.now:
                    break
        for _, ended in looks.ended:
            live.discard(ended)
        for now, ended in looks.ended:
            assert ended.due is not None
            assert ended.due <= now
        looks.ended.clear()
        wheel.check_invariants()
        assert len(wheel) == len(live)
        if what == "pass":
            # Nobody is left who should have been ended a tick ago.
            assert all(each.due is not None and each.due > looks.now - tick_s for each in live)
    assert (wheel.next_due() is None) == (not live)


def test_an_active_entry_is_looked_at_once_for_each_of_its_periods():
    looks = Looks()
    wheel: TimerWheel[Entry] = TimerWheel(0.1, 256, 0.0)
    entry = Entry()
    entry.due = 10.0
    wheel.add(entry, 10.0)
    while looks.now < 100.0:
        looks.now += 0.05
        entry.due = looks.now + 10.0  # something comes all the time
        wheel.advance(looks.now, looks, 10)
    assert 9 <= len(looks.seen) <= 10
    assert not looks.ended


def test_a_deadline_beyond_the_wheel_takes_a_look_a_round():
    looks = Looks()
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    entry = Entry()
    entry.due = 100.0
    wheel.add(entry, entry.due)
    while not looks.ended:
        due = wheel.next_due()
        assert due is not None
        looks.now = due
        wheel.advance(due, looks, 10)
    assert looks.ended == [(100.0, entry)]
    assert len(looks.seen) <= 100 / 7 + 2


def test_what_is_to_be_looked_at_earlier_already_stays_there():
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    entry = Entry()
    assert wheel.add(entry, 2.0) == 2.0
    assert wheel.add(entry, 5.0) == 2.0
    assert wheel.next_due() == 2.0
    assert wheel.add(entry, 1.0) == 1.0
    assert wheel.next_due() == 1.0
    assert len(wheel) == 1


def test_a_long_sleep_looks_at_each_entry_once():
    looks = Looks()
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    entries = [Entry(n) for n in range(20)]
    for entry in entries:
        entry.due = 1.0 + entry.name
        wheel.add(entry, entry.due)
    looks.now = 1_000.0
    wheel.advance(1_000.0, looks, 100)
    assert sorted(entry.name for _, entry in looks.ended) == list(range(20))
    assert len(wheel) == 0
    assert wheel.next_due() is None


@pytest.mark.parametrize("again", [False, True])
def test_what_a_look_removes_is_not_looked_at_itself(again: bool):
    """Also when it is put in again for something else, as an object that serves again is."""
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    first, second = Entry(1), Entry(2)
    wheel.add(first, 1.0)
    wheel.add(second, 1.0)
    seen: list[Entry] = []

    def look(entry: Entry) -> float | None:
        seen.append(entry)
        if entry is first:
            wheel.remove(second)
            if again:
                wheel.add(second, 2.0)
        return None

    wheel.advance(1.0, look, 10)
    assert seen == [first]
    wheel.check_invariants()
    wheel.advance(1.9, never, 10)
    wheel.advance(2.0, look, 10)
    assert seen == [first, second] if again else [first]


def test_what_a_turn_has_no_time_for_comes_first_in_the_next():
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    entries = [Entry(n) for n in range(10)]
    for entry in entries:
        wheel.add(entry, 1.0)
    seen: list[int] = []
    look: Callable[[Entry], None] = lambda entry: seen.append(entry.name)  # noqa: E731
    wheel.advance(1.0, look, 4)
    assert len(seen) == 4
    assert len(wheel) == 6
    due = wheel.next_due()
    assert due is not None
    assert due <= 1.0
    wheel.advance(1.0, look, 4)
    wheel.advance(1.0, look, 4)
    assert seen == list(range(10))
    assert wheel.next_due() is None


def test_a_turn_ends_early_when_it_is_enough():
    wheel: TimerWheel[Entry] = TimerWheel(1.0, 8, 0.0)
    for n in range(10):
        wheel.add(Entry(n), 1.0)
    seen: list[int] = []

    def look(entry: Entry) -> float | None:
        seen.append(entry.name)
        return 2.0 if entry.name % 2 else None

    wheel.advance(1.0, look, 10, lambda: seen[-1] == 2)
    assert seen == [0, 1, 2]
    wheel.advance(1.0, look, 4, lambda: seen[-1] == 8)
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    wheel.advance(1.0, look, 10)
    assert seen == list(range(10))
    assert len(wheel) == 5
    assert wheel.next_due() == 2.0
