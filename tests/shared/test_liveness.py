"""Signs of life: silence, and standing still behind what was sent, each count as a death."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.liveness import Liveness

TIMEOUT_S = 2.0


def test_a_peer_has_the_whole_timeout_for_its_first_sign():
    liveness = Liveness(TIMEOUT_S, 100.0)
    for now in (100.0, 100.9, 101.8):
        assert liveness.verdict(now) is None
    assert liveness.verdict(102.0) == "no heartbeat for 2.0 s"


def test_every_sign_begins_the_timeout_anew():
    liveness = Liveness(TIMEOUT_S, 0.0)
    for now in range(1, 10):
        liveness.heard(now, (0,), is_behind=False)
        assert liveness.verdict(now + 0.9) is None
    assert liveness.verdict(10.8) is None
    assert liveness.verdict(11.0) is not None


def test_a_verdict_is_taken_back_by_a_late_sign():
    """Whoever was asleep itself reads what has come before it asks again."""
    liveness = Liveness(TIMEOUT_S, 0.0)
    assert liveness.verdict(TIMEOUT_S / 2) is None
    assert liveness.verdict(TIMEOUT_S) is not None
    liveness.heard(5.0, (0,), is_behind=False)
    assert liveness.verdict(5.0) is None


def test_of_a_time_in_which_nobody_looked_half_the_timeout_counts():
    """A machine that stood still kills nobody; who is silent behind that is lost all the same."""
    liveness = Liveness(TIMEOUT_S, 0.0)
    assert liveness.verdict(1_000.0) is None
    assert liveness.verdict(1_000.9) is None
    assert liveness.verdict(1_001.0) == "no heartbeat for 2.0 s"


@given(st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.floats(0.0, 3 * TIMEOUT_S))
def test_who_beats_is_not_lost_however_long_all_stood_still(
    heard: float, look: float, pause: float
):
    """Also where it is silent for longer than the timeout, and was looked at for less."""
    liveness = Liveness(TIMEOUT_S, 0.0)
    liveness.heard(heard, (0,), is_behind=False)
    assert liveness.verdict(heard + look) is None
    assert liveness.verdict(heard + look + pause) is None


def test_of_a_time_in_which_nobody_looked_nobody_made_progress():
    liveness = Liveness(TIMEOUT_S, 0.0)
    for now in (0.0, 0.5, 1_000.0, 1_000.5):
        liveness.heard(now, (1,), is_behind=True)
        assert liveness.verdict(now) is None
    liveness.heard(1_001.5, (1,), is_behind=True)
    reason = liveness.verdict(1_001.5)
    assert reason is not None
    assert "no progress" in reason


def test_who_always_looks_late_finds_the_dead_at_the_second_look():
    liveness = Liveness(TIMEOUT_S, 0.0)
    assert liveness.verdict(100.0) is None
    assert liveness.verdict(200.0) is not None


def test_a_peer_that_stays_behind_without_progress_is_lost():
    liveness = Liveness(TIMEOUT_S, 0.0)
    for now in (0.5, 1.0, 1.5, 2.0, 2.4):
        liveness.heard(now, (7, 3), is_behind=True)
        assert liveness.verdict(now) is None
    liveness.heard(3.0, (7, 3), is_behind=True)
    reason = liveness.verdict(3.0)
    assert reason is not None
    assert "no progress" in reason


def test_any_progress_is_progress():
    liveness = Liveness(TIMEOUT_S, 0.0)
    for now in range(1, 20):
        progress = (now, 0) if now % 2 else (now - 1, 1)  # one or the other direction
        liveness.heard(now, progress, is_behind=True)
        assert liveness.verdict(now) is None


def test_a_peer_that_caught_up_may_fall_behind_again():
    liveness = Liveness(TIMEOUT_S, 0.0)
    for start in (0.0, 10.0, 20.0):
        for now in (start, start + 0.5, start + 1.4):
            liveness.heard(now, (1,), is_behind=True)
            assert liveness.verdict(now) is None
        liveness.heard(start + 1.9, (1,), is_behind=False)
        assert liveness.verdict(start + 3.0) is None
        liveness.heard(start + 9.0, (1,), is_behind=False)


PAUSES = st.lists(st.floats(0.01, TIMEOUT_S / 2), min_size=1, max_size=30)


@given(PAUSES, st.randoms(use_true_random=False))
def test_whoever_is_heard_and_never_stands_still_is_never_lost(pauses: list[float], rng):
    liveness, now, progress = Liveness(TIMEOUT_S, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        assert liveness.verdict(now) is None
        is_behind = rng.random() < 0.7
        progress += is_behind
        liveness.heard(now, (progress,), is_behind)
        assert liveness.verdict(now) is None


@given(PAUSES)
def test_whoever_stands_still_is_lost_once_that_was_seen_for_the_timeout(pauses: list[float]):
    liveness, now = Liveness(TIMEOUT_S, 0.0), 0.0
    liveness.heard(now, (1,), is_behind=True)
    first_repeat = None
    for pause in pauses:
        now += pause
        liveness.heard(now, (1,), is_behind=True)
        first_repeat = now if first_repeat is None else first_repeat
        assert (liveness.verdict(now) is not None) == (now - first_repeat >= TIMEOUT_S)
