"""A log takes a bounded number of lines, and tells how many there were beside them."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.log_limit import LogLimit


def test_so_many_lines_go_in_each_interval():
    limit = LogLimit(2, 10.0)
    assert [limit.admit(now) for now in (5.0, 6.0, 7.0, 14.9)] == [True, True, False, False]
    assert [limit.admit(now) for now in (15.0, 15.0, 24.9)] == [True, True, False]


def test_what_was_refused_is_told_once_when_the_interval_is_over():
    limit = LogLimit(1, 10.0)
    assert limit.take_refused(0.0) == 0
    for now in (0.0, 1.0, 2.0):
        limit.admit(now)
    assert limit.take_refused(9.9) == 0
    assert limit.take_refused(10.0) == 2
    assert limit.take_refused(10.0) == 0


def test_at_the_end_it_is_told_at_once():
    limit = LogLimit(1, 10.0)
    limit.admit(0.0)
    limit.admit(0.0)
    assert limit.take_refused(0.1, is_last=True) == 1
    assert limit.take_refused(0.1, is_last=True) == 0


@given(steps=st.lists(st.floats(0, 30), max_size=60), lines_max=st.integers(1, 5))
def test_every_line_is_admitted_or_told_of(steps: list[float], lines_max: int):
    limit = LogLimit(lines_max, 10.0)
    now, admitted, told = 0.0, 0, 0
    for step in steps:
        now += step
        told += limit.take_refused(now)
        admitted += limit.admit(now)
    assert admitted + told + limit.take_refused(now, is_last=True) == len(steps)
    assert admitted <= lines_max * (now // 10.0 + 1)
