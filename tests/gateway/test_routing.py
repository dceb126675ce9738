"""A new session goes to the shard with the fewest, or to the next one, of those with a worker."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.routing import FewestSessions, RoundRobin, make_routing
from cluster.shared.config import RoutingChoice


def test_sessions_spread_evenly():
    routing = FewestSessions(3)
    chosen = [routing.choose([True] * 3) for _ in range(9)]
    assert chosen == [0, 1, 2] * 3
    assert routing.counts == [3, 3, 3]


def test_a_shard_without_a_worker_is_passed_over():
    routing = FewestSessions(3)
    assert [routing.choose([False, True, True]) for _ in range(4)] == [1, 2, 1, 2]


def test_with_no_worker_at_all_sessions_wait_evenly():
    routing = FewestSessions(2)
    assert [routing.choose([False, False]) for _ in range(4)] == [0, 1, 0, 1]


def test_a_shard_that_lost_sessions_is_filled_up_first():
    routing = FewestSessions(2)
    for _ in range(6):
        routing.choose([True, True])
    for _ in range(2):
        routing.release(1)
    assert [routing.choose([True, True]) for _ in range(3)] == [1, 1, 0]


@given(
    shard_count=st.integers(1, 5),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 31)), max_size=60),
)
def test_the_choice_is_served_if_any_is_and_has_the_fewest_sessions(
    shard_count: int, steps: list[tuple[bool, int, int]]
):
    routing = FewestSessions(shard_count)
    sessions: list[int] = []
    for opens, which, mask in steps:
        if opens or not sessions:
            served = [bool(mask >> index & 1) for index in range(shard_count)]
            before = list(routing.counts)
            chosen = routing.choose(served)
            rivals = [i for i in range(shard_count) if served[i]] or list(range(shard_count))
            assert chosen in rivals
            assert before[chosen] == min(before[i] for i in rivals)
            sessions.append(chosen)
        else:
            routing.release(sessions.pop(which % len(sessions)))
        assert routing.counts == [sessions.count(index) for index in range(shard_count)]


def test_by_turns_each_shard_gets_the_next_session():
    routing = RoundRobin(3)
    assert [routing.choose([True] * 3) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert routing.counts == [3, 2, 2]


def test_by_turns_a_shard_that_lost_its_sessions_gets_no_more_than_its_turn():
    routing = RoundRobin(2)
    for _ in range(4):
        routing.choose([True, True])
    for _ in range(2):
        routing.release(0)
    assert [routing.choose([True, True]) for _ in range(4)] == [0, 1, 0, 1]


def test_by_turns_a_shard_without_a_worker_loses_its_turn():
    routing = RoundRobin(3)
    assert [routing.choose([True, False, True]) for _ in range(4)] == [0, 2, 0, 2]
    assert routing.choose([True, True, True]) == 0
    assert [routing.choose([False] * 3) for _ in range(3)] == [1, 2, 0]


@given(
    shard_count=st.integers(1, 5),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 31)), max_size=60),
)
def test_by_turns_the_choice_is_served_if_any_is_and_no_served_shard_waits_two_rounds(
    shard_count: int, steps: list[tuple[bool, int, int]]
):
    routing = RoundRobin(shard_count)
    sessions: list[int] = []
    passed_over = [0] * shard_count
    for opens, which, mask in steps:
        if opens or not sessions:
            served = [bool(mask >> index & 1) for index in range(shard_count)]
            chosen = routing.choose(served)
            assert served[chosen] or not any(served)
            sessions.append(chosen)
            for index in range(shard_count):
                # How often it could have been chosen since it last was, or could not.
                waits = index != chosen and (served[index] or not any(served))
                passed_over[index] = passed_over[index] + 1 if waits else 0
            assert max(passed_over) < shard_count
        else:
            routing.release(sessions.pop(which % len(sessions)))
        assert routing.counts == [sessions.count(index) for index in range(shard_count)]


@pytest.mark.parametrize(
    ("name", "kind"), [("fewest_sessions", FewestSessions), ("round_robin", RoundRobin)]
)
def test_each_choice_of_the_configuration_is_a_routing(name: RoutingChoice, kind: type):
    assert type(make_routing(name, 2)) is kind
    assert name in typing.get_args(RoutingChoice)


def test_no_choice_of_the_configuration_is_without_a_routing():
    for name in typing.get_args(RoutingChoice):
        assert make_routing(name, 3).counts == [0, 0, 0]
