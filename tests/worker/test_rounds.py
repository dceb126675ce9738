"""Rounds: when coroutines go on, what is settled behind that, and what is run to its end."""

import asyncio
import time
from collections.abc import Iterator
from math import inf

import pytest

from cluster.worker.rounds import Rounds
from cluster.worker.stops import StoppedInStart
from cluster.worker.task_loop import TaskLoop


class World:
    """All that rounds work on but the tasks, as far as they ask for it; and what was done."""

    def __init__(self) -> None:
        self.tasks = TaskLoop()
        self.done: list[str] = []
        self.slept: list[float] = []
        self.wants_settled = False
        self.has_come = False
        # The contact's.
        self.is_stopping = False
        self.next_beat = inf

    def make(self) -> Rounds:
        return Rounds(
            self.tasks,
            self,  # type: ignore[arg-type]
            (),
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            time.monotonic,
            None,
        )

    # -- as coroutines, lane, contact and publisher ------------------------------------------------

    def round(self, timeout_s: float) -> list[int]:
        self.slept.append(timeout_s)
        self.done.append("round")
        return self.tasks.round(min(timeout_s, 0.01))

    def settled(self) -> None:
        self.done.append("settled")
        self.wants_settled = False

    def has_events(self) -> bool:
        return self.has_come

    def time_to_beat(self, timeout_s: float | None) -> float:
        return 7.0 if timeout_s is None else timeout_s

    def beat(self) -> None:
        self.done.append("beat")

    def settle(self) -> None:
        self.done.append("settle")

    def publish_if_large(self) -> None:
        self.done.append("publish")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.tasks.close()


def test_what_wants_to_be_settled_is_behind_the_round(world: World):
    rounds = world.make()
    world.wants_settled = True
    rounds.round(0.0)
    rounds.round(0.0)
    assert world.done == ["round", "settle", "settled", "publish", "round", "publish"]


def test_a_wait_is_a_round_that_sleeps_unless_something_has_come(world: World):
    rounds = world.make()
    rounds.wait(None)
    rounds.wait(0.5)
    world.has_come = True
    rounds.wait(0.5)
    world.has_come, world.is_stopping = False, True
    rounds.wait(0.5)
    assert world.slept == [7.0, 0.5, 0.0, 0.0]
    assert world.done == ["round", "publish", "beat"] * 4
    assert rounds.has_waited


def test_what_is_run_to_its_end_goes_on_round_after_round_alive(world: World):
    steps = 0

    async def three_steps() -> None:
        nonlocal steps
        for _ in range(3):
            steps += 1
            await asyncio.sleep(0)

    assert world.make().to_end(three_steps()) is None
    assert steps == 3
    assert "beat" in world.done
    assert "publish" not in world.done


def test_what_it_raises_is_returned_in_whichever_step(world: World):
    async def raises(error: BaseException, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        raise error

    rounds = world.make()
    for steps in (0, 2):
        error = ValueError(steps)
        assert rounds.to_end(raises(error, steps)) is error


def test_what_takes_too_long_is_a_timeout(world: World):
    async def for_ever() -> None:
        await asyncio.Event().wait()

    error = world.make().to_end(for_ever(), 0.02)
    assert isinstance(error, TimeoutError)
    assert str(error) == "it has not come to its end within 0.02 s"


def test_what_has_any_time_is_broken_off_by_a_stop_and_what_has_not_is_not(world: World):
    async def a_moment() -> None:
        await asyncio.sleep(0.005)

    rounds = world.make()
    world.is_stopping = True
    assert rounds.to_end(a_moment(), 10.0) is None
    with pytest.raises(StoppedInStart):
        rounds.to_end(a_moment())
