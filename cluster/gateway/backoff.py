"""The pause before something that failed is tried again: it doubles, and has chance in it.

So nodes that lost the same peer, or the store, at the same time do not come back at the same time.
No clock.
"""

import random

__all__ = ["BACKOFF_FIRST_S", "BACKOFF_MAX_S", "backoff_s"]

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
_DOUBLINGS_MAX = 16


def backoff_s(failures: int, rng: random.Random, pause_max_s: float = BACKOFF_MAX_S) -> float:
    """Return the pause, in seconds, behind one failure that `failures` others came before."""
    pause_s: float = BACKOFF_FIRST_S * 2 ** min(failures, _DOUBLINGS_MAX)
    return min(pause_max_s, pause_s) * rng.uniform(0.5, 1.0)
