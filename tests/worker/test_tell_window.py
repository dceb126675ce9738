"""Credit for what a worker tells: who waits for it may be cancelled at any moment."""

import asyncio
from contextlib import suppress

import pytest

from cluster.shared.tell_records import Purpose
from cluster.worker.tell_window import TellWindow


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
