"""What tests of every room need: waiting for a condition instead of sleeping for a guess.

Only the standard library, so that the tests import on every platform.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    *,
    timeout_s: float = 10.0,
    interval_s: float = 0.01,
    what: str = "the condition",
) -> T:
    """Call `predicate` until it returns something true, and return that.

    Raises `AssertionError` that names `what`, and the last value, after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() >= deadline  # not after: this process may be stopped meanwhile
        value = predicate()
        if value:
            return value
        if is_last:
            raise AssertionError(f"{what} did not hold within {timeout_s} s, last: {value!r}")
        time.sleep(interval_s)
