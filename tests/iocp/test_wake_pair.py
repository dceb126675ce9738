"""Wake-ups: one is enough, however many are asked for, and none is left behind."""

import select

import pytest

from cluster.iocp.wake_pair import WakePair
from tests.support import wait_until


def is_readable(pair: WakePair) -> bool:
    return bool(select.select([pair.fileno()], [], [], 0)[0])


def test_a_wake_up_lasts_until_it_is_drained():
    pair = WakePair()
    assert not is_readable(pair)
    pair.drain()
    pair.wake()
    pair.wake()
    assert is_readable(pair)
    pair.drain()
    assert not is_readable(pair)
    pair.close()


def test_more_wake_ups_than_a_socket_holds_raise_nothing_and_are_drained():
    pair = WakePair()
    for _ in range(100_000):
        pair.wake()

    def is_drained() -> bool:
        # Where the pair is a connection, what found no room at the reader is still on its way.
        pair.drain()
        return not is_readable(pair)

    wait_until(is_drained, what="the end of the wake-ups")
    pair.wake()
    assert is_readable(pair)
    pair.close()


def test_a_closed_pair_says_so():
    pair = WakePair()
    pair.close()
    pair.close()
    with pytest.raises(OSError):
        pair.wake()
