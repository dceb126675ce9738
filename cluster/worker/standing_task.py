"""A task that is there before its coroutine is: one for the first steps of many.

To make a task takes longer than most handlers do, and most coroutines come to their end in their
first step. So that step is taken in the name, and in the context, of a task that stands by. What
comes to its end then, and leaves no trace on the task, leaves it to the next; what awaits goes on
with it. To whoever asks asyncio, each coroutine has had a task of its own.
"""

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount

__all__ = ["StandingTask"]


class StandingTask:
    """A task that has not taken its first step. For the loop's thread, and not from a task."""

    __slots__ = ("_begin", "_context", "_loop", "_name", "_references", "_task", "_weak_references")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: "asyncio.Task[Any]",
        context: Context,
        begin: Callable[[], object],
    ) -> None:
        """Keep `task`, whose context is `context` and whose first step `begin` takes."""
        self._loop = loop
        self._task = task
        self._context = context
        self._begin = begin
        self._name = task.get_name()
        self._references = self._weak_references = 0

    @property
    def is_current(self) -> bool:
        """Whether a task that was made now would be the same: nobody has cancelled this one, as who
        cancels all there are does, and the context is its own."""
        return self._context == copy_context() and not self._task.cancelling()

    @property
    def is_untouched(self) -> bool:
        """Whether the last first step has left no trace on the task itself."""
        return (
            getrefcount(self._task) == self._references
            and getweakrefcount(self._task) == self._weak_references
            and not self._task.cancelling()
            and not self._task._callbacks
            and self._task.get_name() == self._name
        )

    def take_first_step(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Take the first step of a coroutine; return what it awaits, raise what it raises.

        StopIteration means that it has come to its end.
        """
        # No local variable is the task: a traceback that somebody keeps would keep it as well.
        self._references = getrefcount(self._task)
        self._weak_references = getweakrefcount(self._task)
        _enter_task(self._loop, self._task)
        try:
            return self._context.run(coroutine.send, None)
        finally:
            _leave_task(self._loop, self._task)

    def go_on(self) -> None:
        """Let the task take its own first step: its coroutine is ready for it."""
        self._context.run(self._begin)
