"""The two queues of a ring: nothing is lost when they are full, late, or interrupted."""

import ctypes
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.iocp import IocpCore
from tests.contract.driver_harness import resource_count
from tests.iocp.uring_port import small, uring_or_skip, uring_ring
from tests.iocp.world import World

NOP, POLL_ADD = 0, 6

MakeRing = Callable[..., uring_ring.Ring]


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    """Makes rings of a size, which are enabled."""
    uring_or_skip().close()
    made: list[uring_ring.Ring] = []

    def make(is_shared: bool = False, entries: int = 8, cq_entries: int = 16) -> uring_ring.Ring:
        with small(entries=entries, cq_entries=cq_entries):
            made.append(uring_ring.Ring(is_shared))
        made[-1].enable()
        return made[-1]

    yield make
    for ring in made:
        ring.close()


def take_what_is_due(ring: uring_ring.Ring, limit: int = 1_000) -> list[int]:
    """Return the numbers of everything that the ring says it has, without waiting for more."""
    numbers = []
    while ring.has_more():
        ring.enter(0)
        numbers += [number for number, *_ in ring.reap(limit)]
    return numbers


@pytest.mark.parametrize("is_shared", [False, True])
def test_more_operations_than_the_queue_holds_are_all_submitted(
    make_ring: MakeRing, is_shared: bool
) -> None:
    ring = make_ring(is_shared, entries=4, cq_entries=4_096)
    for number in range(1_000):
        ring.push(NOP, -1, number)
    ring.enter(0)
    assert [number for number, *_ in ring.reap(2_000)] == list(range(1_000))


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 16, 1_000])
def test_more_completions_than_the_queue_holds_all_come_in_order(
    make_ring: MakeRing, is_shared: bool, limit: int
) -> None:
    ring = make_ring(is_shared)
    for number in range(500):
        ring.push(NOP, -1, number)
    ring.enter(0)
    assert ring._words[ring._sq_flags] & uring_ring._SQ_CQ_OVERFLOW
    assert take_what_is_due(ring, limit) == list(range(500))


def test_what_is_due_is_seen_without_waiting(make_ring: MakeRing) -> None:
    """Nothing is in the queue then: the kernel waits to be asked, and only a flag says so."""
    ring = make_ring()
    waiting = os.eventfd(0)
    try:
        ring.push(POLL_ADD, waiting, 7, op_flags=select.POLLIN)
        ring.enter(0)
        assert not ring.has_more()
        os.eventfd_write(waiting, 1)
        assert list(ring.reap(1)) == []
        assert ring.has_more()
        ring.enter(0)
        assert [number for number, *_ in ring.reap(1)] == [7]
        assert not ring.has_more()
    finally:
        os.close(waiting)


def test_settling_carries_out_all_that_is_due(make_ring: MakeRing) -> None:
    """One call does it for about twenty operations."""
    ring = make_ring(cq_entries=1_024)
    waiting = os.eventfd(0)
    try:
        for number in range(500):
            ring.push(POLL_ADD, waiting, number, op_flags=select.POLLIN)
        ring.enter(0)
        os.eventfd_write(waiting, 1)
        ring.settle()
        assert sorted(number for number, *_ in ring.reap(1_000)) == list(range(500))
    finally:
        os.close(waiting)


def test_the_numbers_of_the_queues_wrap_around(make_ring: MakeRing) -> None:
    ring = make_ring(entries=4, cq_entries=8)
    for first in range(0, 10_000, 3):
        for number in range(first, first + 3):
            ring.push(NOP, -1, number)
        ring.enter(0)
        assert [number for number, *_ in ring.reap(8)] == [first, first + 1, first + 2]


def test_a_full_queue_that_the_kernel_does_not_take_loses_nothing(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(entries=4)

    def busy(*arguments: int) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return -1

    for number in range(4):
        ring.push(NOP, -1, number)
    with monkeypatch.context() as patch:
        patch.setattr(uring_ring, "_syscall", busy)
        ring.push(NOP, -1, 4)
        ring.enter(0)
        assert list(ring.reap(8)) == []
    ring.push(NOP, -1, 5)
    ring.enter(0)
    assert [number for number, *_ in ring.reap(8)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_full_queue_that_the_kernel_refuses_once_goes_on(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    ring = make_ring(is_shared, entries=4, cq_entries=64)
    call = uring_ring._syscall
    refusals = [errno.EAGAIN]

    def refuse_once(*arguments: object) -> int:
        if not refusals:
            return int(call(*arguments))
        ctypes.set_errno(refusals.pop())
        return -1

    monkeypatch.setattr(uring_ring, "_syscall", refuse_once)
    for number in range(20):
        ring.push(NOP, -1, number)
    numbers = []
    for _ in range(3):
        ring.enter(0)
        numbers += [number for number, *_ in ring.reap(64)]
    assert numbers == list(range(20))


def test_a_wait_ends_with_its_time(make_ring: MakeRing) -> None:
    ring = make_ring()
    began = time.monotonic()
    ring.enter(0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert list(ring.reap(1)) == []


def test_a_signal_ends_a_wait_and_is_handled(make_ring: MakeRing) -> None:
    ring = make_ring()
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    main = threading.get_ident()
    done = threading.Event()

    def disturb() -> None:
        while not done.wait(0.02):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        began = time.monotonic()
        ring.enter(20)
        assert time.monotonic() - began < 10
        assert seen
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_unshared_ring_is_refused_to_a_second_thread(make_ring: MakeRing) -> None:
    """Which is why a driver never touches its ring from another thread."""
    ring = make_ring()
    ring.push(NOP, -1, 1)
    errors: list[int | None] = []

    def enter() -> None:
        try:
            ring.enter(0)
        except OSError as error:
            errors.append(error.errno)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == [errno.EEXIST]
    ring.enter(0)
    assert [number for number, *_ in ring.reap(8)] == [1]


def test_a_closed_ring_leaves_no_descriptor_and_is_not_inherited(make_ring: MakeRing) -> None:
    descriptors = resource_count()
    with small(entries=8, cq_entries=16):
        ring = uring_ring.Ring(False)
    assert not os.get_inheritable(ring.fd)
    ring.close()
    assert resource_count() == descriptors


@pytest.mark.parametrize("threads", [1, 2])
def test_more_is_started_before_the_first_poll_than_the_queue_holds(threads: int) -> None:
    with small(entries=4):
        world = World(IocpCore(threads, uring_or_skip(threads)))
        server = world.server(max_session_count=20)
        client = world.client(server.listener.local_address, max_session_count=20)
        assert client.start()
        world.run_until(lambda: client.current_session_count == 20, "all connections")
        world.core.close()
