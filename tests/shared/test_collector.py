"""The collector is as it was before, whichever of several blocks ends last, and in what thread."""

import gc
import sys
from collections.abc import Iterator
from threading import Thread

import pytest

from cluster.shared.collector import no_collections


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """Leave the collector on, and threads to change as usual."""
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.enable()


def test_blocks_within_blocks_end_with_the_outermost() -> None:
    with no_collections():
        with no_collections():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with no_collections():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_a_block_that_raises_ends_as_well() -> None:
    with pytest.raises(ValueError, match="inside"), no_collections():
        raise ValueError("inside")
    assert gc.isenabled()


def test_blocks_of_several_threads_leave_the_collector_on() -> None:
    def repeat() -> None:
        for _ in range(5_000):
            with no_collections():
                assert not gc.isenabled()

    sys.setswitchinterval(1e-6)
    threads = [Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.isenabled()
