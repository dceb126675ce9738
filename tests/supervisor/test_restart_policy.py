"""What follows from the deaths of a process, told as tables of lives."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.supervisor.restart_policy import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    FAILURES_MAX,
    FAILURES_WITHIN_S,
    STEADY_AFTER_S,
    GiveUp,
    Restart,
    RestartPolicy,
)


@dataclass(frozen=True)
class Life:
    """One life: how long it took to be ready, how long it was, whether it was of use."""

    ready_after_s: float | None = 0.0
    ready_for_s: float = 0.0
    proved: bool = False


USELESS = Life()
NEVER_READY = Life(ready_after_s=None, ready_for_s=1.0)
STEADY = Life(ready_for_s=STEADY_AFTER_S)
ALMOST_STEADY = Life(ready_for_s=STEADY_AFTER_S - 0.001)
PROVED = Life(proved=True)


class Process:
    """Lives lives under a policy and a clock of its own."""

    def __init__(self) -> None:
        self.policy = RestartPolicy()
        self.now = 1_000.0

    def live(self, life: Life) -> Restart | GiveUp:
        self.policy.life_started()
        if life.ready_after_s is not None:
            self.now += life.ready_after_s
            self.policy.life_ready(self.now)
        if life.proved:
            assert self.policy.life_proved() is False
        self.now += life.ready_for_s
        decision = self.policy.life_ended(self.now)
        self.policy.check_invariants()
        if isinstance(decision, Restart):
            self.now += decision.delay_s
        return decision

    def live_all(self, *lives: Life) -> list[float | None]:
        """Return the delay before each successor; None stands for giving up."""
        decisions = [self.live(life) for life in lives]
        return [each.delay_s if isinstance(each, Restart) else None for each in decisions]


SLOW = Life(ready_after_s=None, ready_for_s=16.0)

TABLE = {
    "a life that committed a record is succeeded at once": ([PROVED], [0.0]),
    "a life that stayed ready for 5 s is succeeded at once": ([STEADY], [0.0]),
    "a life that was not ready for quite 5 s is not": ([ALMOST_STEADY], [0.1]),
    "a life that never became ready is not, however long": (
        [Life(ready_after_s=None, ready_for_s=3_600.0)],
        [0.1],
    ),
    "useless lives wait twice as long each time": ([USELESS] * 4, [0.1, 0.2, 0.4, 0.8]),
    "the fifth useless life in a row is the last": (
        [USELESS, NEVER_READY, ALMOST_STEADY, USELESS, USELESS],
        [0.1, 0.2, 0.4, 0.8, None],
    ),
    "a proved life resets count and backoff": (
        [USELESS] * 4 + [PROVED] + [USELESS] * 5,
        [0.1, 0.2, 0.4, 0.8, 0.0, 0.1, 0.2, 0.4, 0.8, None],
    ),
    "a steady life resets count and backoff": (
        [USELESS] * 4 + [STEADY] + [USELESS] * 2,
        [0.1, 0.2, 0.4, 0.8, 0.0, 0.1, 0.2],
    ),
    "useless lives that take longer than a minute go on, at most 5 s apart": (
        [SLOW] * 9,
        pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]),
    ),
    "the last five count, quick or slow": (
        [SLOW] * 6 + [USELESS],
        pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, None]),
    ),
}


@pytest.mark.parametrize(("lives", "delays"), TABLE.values(), ids=TABLE.keys())
def test_what_follows_from_deaths(lives: list[Life], delays: list[float | None]) -> None:
    assert Process().live_all(*lives) == delays


def test_giving_up_tells_how_many_lives_within_how_long() -> None:
    process = Process()
    process.live_all(*[Life(ready_for_s=2.0)] * 4)
    decision = process.live(Life(ready_for_s=2.0))
    assert isinstance(decision, GiveUp)
    assert decision.lives == 5
    assert decision.within_s == pytest.approx(4 * 2.0 + 1.5)


def test_news_of_a_commit_that_comes_after_the_death_still_counts() -> None:
    process = Process()
    process.live_all(*[USELESS] * 4)
    assert process.policy.life_proved() is True
    assert process.policy.failures == 0
    assert process.live(USELESS) == Restart(BACKOFF_FIRST_S)


def test_a_life_that_was_stuck_is_as_long_as_it_worked() -> None:
    for worked_s, expected in ((0.0, 0.1), (STEADY_AFTER_S - 0.001, 0.1), (STEADY_AFTER_S, 0.0)):
        policy = RestartPolicy()
        policy.life_started()
        policy.life_ready(10.0)
        policy.life_stuck(10.0 + worked_s)
        policy.life_stuck(10.0 + worked_s + 60.0)
        assert policy.life_ended(10.0 + worked_s + 10.0) == Restart(expected)


def test_a_life_is_not_stuck_because_its_predecessor_was() -> None:
    policy = RestartPolicy()
    policy.life_started()
    policy.life_stuck(10.0)
    policy.life_ended(20.0)
    policy.life_stuck(20.0)
    policy.life_started()
    policy.life_ready(20.0)
    assert policy.life_ended(20.0 + STEADY_AFTER_S) == Restart(0.0)


def test_lives_that_are_stuck_from_the_start_are_given_up() -> None:
    policy = RestartPolicy()
    decisions: list[Restart | GiveUp] = []
    for life in range(FAILURES_MAX):
        policy.life_started()
        policy.life_ready(10.0 * life)
        policy.life_stuck(10.0 * life)
        decisions.append(policy.life_ended(10.0 * life + 9.0))
    assert decisions[-1] == GiveUp(FAILURES_MAX, 40.0)


def test_ready_told_twice_counts_from_the_first_time() -> None:
    policy = RestartPolicy()
    policy.life_started()
    policy.life_ready(10.0)
    policy.life_ready(14.0)
    assert policy.life_ended(10.0 + STEADY_AFTER_S) == Restart(0.0)


def test_a_life_does_not_inherit_the_proof_of_its_predecessor() -> None:
    assert Process().live_all(PROVED, USELESS) == [0.0, 0.1]


@given(
    st.lists(
        st.builds(
            Life,
            ready_after_s=st.none() | st.floats(0, 100),
            ready_for_s=st.floats(0, 100),
            proved=st.booleans(),
        ),
        max_size=40,
    )
)
def test_delays_and_giving_up_keep_the_rule_for_any_lives(lives: list[Life]) -> None:
    process = Process()
    useless_deaths: list[float] = []
    delay_s = BACKOFF_FIRST_S
    for life in lives:
        decision = process.live(life)
        died_at = process.now - (decision.delay_s if isinstance(decision, Restart) else 0.0)
        # The policy subtracts times of a clock; only clear cases can be told by durations.
        steady = life.ready_after_s is not None and life.ready_for_s >= STEADY_AFTER_S
        if abs(life.ready_for_s - STEADY_AFTER_S) < 1e-6 and not life.proved:
            return
        if life.proved or steady:
            assert decision == Restart(0.0)
            useless_deaths, delay_s = [], BACKOFF_FIRST_S
            continue
        useless_deaths.append(died_at)
        last = useless_deaths[-FAILURES_MAX:]
        if abs(last[-1] - last[0] - FAILURES_WITHIN_S) < 1e-6:
            return
        if len(last) == FAILURES_MAX and last[-1] - last[0] <= FAILURES_WITHIN_S:
            assert isinstance(decision, GiveUp)
            return
        assert decision == Restart(delay_s)
        delay_s = min(2 * delay_s, BACKOFF_MAX_S)


def test_what_is_forgiven_counts_no_more():
    policy = RestartPolicy()
    for _ in range(FAILURES_MAX - 1):
        policy.life_started()
        policy.life_ended(100.0)
    policy.forgive()
    policy.check_invariants()
    policy.life_started()
    assert policy.life_ended(100.0) == Restart(BACKOFF_FIRST_S)
