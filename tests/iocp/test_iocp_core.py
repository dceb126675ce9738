"""The completion port: completions to their owners, posts, timers, and exceptions on the way."""

import math
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.iocp import (
    DriverClosedError,
    DriverUnavailableError,
    EventInFlightError,
    EventType,
    IocpCore,
    IocpEvent,
    IocpObject,
    MisuseError,
    choose_driver,
)
from cluster.iocp.driver import Completion
from cluster.iocp.driver.memory import MemoryDriver
from cluster.iocp.iocp_core import BATCH_MAX, deliver_one
from tests.iocp.world import World


class Owner(IocpObject):
    """Notes what is dispatched to it; may raise or do something else."""

    def __init__(self, action: Any = None) -> None:
        self.handle = None
        self.action = action
        self.taken: list[tuple[IocpEvent, int]] = []

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        assert event.owner is None
        self.taken.append((event, num_bytes))
        if self.action is not None:
            self.action()

    def post(self, core: IocpCore, num_bytes: int = 0) -> IocpEvent:
        event = IocpEvent(EventType.POST, self)
        core.post(event, num_bytes)
        return event


def test_a_posted_event_comes_to_its_owner(core: IocpCore):
    owner = Owner()
    event = owner.post(core, 42)
    assert owner.taken == []
    assert core.dispatch(0) == 1
    assert owner.taken == [(event, 42)]
    assert event.owner is None


def test_an_event_may_be_posted_again_once_it_was_dispatched(core: IocpCore):
    owner = Owner()
    event = owner.post(core)
    with pytest.raises(EventInFlightError):
        core.post(event)
    for n in range(3):
        core.dispatch(0)
        event.owner = owner
        core.post(event, n)
    core.dispatch(0)
    assert [num_bytes for _, num_bytes in owner.taken] == [0, 0, 1, 2]


def test_posting_without_an_owner_is_misuse(core: IocpCore):
    with pytest.raises(MisuseError, match="without an owner"):
        core.post(IocpEvent(EventType.POST))


def test_a_batch_is_bounded_and_the_rest_comes_next(core: IocpCore):
    owner = Owner()
    for n in range(BATCH_MAX + 10):
        owner.post(core, n)
    assert core.dispatch(0) == BATCH_MAX
    assert core.dispatch(0) == 10
    assert [num_bytes for _, num_bytes in owner.taken] == list(range(BATCH_MAX + 10))


def test_a_pending_event_keeps_its_owner_alive_and_no_longer(core: IocpCore):
    owner = Owner()
    reference = weakref.ref(owner)
    event = owner.post(core)
    del owner
    assert reference() is not None
    core.dispatch(0)
    assert event.owner is None
    assert reference() is None


def test_a_post_from_another_thread_wakes_dispatch(core: IocpCore):
    owner = Owner()
    thread = threading.Timer(0.05, lambda: owner.post(core))
    thread.start()
    assert core.dispatch(30) == 1
    thread.join()
    assert len(owner.taken) == 1


def test_dispatch_is_not_reentrant(core: IocpCore):
    owner = Owner(lambda: core.dispatch(0))
    owner.post(core)
    with pytest.raises(MisuseError, match="callback"):
        core.dispatch(0)
    assert core.dispatch(0) == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("timeout", [-1, -0.5, math.nan])
def test_a_timeout_that_is_none_is_misuse(threads: int, timeout: float):
    core = IocpCore(threads, MemoryDriver(threads=threads))
    with pytest.raises(MisuseError, match=f"timeout {timeout}"):
        core.dispatch(timeout)
    core.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("timeout", [math.inf, 1e30])
def test_a_timeout_may_be_longer_than_a_lock_can_wait(threads: int, timeout: float):
    core = IocpCore(threads, MemoryDriver(threads=threads))
    Owner().post(core)
    assert core.dispatch(timeout) == 1
    core.close()


