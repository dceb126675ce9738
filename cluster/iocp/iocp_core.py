"""The completion port: takes completions from a driver and gives each to its owner."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any, Protocol

from cluster.iocp.driver import Completion, Driver, choose_driver
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import IocpEvent
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.shared_dispatch import SharedDispatch
from cluster.iocp.timers import Timer, Timers

__all__ = ["BATCH_MAX", "Deliverer", "IocpCore", "WaitGuard", "deliver_one"]

BATCH_MAX = 256
"""Completions that one dispatch takes at most, so that timers and posts get their turn.

A batch is also the unit of everything that is done once for many packets; from 64 up the
cost for each packet no longer falls measurably.
"""


class WaitGuard(Protocol):
    """Something that makes no completions while nobody waits: a queue in shared memory."""

    def may_wait(self) -> bool:
        """Return False if there is work already; else see to it that work ends the wait."""
        ...

    def has_waited(self) -> None:
        """The wait is over; from here on nothing has to end one."""
        ...


class Deliverer(Protocol):
    """Gives the completions of a batch to their owners, in place of the loop of the core."""

    def deliver(self, batch: Iterator[Completion]) -> None:
        """Take each completion from `batch` and deliver it, as `deliver_one` does, in order.

        What is left in `batch` when this raises is delivered with the next batch.
        """
        ...


def deliver_one(event: IocpEvent, num_bytes: int) -> None:
    """Give a completion to its owner; raises what that lets out of `on_dispatch_error`."""
    owner = event.owner
    event.owner = None
    if owner is not None:
        try:
            owner.dispatch(event, num_bytes)
        except Exception as error:
            owner.on_dispatch_error(event, error)


def _deliver(batch: Iterator[Completion]) -> None:
    for event, num_bytes in batch:
        # `deliver_one`, written out: each completion of a core of one thread comes here.
        owner = event.owner
        event.owner = None
        if owner is None:
            continue
        try:
            owner.dispatch(event, num_bytes)
        except Exception as error:
            owner.on_dispatch_error(event, error)


class IocpCore:
    """One completion port with its timers.

    As many threads as it was made for call `dispatch`; `post` may come from any thread,
    `call_later` from callbacks and from dispatching threads. The core owns its driver.

    With one thread, which is the one that dispatches first, callbacks run in it and nothing here
    takes a lock. With more, callbacks of different objects run in different threads, and those of
    one object one at a time, in order. A process that was forked off uses nothing of it, nor
    closes it: what it closes may be its parent's.
    """

    __slots__ = (
        "_deliver",
        "_shared",
        "_timers",
        "_undelivered",
        "_wait_guard",
        "batch_now",
        "batch_size",
        "dispatching_thread",
        "driver",
    )

    def __init__(self, threads: int = 1, driver: Driver | None = None) -> None:
        """Make a core for `threads` dispatching threads on `driver`, which it then owns.

        Without a driver the best one for this machine is taken; one that is given must have
        been made for as many threads, or MisuseError is raised.
        """
        if threads < 1:
            raise MisuseError(f"threads={threads}: a core needs at least 1")
        if driver is None:
            driver = choose_driver(threads=threads)
        elif driver.threads < threads:
            raise MisuseError(
                f"threads={threads}, but the driver was made for {driver.threads}; "
                f"make it by choose_driver(threads={threads})"
            )
        self.driver = driver
        self.batch_now = driver.now()
        """The clock when the batch that is dispatched now, or was last, had been taken: one reading
        for all that it brings. Kept by a core of one thread only."""
        self.batch_size = 0
        """How many completions that batch has. Kept by a core of one thread only."""
        self._timers = Timers()
        self._undelivered: deque[Completion] = deque()
        self.dispatching_thread = 0
        """The thread that is in `dispatch`; 0 while none is, and with several threads always."""
        self._shared = SharedDispatch(driver, threads) if threads > 1 else None
        self._wait_guard: WaitGuard | None = None
        self._deliver: Callable[[Iterator[Completion]], None] = _deliver

    def deliver_by(self, deliverer: Deliverer | None) -> None:
        """Have completions delivered by `deliverer`, which can do for many at once what their
        owners do for each; None has the core do it.

        Only with one dispatching thread: MisuseError otherwise.
        """
        if self._shared is not None:
            raise MisuseError("completions of a core of several threads are shared out one by one")
        self._deliver = _deliver if deliverer is None else deliverer.deliver

    def guard_waits(self, guard: WaitGuard | None) -> None:
        """Ask `guard` before each wait of `dispatch`, and tell it after; None asks nobody.

        Only with one dispatching thread: MisuseError otherwise.
        """
        if self._shared is not None:
            raise MisuseError("a core of several threads takes no guard; nobody waits alone there")
        self._wait_guard = guard

    def register(self, obj: IocpObject) -> bool:
        """Return whether `obj` has an open handle, on which operations may now be submitted."""
        return obj.handle is not None and not obj.handle.is_closed

    def dispatch(self, timeout: float | None = None) -> int:
        """Wait up to `timeout` seconds (None: for ever), deliver one batch, return its size.

        With several threads a batch is shared: each of them returns how many it delivered. The
        wait may end early, with 0.

        Timers that are due run after the batch, and a timer that falls due ends the wait. An
        exception that an owner does not take care of comes out here; what was not delivered
        yet stays queued for the next call. Raises MisuseError from a callback, in more threads
        than the core was made for, and for a timeout below 0; OSError for what the system
        refuses, after which it may be called again. Signal handlers set a flag and do not raise: an
        exception of theirs, such as KeyboardInterrupt, comes out anywhere, and may take
        completions with it without which sessions never end.
        """
        if timeout is not None and not timeout >= 0:
            raise MisuseError(f"timeout {timeout!r} is not a number of seconds from 0 up, or None")
        if self._shared is not None:
            return self._shared.dispatch(timeout)
        if self.dispatching_thread:
            raise MisuseError("dispatch was called from a callback or from a second thread")
        self.dispatching_thread = get_ident()
        try:
            return self._dispatch(timeout)
        finally:
            self.dispatching_thread = 0

    def _dispatch(self, timeout: float | None) -> int:
        undelivered = self._undelivered
        if undelivered:
            timeout = 0
        timers = self._timers
        due = timers.next_due()
        if due is not None and timeout != 0:
            left = due - self.driver.now()
            if timeout is None or left < timeout:
                timeout = left if left > 0.0 else 0.0
        guard = self._wait_guard
        if guard is None:
            completions = self.driver.poll(timeout, BATCH_MAX)
        else:
            if timeout != 0 and not guard.may_wait():
                timeout = 0
            completions = self.driver.poll(timeout, BATCH_MAX)
            guard.has_waited()
        self.batch_now = now = self.driver.now()
        if undelivered:
            completions = [*undelivered, *completions]
            undelivered.clear()
        self.batch_size = len(completions)
        if completions:
            batch = iter(completions)
            try:
                self._deliver(batch)
            finally:
                undelivered.extend(batch)
            if due is not None:
                now = self.driver.now()
        if due is not None and due <= now:
            timers.run_due(now)
        return len(completions)

    def post(self, event: IocpEvent, num_bytes: int = 0) -> None:
        """Queue a completion of `event`, whose `owner` must be set; wakes `dispatch`."""
        if event.owner is None:
            raise MisuseError(f"{event!r} was posted without an owner to dispatch it to")
        self.driver.post(event, num_bytes)

    def now(self) -> float:
        """Return the clock of the core in seconds; it never goes back."""
        return self.driver.now()

    def next_due(self) -> float | None:
        """Return when the first timer is due, by the clock of the core, or None.

        For whoever turns a core of one thread without waiting in `dispatch`.
        """
        return self._timers.next_due()

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` from `dispatch`, `delay_s` seconds from now."""
        if not 0 <= delay_s < math.inf:
            raise MisuseError(f"delay {delay_s!r} is not a number of seconds from 0 up")
        if self._shared is not None:
            return self._shared.call_later(delay_s, callback)
        return self._timers.add(self.driver.now() + delay_s, callback)

    def hand_over(self, owner: IocpObject, event: IocpEvent) -> None:
        """Have `owner` dispatch `event`, which came to someone else, in its own turn.

        At once with one thread; raises what its `on_dispatch_error` lets out then.
        """
        if self._shared is not None:
            event.owner = owner
            self._shared.hand_over(event)
            return
        try:
            owner.dispatch(event, 0)
        except Exception as error:
            owner.on_dispatch_error(event, error)

    def close(self) -> None:
        """Cancel all timers, forget what is in flight, and close the driver. Idempotent.

        Sessions that are left end without a callback, and to send or disconnect raises
        DriverClosedError: for an orderly end close the services first, and dispatch until that is
        over. Not from a callback, nor while a thread dispatches: raises MisuseError there.
        """
        if self.dispatching_thread or (self._shared is not None and self._shared.is_dispatching):
            raise MisuseError(
                "close was called from a callback or beside dispatch; end the loop, then close"
            )
        if self._shared is not None:
            self._shared.close()
        self._timers.clear()
        for event, _ in self._undelivered:
            event.owner = None
            event.release()
        self._undelivered.clear()
        self.driver.close()
