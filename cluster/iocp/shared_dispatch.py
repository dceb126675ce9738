"""Dispatch by several threads: one polls, all deliver, and nobody is called by two at once.

Reaped completions lie in one ready queue. The thread that takes one whose owner is idle becomes
that owner's runner and delivers until nothing is left for it; a thread that finds the owner
busy appends to its run queue and goes on. So a session's callbacks run one at a time, in the
order of its completions, without a lock being held in any of them.
"""

import math
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX, Lock, get_ident
from typing import Any

from cluster.iocp.driver import Completion, Driver
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import EventType, IocpEvent
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.timers import Timer, Timers

__all__ = ["SharedDispatch"]

_POLL_BATCH_MAX = 256
"""Completions that one poll takes at most."""

_DELIVERY_MAX = 16
"""Completions that a thread takes from the ready queue before it returns; the others have theirs
meanwhile."""


class _Waker(IocpObject):
    """What a wake-up is posted to."""

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Nothing: the point is that a poll has ended."""


class SharedDispatch:
    """The dispatching of a core with more than one thread. Any thread, up to `threads`."""

    def __init__(self, driver: Driver, threads: int) -> None:
        self._driver = driver
        self._threads = threads
        self._ready: deque[Completion] = deque()
        self._run_queues: dict[IocpObject, deque[Completion]] = {}
        """Completions for owners that a thread is delivering to, beside the one in its hands."""
        self._run_lock = Lock()  # the ready queue's order, and the run queues
        self._poll_lock = Lock()
        self._inside: set[int] = set()
        self._timers = Timers()
        self._timer_lock = Lock()
        self._wakes_at = -math.inf
        """When the polling thread wakes up by itself; -inf while nobody polls."""
        self._waker = _Waker()
        self._waker.handle = None

    def dispatch(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds for completions and deliver some; return how many."""
        ident = get_ident()
        if ident in self._inside:
            raise MisuseError("dispatch was called from a callback")
        if len(self._inside) >= self._threads:
            raise MisuseError(f"{self._threads} threads dispatch already; make a core for more")
        self._inside.add(ident)
        try:
            return self._dispatch(timeout)
        finally:
            self._inside.discard(ident)

    @property
    def is_dispatching(self) -> bool:
        """Whether a thread is inside `dispatch`."""
        return bool(self._inside)

    def _dispatch(self, timeout: float | None) -> int:
        if not self._ready:
            # Whoever comes next waits here for the one that polls, and then for what it brought.
            wait_s = -1 if timeout is None or timeout > TIMEOUT_MAX else timeout
            if not self._poll_lock.acquire(timeout=wait_s):
                return 0
            try:
                if not self._ready:
                    # Nobody else extends it at its end but `hand_over`, by one atomic step too.
                    self._ready.extend(self._driver.poll(self._plan_wait(timeout), _POLL_BATCH_MAX))
            finally:
                self._wakes_at = -math.inf
                self._poll_lock.release()
            self._run_timers()
        return self._deliver()

    def _deliver(self) -> int:
        delivered = 0
        while delivered < _DELIVERY_MAX:
            with self._run_lock:
                if not self._ready:
                    break
                event, num_bytes = self._ready.popleft()
                owner = event.owner
                if owner is None:
                    continue
                queue = self._run_queues.get(owner)
                if queue is not None:
                    queue.append((event, num_bytes))
                    continue
                queue = self._run_queues[owner] = deque()
            delivered += self._run(owner, queue, event, num_bytes)
        return delivered

    def _run(
        self, owner: IocpObject, queue: deque[Completion], event: IocpEvent, num_bytes: int
    ) -> int:
        """Deliver to `owner` until nothing is left for it."""
        delivered = 0
        try:
            while True:
                delivered += 1
                event.owner = None
                try:
                    owner.dispatch(event, num_bytes)
                except Exception as error:
                    owner.on_dispatch_error(event, error)
                with self._run_lock:
                    if not queue:
                        del self._run_queues[owner]
                        return delivered
                    event, num_bytes = queue.popleft()
        except BaseException:
            with self._run_lock:  # what is left is for the next thread
                del self._run_queues[owner]
                self._ready.extendleft(reversed(queue))
            if queue:
                self._wake()
            raise

    def hand_over(self, event: IocpEvent) -> None:
        """Deliver `event` to its owner in the owner's own turn, soon."""
        self._ready.append((event, 0))
        self._wake()

    # -- timers ------------------------------------------------------------------------------------

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` from `dispatch`, in any of its threads."""
        due = self._driver.now() + delay_s
        with self._timer_lock:
            timer = self._timers.add(due, callback)
            must_wake = due < self._wakes_at
        if must_wake:
            self._wake()
        return timer

    def _plan_wait(self, timeout: float | None) -> float | None:
        now = self._driver.now()
        with self._timer_lock:
            due = self._timers.next_due()
            wakes_at = math.inf if timeout is None else now + timeout
            if due is not None:
                wakes_at = min(wakes_at, max(now, due))
            self._wakes_at = wakes_at
        return None if wakes_at == math.inf else wakes_at - now

    def _run_timers(self) -> None:
        now = self._driver.now()
        with self._timer_lock:
            newest = self._timers.newest()
        while True:
            with self._timer_lock:
                callback = self._timers.take_due(now, newest)
            if callback is None:
                return
            callback()

    def _wake(self) -> None:
        event = IocpEvent(EventType.POST, self._waker)
        self._driver.post(event)

    def close(self) -> None:
        """Forget timers and what was not delivered; the driver is the caller's."""
        self._timers.clear()
        while self._ready:
            event, _ = self._ready.popleft()
            event.owner = None
            event.release()