def test_an_exception_comes_out_and_what_was_not_delivered_stays(core: IocpCore):
    def fail() -> None:
        raise KeyError("boom")

    before, failing, after = Owner(), Owner(fail), Owner()
    for owner in (before, failing, after, after):
        owner.post(core)
    with pytest.raises(KeyError, match="boom"):
        core.dispatch(0)
    assert (len(before.taken), len(failing.taken), len(after.taken)) == (1, 1, 0)
    failing.post(core)
    failing.action = None
    world = World(core)
    world.run_until(lambda: len(after.taken) == 2 and len(failing.taken) == 2)
    assert core.dispatch(0) == 0


class ScriptedDeliverer:
    """Delivers as the core does, up to an event that it raises for."""

    def __init__(self, raises_for: IocpEvent | None = None) -> None:
        self.raises_for = raises_for
        self.batches: list[list[IocpEvent]] = []

    def deliver(self, batch: Iterator[Completion]) -> None:
        self.batches.append([])
        for event, num_bytes in batch:
            self.batches[-1].append(event)
            if event is self.raises_for:
                raise KeyError("boom")
            deliver_one(event, num_bytes)


def test_completions_may_be_delivered_by_somebody_else(core: IocpCore):
    owner, deliverer = Owner(), ScriptedDeliverer()
    core.deliver_by(deliverer)
    events = [owner.post(core, number) for number in range(3)]
    assert core.dispatch(0) == 3
    assert deliverer.batches == [events]
    assert owner.taken == [(event, number) for number, event in enumerate(events)]
    core.deliver_by(None)
    owner.post(core)
    assert core.dispatch(0) == 1
    assert len(deliverer.batches) == 1
    assert len(owner.taken) == 4


def test_what_a_deliverer_that_raises_has_left_comes_with_the_next_batch(core: IocpCore):
    owner = Owner()
    events = [owner.post(core) for _ in range(3)]
    deliverer = ScriptedDeliverer(raises_for=events[1])
    core.deliver_by(deliverer)
    with pytest.raises(KeyError, match="boom"):
        core.dispatch(0)
    events.append(owner.post(core))
    assert core.dispatch(0) == 2
    assert deliverer.batches == [events[:2], events[2:]]
    assert [event for event, _ in owner.taken] == [events[0], *events[2:]]


def test_completions_of_a_core_of_several_threads_are_delivered_by_nobody_else():
    core = IocpCore(threads=2, driver=MemoryDriver(threads=2))
    with pytest.raises(MisuseError, match="several threads"):
        core.deliver_by(ScriptedDeliverer())
    core.close()


def test_an_owner_may_take_care_of_its_exceptions(core: IocpCore):
    class Careful(Owner):
        errors: list[Exception]

        def on_dispatch_error(self, event: IocpEvent, error: Exception) -> None:
            self.errors.append(error)

    def fail() -> None:
        raise KeyError("boom")

    owner = Careful(fail)
    owner.errors = []
    owner.post(core)
    assert core.dispatch(0) == 1
    assert [type(error) for error in owner.errors] == [KeyError]


@pytest.mark.parametrize("threads", [0, -1])
def test_a_core_needs_a_thread(threads: int):
    with pytest.raises(MisuseError, match=f"threads={threads}"):
        IocpCore(threads=threads)


def test_a_driver_for_one_thread_is_refused_for_more():
    driver = choose_driver("readiness")
    with pytest.raises(MisuseError, match="made for 1"):
        IocpCore(threads=2, driver=driver)
    driver.close()


def test_an_object_is_registered_while_its_handle_is_open(world: World):
    session, peer = world.pair()
    assert world.core.register(session)
    assert not world.core.register(Owner())
    session.abort()
    world.run_until(lambda: session.disconnected_with)
    assert not world.core.register(session)
    assert world.core.register(peer)


# -- timers ----------------------------------------------------------------------------------------


def test_a_timer_runs_from_dispatch_when_it_is_due(world: World):
    core = world.core
    ran: list[float] = []
    began = core.now()
    core.call_later(0.05, lambda: ran.append(round(core.now() - began, 6)))
    core.call_later(0.02, lambda: ran.append(round(core.now() - began, 6)))
    assert ran == []
    world.run_until(lambda: len(ran) == 2)
    assert 0.02 <= ran[0] <= ran[1]
    assert ran[1] >= 0.05


