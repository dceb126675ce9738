"""Credit as a worker has it: who waits is served in order, and nobody overtakes."""

import asyncio
import tracemalloc
from contextlib import suppress

import pytest

from cluster.shared.tell_records import Purpose
from cluster.worker.tell_window import TellWindow

TELL, REPLY = Purpose.TELL, Purpose.REPLY


def test_credit_is_what_predecessors_and_this_worker_have_left():
    window = TellWindow(1_000, told=5_000, returned=4_500)
    assert window.has_credit(500, TELL)
    assert not window.has_credit(501, TELL)
    window.add(500)
    assert not window.has_credit(1, TELL)
    assert window.has_credit(1_000, REPLY)
    window.take_back(500)
    assert window.has_credit(500, TELL)


def test_to_hear_the_same_or_an_older_sum_again_changes_nothing():
    window = TellWindow(1_000)
    window.add(1_000)
    for returned in (600, 600, 300):
        window.hear(returned)
        assert window.on_the_way_bytes == 400


def test_a_window_in_which_nobody_waits_takes_little():
    """A worker has one for each node that it has ever told something."""
    tracemalloc.start()
    try:
        windows = [TellWindow(1_000) for _ in range(1_000)]
        assert tracemalloc.get_traced_memory()[0] < 400 * len(windows)
    finally:
        tracemalloc.stop()


def test_who_waits_is_served_in_order_and_nobody_overtakes():
    async def run() -> list[str]:
        window = TellWindow(1_000)
        window.add(1_000)
        served: list[str] = []

        async def wait(name: str, cost: int, purpose: Purpose = TELL) -> None:
            await window.wait(cost, purpose)
            window.add(cost)
            served.append(name)

        tasks = [asyncio.create_task(wait(name, cost)) for name, cost in (("a", 800), ("b", 100))]
        await asyncio.sleep(0)
        window.hear(100)
        assert not window.has_credit(1, TELL)  # "a" is first, and what it waits for is kept for it
        await asyncio.sleep(0)
        assert served == []
        window.hear(800)
        assert not window.has_credit(300, TELL)
        await asyncio.sleep(0)
        assert served == ["a"]
        window.hear(900)
        await asyncio.gather(*tasks)
        assert window.on_the_way_bytes == 1_000
        return served

    assert asyncio.run(run()) == ["a", "b"]


def test_who_waits_for_what_has_come_back_meanwhile_has_it_at_once():
    """Nothing more may come back, of which it would hear."""

    async def run() -> None:
        window = TellWindow(1_000, told=1_000)
        assert not window.has_credit(100, TELL)
        window.hear(1_000)
        await asyncio.wait_for(window.wait(100, TELL), 20)
        window.add(100)
        assert window.has_credit(900, TELL)
        assert not window.has_credit(901, TELL)

    asyncio.run(run())


def test_who_is_cancelled_leaves_its_place_and_what_was_kept_for_it():
    async def run() -> None:
        window = TellWindow(1_000)
        window.add(1_000)
        first, second, third = [asyncio.create_task(window.wait(400, TELL)) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        window.hear(400)  # the second is served, and cancelled before it goes on
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await third
        assert window.has_credit(400, TELL)

    asyncio.run(run())


def test_an_answer_does_not_wait_behind_what_is_told():
    async def run() -> None:
        window = TellWindow(1_000)
        window.add(1_000)
        telling = asyncio.create_task(window.wait(100, TELL))
        await asyncio.sleep(0)
        assert window.has_credit(1_000, REPLY)
        window.add(1_000)
        answering = asyncio.create_task(window.wait(100, REPLY))
        await asyncio.sleep(0)
        window.hear(100)
        await answering
        assert not telling.done()
        telling.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("credit_comes", ["before", "behind", "never"])
def test_who_is_cancelled_while_it_waits_takes_no_credit_and_gives_none(credit_comes: str):
    async def run() -> None:
        window = TellWindow(1_000, told=1_000)
        waiting = asyncio.ensure_future(window.wait(100, Purpose.TELL))
        behind = asyncio.ensure_future(window.wait(200, Purpose.TELL))
        await asyncio.sleep(0)
        if credit_comes == "before":
            window.hear(500)
        waiting.cancel()
        if credit_comes == "behind":  # it has not run yet
            window.hear(500)
        with suppress(asyncio.CancelledError):
            await waiting
        if credit_comes == "never":
            window.hear(500)
        await behind
        window.add(200)
        assert window.has_credit(300, Purpose.TELL)
        assert not window.has_credit(301, Purpose.TELL)

    asyncio.run(run())


def test_credit_that_is_left_unused_goes_to_the_next():
    async def run() -> list[str]:
        window = TellWindow(1_000)
        window.add(1_000)
        served: list[str] = []

        async def wait(name: str, *, uses: bool) -> None:
            await window.wait(1_000, TELL)
            served.append(name)
            if uses:
                window.add(1_000)
            else:
                window.leave_unused()

        tasks = [asyncio.create_task(wait(name, uses=name == "b")) for name in ("a", "b")]
        await asyncio.sleep(0)
        window.hear(1_000)
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        return served

    assert asyncio.run(run()) == ["a", "b"]
