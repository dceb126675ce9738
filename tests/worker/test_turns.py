"""Turns of coroutines that end, raise and are cancelled as the seed in the test's name has it."""

import asyncio
import gc
import random
import types
import weakref
from collections.abc import Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest

from cluster.worker.turns import Turns


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, None]:
    """Run `coroutine`, which has taken its first step and awaits `awaited`, to its end."""
    with suppress(StopIteration):
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)


class Story:
    """Calls that come one after the other, and how they end."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._most = self._rng.randrange(1, 4)
        self._in_progress = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._num_begun = -1
        self.waits = 0
        self.turns = Turns(self._most, self._rng.randrange(4), self._some_wait)

    def _some_wait(self) -> None:
        assert self.turns.are_taken
        self.waits += 1

    async def _call(self, number: int) -> None:
        assert number > self._num_begun, "they begin in the order in which they came"
        self._num_begun = number
        self._in_progress += 1
        assert self._in_progress <= self._most
        try:
            for _ in range(self._rng.randrange(4)):
                await asyncio.sleep(0)
                if self._rng.random() < 0.2:
                    raise self._rng.choice([ValueError, asyncio.CancelledError])
        finally:
            self._in_progress -= 1

    async def _first(self, number: int) -> None:
        try:
            await self._call(number)
        finally:
            self.turns.free()

    async def _in_task(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        with suppress(ValueError):
            await coroutine

    async def run(self) -> None:
        turns = self.turns
        for number in range(60):
            if turns.are_taken:
                coroutine = turns.in_turn(self._call(number))
                awaited = coroutine.send(None)
                self._tasks.append(asyncio.create_task(self._in_task(_go_on(coroutine, awaited))))
            else:
                turns.take()
                self._tasks.append(asyncio.create_task(self._in_task(self._first(number))))
            await asyncio.sleep(0)  # a task that is cancelled before it has begun runs nothing
            assert turns.is_full <= turns.are_taken
            for _ in range(self._rng.randrange(2)):
                await asyncio.sleep(0)
            if self._rng.random() < 0.3:
                self._rng.choice(self._tasks[-5:]).cancel()
        done, pending = await asyncio.wait(self._tasks, timeout=5)
        assert not pending
        assert not [error for task in done if not task.cancelled() and (error := task.exception())]


@pytest.mark.parametrize("seed", range(50))
def test_however_calls_end_all_turns_are_free_in_the_end(seed: int) -> None:
    story = Story(seed)
    asyncio.run(story.run())
    turns = story.turns
    assert (turns.running, turns.waiting_count) == (0, 0)
    assert not turns.are_taken
    assert not turns.is_full


def test_it_is_told_each_time_some_begin_to_wait_where_nobody_did() -> None:
    told: list[int] = []

    async def story() -> None:
        for expected in ([0], [0, 0]):
            turns.take()
            waiting = [asyncio.create_task(turns.in_turn(asyncio.sleep(0))) for _ in range(3)]
            await asyncio.sleep(0)
            assert turns.waiting_count == 3
            assert told == expected
            turns.free()
            await asyncio.gather(*waiting)

    turns = Turns(1, 9, lambda: told.append(turns.waiting_count))
    asyncio.run(story())


def test_nothing_is_kept_of_those_that_have_waited() -> None:
    waited: list[weakref.ref[Coroutine[Any, Any, None]]] = []

    def wait(turns: Turns) -> asyncio.Task[None]:
        coroutine = asyncio.sleep(0)
        waited.append(weakref.ref(coroutine))
        return asyncio.create_task(turns.in_turn(coroutine))

    async def story(turns: Turns) -> None:
        turns.take()
        ends, is_cancelled = wait(turns), wait(turns)
        await asyncio.sleep(0)
        is_cancelled.cancel()
        turns.free()
        await asyncio.wait([ends, is_cancelled])

    turns = Turns(1, 9, lambda: None)
    asyncio.run(story(turns))
    gc.collect()
    assert [ref() for ref in waited] == [None, None]
    assert (turns.running, turns.waiting_count) == (0, 0)


def test_those_that_wait_when_the_loop_is_closed_are_let_go() -> None:
    begun = []

    async def call() -> None:
        begun.append(True)

    turns = Turns(1, 1, lambda: None)
    loop = asyncio.new_event_loop()
    turns.take()
    task = loop.create_task(turns.in_turn(call()))
    loop.run_until_complete(asyncio.sleep(0))
    assert turns.is_full
    task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    assert task.cancelled()
    waiting = turns.in_turn(call())
    loop.run_until_complete(_first_step(waiting))
    loop.close()
    turns.close()
    waiting.close()
    assert not begun
    assert turns.waiting_count == 0


async def _first_step(coroutine: Coroutine[Any, Any, Any]) -> None:
    coroutine.send(None)