def test_the_first_timer_that_is_not_cancelled_is_the_next_one(core: IocpCore):
    assert core.next_due() is None
    core.call_later(60, lambda: None)
    began = core.now()
    first = core.call_later(30, lambda: None)
    due = core.next_due()
    assert due is not None
    assert 30 <= due - began < 60
    first.cancel()
    due = core.next_due()
    assert due is not None
    assert due - began > 30


def test_a_timer_ends_the_wait_of_dispatch(core: IocpCore):
    ran: list[int] = []
    core.call_later(0.05, lambda: ran.append(1))
    while not ran:
        core.dispatch(30)
    assert ran == [1]


def test_a_cancelled_timer_does_not_run(world: World):
    ran: list[int] = []
    world.core.call_later(0.01, lambda: ran.append(1)).cancel()
    world.pass_time(0.03)
    assert ran == []


def test_timers_get_their_turn_between_full_batches(world: World):
    core = world.core
    ran: list[int] = []
    owner = Owner()

    def again() -> None:
        owner.post(core)

    owner.action = again
    for _ in range(2 * BATCH_MAX):
        owner.post(core)
    core.call_later(0, lambda: ran.append(1))
    for _ in range(3):
        core.dispatch(0)
    assert ran == [1]


@pytest.mark.parametrize("delay_s", [-0.1, math.inf, math.nan])
def test_a_delay_that_is_none_is_misuse(core: IocpCore, delay_s: float):
    with pytest.raises(MisuseError, match=f"delay {delay_s}"):
        core.call_later(delay_s, lambda: None)


def test_a_timer_that_raises_does_not_take_others_with_it(world: World):
    ran: list[int] = []

    def fail() -> None:
        raise KeyError("boom")

    world.core.call_later(0, fail)
    world.core.call_later(0, lambda: ran.append(1))
    with pytest.raises(KeyError):
        world.pass_time(0.05)
    world.run_until(lambda: ran)


# -- closing ---------------------------------------------------------------------------------------


def test_close_may_come_twice_and_nothing_works_afterwards(core: IocpCore):
    core.close()
    core.close()
    with pytest.raises(DriverClosedError):
        core.dispatch(0)
    with pytest.raises(DriverClosedError):
        core.post(IocpEvent(EventType.POST, Owner()))


def test_closing_from_a_callback_is_misuse(core: IocpCore):
    owner = Owner(core.close)
    owner.post(core)
    with pytest.raises(MisuseError, match="callback"):
        core.dispatch(0)
    owner.action = None
    owner.post(core)
    assert core.dispatch(0) == 1


def test_closing_forgets_timers_and_owners(core: IocpCore):
    owner = Owner()
    reference = weakref.ref(owner)
    event = owner.post(core)
    timer = core.call_later(0, lambda: None)
    del owner
    core.close()
    assert event.owner is None
    assert reference() is None
    assert timer.callback is None


def test_closing_a_core_with_living_connections_closes_their_sockets(world: World):
    session, peer = world.pair()
    paused, other = world.pair()
    paused.pause_recv()
    other.send(b"x")
    world.run_until(lambda: paused.received and paused._recv_event.owner is None)
    handles = [session.handle, peer.handle, paused.handle, other.handle]
    world.core.close()
    assert all(handle.is_closed for handle in handles)


# -- the choice of a driver ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "readiness", "memory"])
def test_a_driver_is_chosen_by_name(name: str):
    driver = choose_driver(name)
    assert driver.name == name or name == "auto"
    driver.close()


def test_a_driver_that_does_not_exist_is_refused_with_its_name():
    with pytest.raises(ValueError, match="'select' is not one of auto"):
        choose_driver("select")


def test_a_driver_that_cannot_run_here_says_what_to_use():
    names = ("iocp", "io_uring")
    for name in names:
        try:
            choose_driver(name).close()
        except DriverUnavailableError as error:
            assert repr(name) in str(error)  # noqa: PT017
            assert "auto" in str(error)  # noqa: PT017


def test_a_core_without_a_driver_takes_the_best():
    core = IocpCore()
    assert core.driver.name in ("readiness", "io_uring", "iocp")
    core.close()
