"""A token bucket whose whole state is one time: when the bucket would be full again.

To spend moves that time on by what the tokens take to come back, and the bucket is overdrawn when
it lies further off than a full bucket takes to fill. So a session carries one number for each of
its rates, and nothing has to be refilled. This is the virtual scheduling algorithm of ITU-T I.371.
"""

import math

__all__ = ["UNLIMITED", "RateLimit"]


class RateLimit:
    """A rate and its burst. Immutable; the state, `full_at`, is kept by whoever is limited."""

    __slots__ = ("burst_s", "unit_s")

    def __init__(self, per_s: float, burst: float) -> None:
        """Let `per_s` tokens be spent in a second, and `burst` at once after a quiet time."""
        self.unit_s = 1 / per_s
        # Half a token more: tokens are whole, and sums of fractions are not exact.
        self.burst_s = (burst + 0.5) / per_s

    def spend(self, full_at: float, amount: int, floor: float) -> float:
        """Return the new `full_at` after `amount` tokens were spent.

        Tokens that came before `floor` and found the bucket full are lost; it is the time of the
        clock, or earlier if they are to be kept.
        """
        return (full_at if full_at > floor else floor) + amount * self.unit_s

    def is_overdrawn(self, full_at: float, now: float) -> bool:
        """Return whether more was spent than there was."""
        return full_at - now > self.burst_s


UNLIMITED = RateLimit(math.inf, 0)
"""Of which nobody can spend too much, where to ask whether there is a rate would cost more."""
