"""The bucket of one number does what a bucket of tokens does."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.rate_limit import RateLimit

RATES = st.integers(1, 100_000)
BURSTS = st.integers(1, 100_000)


class Bucket:
    """The textbook one, in exact numbers."""

    def __init__(self, per_s: int, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens = Fraction(burst)
        self._then = Fraction(0)

    def spend(self, amount: int, now: Fraction) -> Fraction:
        """Return the tokens that are left; below 0 when there were too few."""
        self._tokens += (now - self._then) * self._per_s
        self._tokens = min(self._tokens, Fraction(self._burst)) - amount
        self._then = now
        return self._tokens


@given(
    RATES,
    BURSTS,
    st.integers(0, 10_000_000),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 1_000)), max_size=40),
)
def test_it_agrees_with_a_bucket_of_tokens(
    per_s: int, burst: int, start: int, spends: list[tuple[int, int]]
):
    limit, bucket = RateLimit(per_s, burst), Bucket(per_s, burst)
    full_at, now = 0.0, Fraction(start)
    for wait_ms, amount in spends:
        now += Fraction(wait_ms, 1_000)
        left = bucket.spend(amount, now)
        full_at = limit.spend(full_at, amount, float(now))
        if abs(left + Fraction(1, 2)) > Fraction(1, 4):  # the clock has its own resolution
            assert limit.is_overdrawn(full_at, float(now)) == (left < Fraction(-1, 2))


@given(RATES, BURSTS, st.floats(0, 1e7))
def test_a_burst_passes_and_one_more_does_not(per_s: int, burst: int, now: float):
    limit = RateLimit(per_s, burst)
    full_at = limit.spend(0.0, burst, now)
    assert not limit.is_overdrawn(full_at, now)
    assert limit.is_overdrawn(limit.spend(full_at, 1, now), now)


@given(st.integers(1, 1_000), st.integers(1, 50))
def test_a_steady_rate_passes_for_ever(per_s: int, burst: int):
    limit = RateLimit(per_s, burst)
    full_at = 0.0
    for second in range(1_000_000, 1_000_003):
        for number in range(per_s):
            now = second + number / per_s
            full_at = limit.spend(full_at, 1, now)
            assert not limit.is_overdrawn(full_at, now)


def test_tokens_of_a_time_that_is_kept_are_not_lost():
    limit = RateLimit(10, 5)
    full_at = limit.spend(0.0, 0, 100.0)
    # Ten seconds later: a burst, or with the time from 100 on kept, a hundred more.
    assert limit.is_overdrawn(limit.spend(full_at, 6, 110.0), 110.0)
    kept = limit.spend(full_at, 105, 100.0)
    assert not limit.is_overdrawn(kept, 110.0)
    assert limit.is_overdrawn(limit.spend(kept, 1, 100.0), 110.0)
