"""More calls than may be in progress, which end in all ways there are, while workers die.

Everything follows from the seed in the test's name. Whatever happens, in the end each turn is free,
nothing is deferred, and whoever was not ended has all answers, in order.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from cluster.testing import Packet, TestClient, TestNode
from cluster.worker import App, Session

PLAIN, AT_ONCE, STEPS, TIMEOUT, FUTURE, CANCELS, RAISES, ENDS = range(1, 9)
ANSWERED = (PLAIN, AT_ONCE, STEPS, TIMEOUT, FUTURE)
CLIENTS = 8
MOVES = 120


class Story:
    """An application whose calls end as chance has it, and who was ended by that."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.most = self.rng.randrange(1, 4)
        self.app = App(
            coroutines_max=self.most, coroutines_waiting_max=self.rng.choice([0, 1, 3, 100])
        )
        self.node: TestNode | None = None
        self.in_progress: set[asyncio.Task[Any] | None] = set()
        self.ended: set[int] = set()
        app = self.app
        app.on_start(lambda: self.in_progress.clear())
        app.on_packet(PLAIN)(lambda session, payload: session.send(PLAIN, payload))
        app.on_packet(AT_ONCE)(self._at_once)
        for packet_id, run in (
            (STEPS, self._pause),
            (TIMEOUT, self._timeout),
            (FUTURE, self._future),
            (CANCELS, self._cancel),
            (RAISES, self._raise),
        ):
            app.on_packet(packet_id)(self._handler(packet_id, run))
        app.on_packet(ENDS)(self._ends)

    def _handler(
        self, packet_id: int, run: Callable[[], Awaitable[None]]
    ) -> Callable[[Session, bytes], Awaitable[None]]:
        async def handler(session: Session, payload: bytes) -> None:
            if packet_id == RAISES:
                self.ended.add(session.id)
            task = asyncio.current_task()
            self.in_progress.add(task)
            assert len(self.in_progress) <= self.most
            try:
                await run()
                session.send(packet_id, payload)
            finally:
                self.in_progress.discard(task)

        return handler

    def maybe_die(self) -> None:
        if self.rng.random() < 0.01:
            assert self.node is not None
            self.node.kill_worker(at_commit=self.rng.random() < 0.5)

    async def _at_once(self, session: Session, payload: bytes) -> None:
        session.send(AT_ONCE, payload)
        self.maybe_die()

    async def _pause(self) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            await asyncio.sleep(self.rng.choice([0, 0, 0.1, 2]))
            self.maybe_die()

    async def _timeout(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rng.choice([0, 0.05, 3])):
                await asyncio.sleep(1)

    async def _future(self) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(self.rng.choice([0, 1]), future.set_result, None)
        await future

    async def _cancel(self) -> None:
        if self.rng.random() < 0.5:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        with suppress(asyncio.CancelledError):
            await self._pause()
        if self.rng.random() < 0.5:
            raise asyncio.CancelledError

    async def _raise(self) -> None:
        if self.rng.random() < 0.5:
            await self._pause()
        raise ZeroDivisionError

    async def _ends(self, session: Session, payload: bytes) -> None:
        self.ended.add(session.id)
        session.disconnect("bye")
        await self._pause()


def _all_free(node: TestNode) -> None:
    (life,) = node._lives._incarnations.values()
    coroutines = life.worker._dispatcher.deferral.coroutines
    assert coroutines is not None
    assert (coroutines.running, coroutines.waiting, coroutines.num_bytes) == (0, 0, 0)
    assert not coroutines.is_full
    assert node.describe() == "the node is at rest"


@pytest.mark.parametrize("seed", range(40))
def test_however_calls_end_all_turns_are_free_and_all_is_answered(seed: int) -> None:
    story = Story(seed)
    rng = story.rng
    with TestNode(story.app, raise_errors=False) as node:
        story.node = node
        clients = [node.connect() for _ in range(CLIENTS)]
        ids = {client: client.session.id for client in clients}
        sent: dict[TestClient, list[Packet]] = {client: [] for client in clients}
        for number in range(MOVES):
            client = rng.choice(clients)
            for _ in range(rng.randrange(4)):
                if client.is_connected:
                    packet_id = rng.choice(ANSWERED if rng.random() < 0.9 else range(1, 9))
                    client.send(packet_id, b"%d" % number)
                    sent[client].append(Packet(packet_id, b"%d" % number))
            if rng.random() < 0.01:
                story.ended.add(ids[client])
                client.close()
            elif rng.random() < 0.3:
                node.advance(rng.choice([0.05, 0.5, 3]))
            elif rng.random() < 0.03:
                node.kill_worker(at_commit=rng.random() < 0.5)
        node.advance(1_000)
        _all_free(node)
        for client, packets in sent.items():
            if ids[client] not in story.ended:
                answers = [packet for packet in client.received if packet.id in ANSWERED]
                assert answers == [packet for packet in packets if packet.id in ANSWERED]
        for client in clients:
            client.close()
        node.advance(10)
        _all_free(node)
        assert node.counters["lane_violations"] == 0
        assert {type(error) for error in node.errors} <= {ZeroDivisionError}
