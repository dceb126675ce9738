"""How far a node is, and with which exit code it ends."""

from math import inf

import pytest

from cluster.supervisor.course import (
    EXIT_CANNOT_START,
    EXIT_DRAINED,
    EXIT_GAVE_UP,
    EXIT_NOT_DRAINED,
    Course,
    Phase,
)


def test_a_node_starts_serves_and_drains():
    course = Course()
    assert (course.phase, course.exit_code) == (Phase.STARTING, None)
    assert course.drain_due == float("inf")
    course.became_ready()
    assert course.phase is Phase.SERVING
    course.begin_drain(12.5)
    assert (course.phase, course.drain_due, course.exit_code) == (Phase.DRAINING, 12.5, None)


def test_the_first_reason_to_end_is_the_one_that_counts():
    course = Course()
    course.finish(EXIT_CANNOT_START)
    course.give_up()
    course.finish_drain()
    assert course.exit_code == EXIT_CANNOT_START


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_process_that_is_given_up_ends_the_node(is_ready: bool):
    course = Course()
    if is_ready:
        course.became_ready()
    course.give_up()
    assert course.exit_code == EXIT_GAVE_UP


def test_processes_have_their_time_from_the_moment_of_which_it_is_first_told_that_all_is_done():
    course = Course(leave_within_s=3.0)
    course.became_ready()
    course.begin_drain(60.0)
    assert not course.is_drained
    course.drained(10.0)
    course.drained(11.0)
    assert (course.is_drained, course.leave_due) == (True, 13.0)


def test_a_gateway_that_drained_unasked_leaves_nothing_to_its_successor():
    course = Course(leave_within_s=3.0)
    course.became_ready()
    course.drained(10.0)
    course.goes_on()
    assert (course.is_drained, course.leave_due) == (False, inf)


@pytest.mark.parametrize("is_drained", [False, True])
def test_one_that_is_given_up_in_a_drain_leaves_the_others_their_time(is_drained: bool):
    course = Course()
    course.begin_drain(1.0)
    course.give_up()
    assert course.exit_code is None
    course.is_drained = is_drained
    course.finish_drain()
    assert course.exit_code == EXIT_GAVE_UP


@pytest.mark.parametrize(
    ("is_drained", "exit_code"), [(False, EXIT_NOT_DRAINED), (True, EXIT_DRAINED)]
)
def test_a_drain_ends_by_what_the_gateway_told(is_drained: bool, exit_code: int):
    course = Course()
    course.begin_drain(1.0)
    course.is_drained = is_drained
    course.finish_drain()
    assert course.exit_code == exit_code
