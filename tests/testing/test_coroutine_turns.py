"""More coroutines than may be in progress: who waits for a turn, and who need not."""

import asyncio
import gc
import threading
import warnings
from dataclasses import dataclass, field

import msgspec
import pytest

from cluster.testing import NothingReceived, Packet, TestNode
from cluster.worker import App, Session, ShardId

SLOW, PLAIN, ASK = 1, 2, 3


@dataclass
class Seen:
    """What an application has been asked for."""

    begun: list[tuple[bytes, bool]] = field(default_factory=list)
    in_progress: int = 0
    most: int = 0


def _app(coroutines_max: int, waiting_max: int = 100) -> tuple[App, Seen]:
    app = App(coroutines_max=coroutines_max, coroutines_waiting_max=waiting_max)
    seen = Seen()

    @app.on_start
    def start() -> None:
        seen.in_progress = 0

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        seen.begun.append((payload, session.redelivered))
        seen.in_progress += 1
        seen.most = max(seen.most, seen.in_progress)
        await asyncio.sleep(10)
        seen.in_progress -= 1
        session.send(SLOW, payload)

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        session.send(PLAIN, payload)

    return app, seen


def test_plain_handlers_go_on_while_others_wait_for_their_turn(caplog: pytest.LogCaptureFixture):
    app, seen = _app(coroutines_max=2)
    with TestNode(app, workers=1) as node:
        clients = [node.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(SLOW, b"%d" % number)
            client.send(PLAIN, b"behind %d" % number)
        other = node.connect()
        for _ in range(3):
            other.send(PLAIN, b"at once")
            assert other.receive() == Packet(PLAIN, b"at once")
        assert [payload for payload, _ in seen.begun] == [b"0", b"1"]
        node.advance(9)
        assert len(seen.begun) == 2
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.endswith("further ones wait for their turn (App(coroutines_max=2))")
        node.advance(22)
        for number, client in enumerate(clients):
            assert client.receive() == Packet(SLOW, b"%d" % number)
            assert client.receive() == Packet(PLAIN, b"behind %d" % number)
    assert seen.begun == [(b"%d" % number, False) for number in range(5)]
    assert seen.most == 2


def test_those_that_waited_when_a_worker_died_wait_for_its_successor():
    app, seen = _app(coroutines_max=2)
    with TestNode(app, workers=1) as node:
        clients = [node.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(SLOW, b"%d" % number)
        node.advance(15)
        node.kill_worker()
        node.advance(40)
        for number, client in enumerate(clients):
            assert client.receive() == Packet(SLOW, b"%d" % number)
            with pytest.raises(NothingReceived):
                client.receive()
    assert seen.begun[:4] == [(b"%d" % number, False) for number in range(4)]
    assert seen.begun[4:] == [(b"%d" % number, True) for number in (2, 3, 4)]
    assert seen.most == 2


def test_when_as_many_wait_as_may_nothing_more_is_taken():
    app, seen = _app(coroutines_max=1, waiting_max=2)
    with TestNode(app, workers=1) as node:
        clients = [node.connect() for _ in range(3)]
        other = node.connect()
        began = node.now
        for number, client in enumerate(clients):
            client.send(SLOW, b"%d" % number)
        other.send(PLAIN, b"later")
        # The worker itself waits for the first of them, and time passes meanwhile.
        assert other.receive() == Packet(PLAIN, b"later")
        assert 10 <= node.now - began < 20
        node.advance(20)
        assert [client.receive().payload for client in clients] == [b"0", b"1", b"2"]
    assert seen.most == 1


def test_while_a_worker_is_full_the_others_go_on_and_time_passes_as_they_need_it():
    """Both are full of calls that ask the other, which answers in a quarter of a second."""
    app = App(coroutines_max=1, coroutines_waiting_max=1)

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        other = 1 - app.shard.shard
        answer = await app.ask(other, Question(int(payload)), Answer, timeout_s=60)
        session.send(ASK, b"%d" % answer.number)

    @app.on_message
    async def answer(question: Question, sender: ShardId) -> Answer:
        await asyncio.sleep(0.25)
        return Answer(-question.number)

    with TestNode(app, workers=2) as node:
        clients = [node.connect() for _ in range(8)]
        began = node.now
        for number, client in enumerate(clients, 1):
            client.send(ASK, b"%d" % number)
        node.advance(2)
        for number, client in enumerate(clients, 1):
            assert client.receive() == Packet(ASK, b"-%d" % number)
        assert node.now - began < 4


def test_the_worker_of_another_shard_may_be_killed_while_it_is_full():
    app = App(coroutines_max=1, coroutines_waiting_max=0)
    shards: list[tuple[ShardId, bool]] = []

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        shards.append((app.shard, session.redelivered))
        answer = await app.ask(1 - app.shard.shard, Question(7), Answer, timeout_s=60)
        session.send(ASK, b"%d" % answer.number)

    @app.on_message
    def answer(question: Question, sender: ShardId) -> Answer:
        if len(shards) == 1:
            node.kill_worker(sender.shard)
        return Answer(-question.number)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK)
        assert client.receive() == Packet(ASK, b"-7")
    assert [redelivered for _, redelivered in shards] == [False, True]
    assert len({shard for shard, _ in shards}) == 1


def test_a_worker_full_of_what_never_ends_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("cluster.testing.stage.OUTSIDE_MAX_S", 0.05)
    monkeypatch.setattr("cluster.testing.stage.WAITS_MAX", 100)
    monkeypatch.setattr("cluster.testing.stage.WAITS_MIN_S", 0.0)
    app = App(coroutines_max=1, coroutines_waiting_max=0)

    @app.on_packet(SLOW)
    async def never(session: Session, payload: bytes) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"which nothing in this node ends.*coroutines_max"):  # noqa: SIM117
        with TestNode(app) as node:
            node.connect().send(SLOW)


