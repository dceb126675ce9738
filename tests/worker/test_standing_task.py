"""Coroutines that end in their first step share a task, and none of them can tell."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.shared.records import CLOSED, OPENED, PACKETS
from cluster.worker import Session
from tests.worker.bench import Bench, MakeBench
from tests.worker.records import ADDRESS, packets

Step = Callable[[], Coroutine[Any, Any, None]]


class Handlers:
    """A worker whose packets are numbers of coroutine functions; each is handled alone."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._steps: list[Step] = []
        self._ended = 0
        bench.app.on_any(self._any)

    async def _any(self, session: Session, packet_id: int, payload: bytes) -> None:
        try:
            await self._steps[packet_id - 100]()
        finally:
            self._ended += 1

    def run(self, *steps: Step) -> None:
        """Call each of `steps` as the handler of a packet of a session of its own, to its end."""

        async def finish() -> None:
            while self._ended < len(steps):
                await asyncio.sleep(0)
            self.bench.finish()

        self._steps = [*steps, finish]
        for number in range(len(self._steps)):
            self.bench.gateway.append(OPENED, number + 1, ADDRESS.encode())
        for number in range(len(self._steps)):
            record = packets((100 + number, b""), session=number + 1)
            self.bench.gateway.append(PACKETS, number + 1, record[16:], 1)
        self.bench.gateway.flush()
        self.bench.worker.run()
        assert self.bench.error is None


@pytest.fixture
def handlers(make_bench: MakeBench) -> Handlers:
    return Handlers(make_bench())


def this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


def test_those_that_leave_no_trace_are_one_task(handlers: Handlers):
    names: list[str] = []

    async def note() -> None:
        names.append(this_task().get_name())

    handlers.run(note, note, note)
    assert len(set(names)) == 1


def test_what_awaits_keeps_its_task_and_the_next_has_another(handlers: Handlers):
    names: list[str] = []

    async def wait() -> None:
        task = this_task()
        for _ in range(3):
            await asyncio.sleep(0)
            assert this_task() is task
        names.append(task.get_name())

    async def note() -> None:
        names.append(this_task().get_name())

    handlers.run(note, wait, wait, note)
    # The first one left its task to the second one; that and the others have one each.
    assert len(set(names)) == 3


def test_a_variable_is_of_the_coroutine_that_has_set_it(handlers: Handlers):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def change() -> None:
        seen.append(variable.get())
        variable.set("changed")

    async def change_and_wait() -> None:
        await change()
        await asyncio.sleep(0)
        seen.append(variable.get())

    handlers.run(change, change, change_and_wait, change)
    assert sorted(seen) == ["changed", "unset", "unset", "unset", "unset"]


def test_a_variable_that_a_plain_handler_sets_is_seen_from_then_on(handlers: Handlers):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())

    @handlers.bench.app.on_disconnected
    def plain(session: Session, cause: str) -> None:
        variable.set("set")

    token = variable.set("unset")
    handlers.bench.gateway.append(OPENED, 9, ADDRESS.encode())
    record = packets((100, b""), session=9)
    handlers.bench.gateway.append(PACKETS, 9, record[16:], 1)
    handlers.bench.gateway.append(CLOSED, 9, b"eof")
    handlers.run(look)
    variable.reset(token)
    assert seen == ["unset", "set"]


def test_what_is_kept_for_a_task_is_not_found_by_the_next(handlers: Handlers):
    by_task: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
    kept: list[Any] = []
    seen: list[bool] = []

    async def keep_weakly() -> None:
        seen.append(this_task() in by_task)
        by_task[this_task()] = "mine"

    async def keep() -> None:
        seen.append(this_task() in kept)
        kept.append(this_task())

    handlers.run(keep_weakly, keep_weakly, keep, keep, keep_weakly)
    assert seen == [False] * 5
    assert all(task.done() for task in kept)


def test_callbacks_of_a_task_are_called_when_its_coroutine_has_ended(handlers: Handlers):
    ended: list[str] = []

    async def ask() -> None:
        this_task().add_done_callback(lambda task: ended.append(task.get_name()))

    async def wait() -> None:
        while len(ended) < 2:
            await asyncio.sleep(0)

    handlers.run(ask, ask, wait)
    handlers.bench.take()
    assert len(set(ended)) == 2


def test_a_name_is_of_one_coroutine(handlers: Handlers):
    names: list[str] = []

    async def rename() -> None:
        names.append(this_task().get_name())
        this_task().set_name("mine")

    handlers.run(rename, rename, rename)
    assert "mine" not in names


def test_one_that_cancels_itself_and_ends_cancels_nobody_else(handlers: Handlers):
    reached: list[int] = []

    async def cancel() -> None:
        this_task().cancel()
        reached.append(this_task().cancelling())

    async def wait() -> None:
        await asyncio.sleep(0)
        reached.append(this_task().cancelling())

    handlers.run(cancel, cancel, wait)
    assert reached == [1, 1, 0]


def test_one_that_cancels_itself_and_awaits_is_cancelled_and_so_is_what_it_awaits(
    handlers: Handlers,
):
    seen: list[Any] = []

    async def cancel(awaited: "asyncio.Future[None] | None") -> None:
        this_task().cancel()
        try:
            if awaited is None:
                await asyncio.sleep(0)
            else:
                await awaited
        except asyncio.CancelledError:
            seen.append(awaited is None or awaited.cancelled())
            raise

    async def cancel_and_wait() -> None:
        await cancel(asyncio.get_running_loop().create_future())

    async def cancel_and_yield() -> None:
        await cancel(None)

    async def look() -> None:
        while len(seen) < 2:
            await asyncio.sleep(0)
        seen.append("both")

    handlers.run(cancel_and_wait, cancel_and_yield, look)
    assert seen == [True, True, "both"]


def test_a_timeout_that_begins_in_the_first_step_ends_what_awaits(handlers: Handlers):
    seen: list[str] = []

    async def at_once() -> None:
        async with asyncio.timeout(60):
            seen.append("in time")

    async def too_long() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        assert not this_task().cancelling()
        seen.append("too late")

    handlers.run(at_once, too_long, at_once)
    assert sorted(seen) == ["in time", "in time", "too late"]


def test_one_that_raises_leaves_its_task_to_the_next(handlers: Handlers):
    names: list[str] = []

    async def fail() -> None:
        names.append(this_task().get_name())
        raise RuntimeError("no")

    async def note() -> None:
        names.append(this_task().get_name())

    handlers.run(note, fail, note)
    assert len(set(names)) == 1


def test_a_task_that_stands_by_at_the_end_is_neither_waited_for_nor_complained_of(
    handlers: Handlers, caplog: pytest.LogCaptureFixture
):
    async def nothing() -> None:
        pass

    handlers.run(nothing)
    handlers.bench.close()
    gc.collect()
    assert "Task was destroyed" not in caplog.text
    assert "have not ended" not in caplog.text
