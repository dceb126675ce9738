"""Coroutines and plain handlers in sessions whose workers are killed at any moment.

Everything follows from the seed in the test's name: what the clients send, how long is awaited, and
when a worker dies, in a handler's step, at a commit, or in between.
"""

import asyncio
import random
from collections import Counter

import pytest

from cluster.testing import Packet, TestClient, TestNode
from cluster.worker import App, BindResult, Session

PLAIN, STEPS, FAILS = 1, 2, 3
CLIENTS = 5
PACKETS = 40


class Story:
    """An application that awaits and dies as chance wants it, and what it was called for."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.node: TestNode | None = None
        self.app = App(coroutines_max=3)
        self.calls: Counter[tuple[int, object]] = Counter()
        self.first_calls: Counter[tuple[int, object]] = Counter()
        self.deaths = 0
        app = self.app
        app.on_connected(self._connected)
        app.on_resumed(self._resumed)
        app.on_packet(PLAIN)(self._plain)
        app.on_packet(STEPS)(self._steps)
        app.on_packet(FAILS)(self._fails)
        app.on_disconnected(self._disconnected)

    def _maybe_die(self, chance: float) -> None:
        if self._rng.random() < chance:
            self.deaths += 1
            assert self.node is not None
            self.node.kill_worker()

    def _called(self, session: Session, what: object) -> None:
        name = (session.id, what)
        # Whoever is told that it is the first to be called is.
        assert session.redelivered or not self.calls[name]
        self.calls[name] += 1
        self._maybe_die(0.02)

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.choice([0, 0, 0.5, 2]))
        self._maybe_die(0.02)

    async def _connected(self, session: Session) -> None:
        self._called(session, "connected")
        await self._pause()
        session.save(b"0")

    async def _resumed(self, session: Session) -> None:
        await self._pause()
        assert session.saved is not None

    def _plain(self, session: Session, payload: bytes) -> None:
        self._called(session, session.sequence)
        assert not session.redelivered or session.saved is not None
        session.send(PLAIN, payload)
        self._maybe_die(0.02)

    async def _steps(self, session: Session, payload: bytes) -> None:
        sequence = session.sequence
        self._called(session, sequence)
        count = int(payload.split(b".")[1]) % 4
        for step in range(count):
            session.send(STEPS, b"%d.%d" % (step, sequence))
            session.save(b"%d" % sequence)
            await self._pause()
            if self._rng.random() < 0.3:
                user = f"{session.id} in {sequence}"
                result = await session.bind(user)
                # A call that had begun comes again when its session has been ended meanwhile.
                assert result is BindResult.BOUND or not session.is_open
            assert (session.sequence, session.saved) == (sequence, b"%d" % sequence)
        session.send(STEPS, b"end.%d" % sequence)

    async def _fails(self, session: Session, payload: bytes) -> None:
        self._called(session, session.sequence)
        await self._pause()
        session.send(FAILS, b"taken back")
        raise ZeroDivisionError

    async def _disconnected(self, session: Session, cause: str) -> None:
        self._called(session, cause)
        await self._pause()
        self.calls[session.id, "ended"] += 1


def _packets(rng: random.Random, number: int) -> list[tuple[int, bytes]]:
    packets = [(rng.choice([PLAIN, STEPS]), b"%d.%d" % (number, index)) for index in range(PACKETS)]
    if number == 0:
        packets[PACKETS // 2] = (FAILS, b"")
    return packets


def _check(client: TestClient, sent: list[tuple[int, bytes]]) -> None:
    """Hold what a client got against what it sent: in order, and no plain answer twice."""
    got = iter(client.received)
    for sequence, (packet_id, payload) in enumerate(sent, 1):
        if packet_id == FAILS:
            break
        if packet_id == PLAIN:
            assert next(got) == Packet(PLAIN, payload)
            continue
        step, count = 0, int(payload.split(b".")[1]) % 4
        while True:
            packet = next(got)
            if packet == Packet(STEPS, b"0.%d" % sequence):
                step = 0  # begun, maybe anew
            expected = b"end" if step == count else b"%d" % step
            assert packet == Packet(STEPS, b"%s.%d" % (expected, sequence))
            if step == count:
                break
            step += 1
    assert list(got) == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_plain_handlers_answer_once_and_coroutines_in_order(seed: int) -> None:
    rng = random.Random(seed)
    story = Story(rng)
    with TestNode(story.app, workers=1, raise_errors=False) as node:
        story.node = node
        clients = [node.connect() for _ in range(CLIENTS)]
        ids = [client.session.id for client in clients]
        unsent = [_packets(rng, number) for number in range(CLIENTS)]
        sent: list[list[tuple[int, bytes]]] = [[] for _ in clients]
        while any(unsent):
            number = rng.randrange(CLIENTS)
            for _ in range(rng.randrange(4)):
                if unsent[number] and clients[number].is_connected:
                    sent[number].append(unsent[number].pop(0))
                    clients[number].send(*sent[number][-1])
                elif not clients[number].is_connected:
                    unsent[number].clear()
            if rng.random() < 0.3:
                node.advance(rng.choice([0.1, 1, 3]))
            if rng.random() < 0.02:
                story.deaths += 1
                node.kill_worker(at_commit=rng.random() < 0.5)
        node.advance(500)
        for client, packets in zip(clients, sent, strict=True):
            _check(client, packets)
            client.close()
        node.advance(50)
        assert node.counters["lane_violations"] == 0
        assert {type(error) for error in node.errors} == {ZeroDivisionError}
    assert story.deaths > 0
    for session_id in ids:
        assert story.calls[session_id, "ended"] >= 1
    assert max(story.calls.values()) > 1