def test_what_a_full_worker_awaits_in_a_thread_may_take_any_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.testing.stage.OUTSIDE_MAX_S", 0.0)
    app = App(coroutines_max=1, coroutines_waiting_max=0)
    release = threading.Event()
    later = threading.Timer(0.2, release.set)

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        later.start()
        assert await asyncio.to_thread(release.wait, 20)
        session.send(SLOW, payload)

    with TestNode(app) as node:
        client = node.connect()
        began = node.now
        client.send(SLOW, b"done")
        assert client.receive() == Packet(SLOW, b"done")
        assert node.now == began


@pytest.mark.parametrize("has_timer", [False, True])
def test_a_full_worker_that_awaits_what_only_the_test_brings_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch, has_timer: bool
):
    monkeypatch.setattr("cluster.testing.stage.OUTSIDE_ALONE_MAX_S", 0.1)
    app = App(coroutines_max=1, coroutines_waiting_max=0)
    release = threading.Event()

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await asyncio.to_thread(release.wait)

    if has_timer:

        @app.every(1)
        def tick() -> None:
            pass

    try:
        with pytest.raises(RuntimeError, match=r"waited 0.1 s .* outside of this node.*coroutines"):  # noqa: SIM117
            with TestNode(app) as node:
                node.connect().send(SLOW)
                release.set()
    finally:
        release.set()


def test_timers_and_posted_functions_do_not_wait():
    app, _ = _app(coroutines_max=1)
    ticks: list[str] = []

    @app.every(1)
    async def tick() -> None:
        await asyncio.sleep(0.1)
        ticks.append("tick")

    with TestNode(app, workers=1) as node:
        clients = [node.connect() for _ in range(3)]
        for client in clients:
            client.send(SLOW, b"")

        async def posted() -> None:
            await asyncio.sleep(0.1)
            ticks.append("posted")

        app.post(posted)
        node.advance(5.5)
        assert ticks.count("tick") == 5
        assert ticks.count("posted") == 1
        node.advance(25)
        assert [client.receive() for client in clients] == [Packet(SLOW, b"")] * 3


class Question(msgspec.Struct):
    number: int


class Answer(msgspec.Struct):
    number: int


@pytest.mark.parametrize("coroutines_max", [1, 3])
def test_shards_that_ask_each_other_answer_each_other(coroutines_max: int):
    """The calls that await answers fill both; what answers them has turns of its own."""
    app = App(coroutines_max=coroutines_max)

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        other = 1 - app.shard.shard
        answer = await app.ask(other, Question(int(payload)), Answer, timeout_s=60)
        session.send(ASK, b"%d" % answer.number)

    @app.on_message
    async def answer(question: Question, sender: ShardId) -> Answer:
        await asyncio.sleep(1)
        return Answer(-question.number)

    with TestNode(app, workers=2) as node:
        clients = [node.connect() for _ in range(8)]
        for number, client in enumerate(clients, 1):
            client.send(ASK, b"%d" % number)
        node.advance(20)
        for number, client in enumerate(clients, 1):
            assert client.receive() == Packet(ASK, b"-%d" % number)


def test_a_worker_that_dies_leaves_no_message_that_waits_for_its_turn_unawaited():
    app = App(coroutines_max=1)
    begun: list[int] = []

    @app.on_packet(ASK)
    def tell(session: Session, payload: bytes) -> None:
        app.tell(0, Question(int(payload)))

    @app.on_message
    async def slow(question: Question, sender: ShardId) -> None:
        begun.append(question.number)
        await asyncio.sleep(10)

    with TestNode(app) as node, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        client = node.connect()
        for number in range(3):
            client.send(ASK, b"%d" % number)
        node.advance(1)
        node.kill_worker()
        node.advance(40)
        gc.collect()
    assert begun == [0, 0, 1, 2]
    assert [str(warning.message) for warning in told] == []


def test_a_client_that_has_gone_while_its_call_waited_ends_behind_it():
    app, seen = _app(coroutines_max=1)
    ended: list[str] = []

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        ended.append(f"{len(seen.begun)} {cause}")

    with TestNode(app, workers=1) as node:
        first, second = node.connect(), node.connect()
        first.send(SLOW, b"first")
        second.send(SLOW, b"second")
        second.close()
        node.advance(5)
        assert ended == []
        node.advance(20)
        assert ended == ["2 eof"]
        first.close()
        node.advance(1)
    assert ended == ["2 eof", "2 eof"]


def test_a_drain_waits_for_those_that_wait():
    app, seen = _app(coroutines_max=1)
    with TestNode(app, workers=1, supervisor={"drain_timeout_s": 100.0}) as node:
        clients = [node.connect() for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(SLOW, b"%d" % number)
        node.advance(1)
    assert [client.received for client in clients] == [
        [Packet(SLOW, b"%d" % number)] for number in range(3)
    ]
    assert seen.most == 1
