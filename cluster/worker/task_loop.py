"""An asyncio event loop that its owner turns by hand, one round after the other.

The worker's own loop stays in charge: tasks go on in `round` and nowhere else, but for their
first step, which `start` takes at once. Between `enter` and `leave` the loop counts as running in
this thread, so what handlers use of asyncio finds it. Imported only by workers whose application
awaits.
"""

import asyncio
import logging
import selectors
import sys
import time
from asyncio.events import AbstractEventLoop, _get_running_loop, _set_running_loop
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack

from cluster.worker.standing_task import StandingTask

__all__ = ["TaskLoop"]

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

logger = logging.getLogger("cluster.worker")


class _OneWait(selectors.DefaultSelector):
    """A selector that waits no longer than it is told to, and tells of each wait."""

    wait_s = 0.0
    waited: Callable[[float | None], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        bounded = self.wait_s if timeout is None or timeout > self.wait_s else timeout
        ready = super().select(bounded)
        self.waited(timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """The loop that tasks see."""

    now: Callable[[], float]
    has_ready = False
    next_timer: float | None = None
    is_entered = False
    """Whether it counts as running although no round is."""
    is_starting = False
    no_handle: asyncio.Handle
    in_threads = 0
    """Calls that other threads carry out for tasks."""
    first_step: tuple[Callable[[], object], Context] | None = None

    def time(self) -> float:
        return self.now()

    def is_running(self) -> bool:
        return self.is_entered or super().is_running()

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Arguments]], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if self.next_timer is None or when < self.next_timer:
            self.next_timer = when
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[_Arguments]], _T],
        *args: *_Arguments,
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self.in_threads += 1
        future.add_done_callback(self._left_thread)
        return future

    def _left_thread(self, future: asyncio.Future[Any]) -> None:
        self.in_threads -= 1

    def call_soon(
        self,
        callback: Callable[[Unpack[_Arguments]], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        if not self.is_starting:
            self.has_ready = True
            return super().call_soon(callback, *args, context=context)
        assert context is not None, "tasks have one"
        self.is_starting = False
        self.first_step = (partial(callback, *args) if args else callback, context)
        return self.no_handle  # a task asks nothing of it


class TaskLoop:
    """Runs the tasks of one worker. For the loop's thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Make a loop whose clock is `now`, in seconds."""
        self._selector = _OneWait()
        self._loop = _Loop(self._selector)
        self._loop.now = now
        self._loop.no_handle = asyncio.Handle(lambda: None, (), self._loop)
        self._selector.waited = self._waited
        self._own_count = len(self._selector.get_map())
        """Descriptors that are not of tasks: the loop's own, and those that are watched."""
        self._readable: list[int] = []
        self._outer: AbstractEventLoop | None = None
        """The loop that ran in this thread when this one was entered: that of another worker, under
        test, whose step has this one's worker begin."""
        self._hooks = sys.get_asyncgen_hooks()

    def _waited(self, timeout: float | None) -> None:
        """The wait of a round is over: what is ready still runs, and then nothing."""
        loop = self._loop
        loop.has_ready = False
        loop.next_timer = None if timeout is None else loop.time() + timeout
        loop.stop()

    @property
    def has_ready(self) -> bool:
        """Whether something can go on at once, in the next round."""
        return self._loop.has_ready

    @property
    def is_in_task(self) -> bool:
        """Whether a task takes a step now, so that it may await."""
        return asyncio.current_task(self._loop) is not None

    @property
    def awaits_outside(self) -> bool:
        """Whether tasks have begun what no clock of ours brings: calls in threads, sockets."""
        return self._loop.in_threads > 0 or len(self._selector.get_map()) > self._own_count

    def next_due(self) -> float | None:
        """Return when the next timer is due at the earliest, by the clock; None without any."""
        return self._loop.next_timer

    def watch(self, fd: int) -> None:
        """Have `round` end when `fd` is readable, and tell of it."""
        self._loop.add_reader(fd, self._readable_now, fd)
        self._own_count += 1

    def _readable_now(self, fd: int) -> None:
        self._readable.append(fd)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` called in the next round."""
        self._loop.call_soon(callback, *args)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Make a task of `coroutine`, whose first step is done on return. Not from a task.

        SystemExit and KeyboardInterrupt of that step are raised here.
        """
        task, context, begin = self._make_task(coroutine)
        context.run(begin)
        return task

    def stand_by(self, coroutine: Coroutine[Any, Any, Any]) -> StandingTask:
        """Make a task of `coroutine` that stands by before its first step."""
        return StandingTask(self._loop, *self._make_task(coroutine))

    def _make_task(
        self, coroutine: Coroutine[Any, Any, Any]
    ) -> "tuple[asyncio.Task[Any], Context, Callable[[], object]]":
        """Return a task of `coroutine`, its context, and what takes its first step there."""
        loop = self._loop
        loop.is_starting = True
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop)
        assert loop.first_step is not None
        begin, context = loop.first_step
        loop.first_step = None
        return task, context, begin

    def round(self, timeout_s: float) -> list[int]:
        """Let everything that is ready take a step, after a wait of at most `timeout_s` for it.

        Returns the watched descriptors that are readable.
        """
        self._selector.wait_s = timeout_s
        self._readable.clear()
        was_entered = self._loop.is_entered
        self.leave()
        outer = _get_running_loop()
        if outer is not None:
            _set_running_loop(None)  # which asyncio would not let another one run beside
        try:
            self._loop.run_forever()
        finally:
            if outer is not None:
                _set_running_loop(outer)
            if was_entered:
                self.enter()
        return self._readable

    def cancel_all(self, timeout_s: float) -> None:
        """Cancel every task, and give them `timeout_s` seconds to come to their end."""
        deadline = time.monotonic() + timeout_s
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        while left := asyncio.all_tasks(self._loop):
            if time.monotonic() >= deadline:
                logger.warning("%d tasks have not ended when they were cancelled", len(left))
                return
            self.round(0.01)

    def close(self) -> None:
        """Let go of the loop; tasks that are left end where they are, or never begin."""
        self.leave()
        for task in asyncio.all_tasks(self._loop):
            coroutine = task.get_coro()
            if iscoroutine(coroutine) and getcoroutinestate(coroutine) == CORO_CREATED:
                coroutine.close()  # or it would be said that nobody has awaited it
        self._loop.set_exception_handler(lambda loop, context: logger.debug("%s", context))
        self._loop.close()

    def enter(self) -> None:
        """Be this thread's running loop, between rounds too, until `leave`. Idempotent."""
        if not self._loop.is_entered:
            self._loop.is_entered = True
            self._outer = _get_running_loop()
            _set_running_loop(self._loop)
            self._hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(finalizer=self._finalize)

    def leave(self) -> None:
        """Let another loop be the running one of this thread. Idempotent."""
        if self._loop.is_entered:
            self._loop.is_entered = False
            _set_running_loop(self._outer)
            self._outer = None
            sys.set_asyncgen_hooks(*self._hooks)

    def _finalize(self, generator: "AsyncGenerator[Any, Any]") -> None:
        # As a running asyncio loop does, for what was first iterated in the first step of a task.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.create_task, generator.aclose())
