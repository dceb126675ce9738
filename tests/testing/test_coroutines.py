"""Handlers that await, in a node whose time the test turns."""

import asyncio
import gc
import socket
import threading
import time
import warnings

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.testing import NothingReceived, Packet, TestClient, TestNode
from cluster.worker import App, BindResult, Session

SLOW, PLAIN, FAIL, DIE = 1, 2, 3, 4


def _app() -> tuple[App, list[tuple[str, bool]]]:
    app = App()
    seen: list[tuple[str, bool]] = []

    @app.on_start
    async def start() -> None:
        await asyncio.sleep(2)
        seen.append(("started", False))

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        seen.append((payload.decode(), session.redelivered))
        session.send(SLOW, b"first " + payload)
        await asyncio.sleep(10)
        session.send(SLOW, b"second " + payload)

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        session.send(PLAIN, payload)

    @app.on_packet(FAIL)
    async def fail(session: Session, payload: bytes) -> None:
        await asyncio.sleep(1)
        raise ZeroDivisionError(payload)

    @app.on_stop
    async def stop() -> None:
        await asyncio.sleep(1)
        seen.append(("stopped", False))

    return app, seen


def test_a_plain_handler_may_return_a_coroutine():
    """As one does that is a part of another, or decides first what is to be awaited."""
    app = App()

    async def answer(session: Session, payload: bytes) -> None:
        await asyncio.sleep(1)
        session.send(SLOW, payload)

    app.on_packet(SLOW)(lambda session, payload: answer(session, payload))
    with TestNode(app) as node:
        client = node.connect()
        client.send(SLOW, b"later")
        node.advance(1)
        assert client.receive() == Packet(SLOW, b"later")


def test_time_that_is_awaited_is_the_time_of_the_test():
    app, seen = _app()
    with TestNode(app, workers=2) as node:
        one, other = node.connect(), node.connect()
        one.send(SLOW, b"a")
        one.send(PLAIN, b"behind it")
        other.send(PLAIN, b"overtakes")
        assert one.receive() == Packet(SLOW, b"first a")
        assert other.receive() == Packet(PLAIN, b"overtakes")
        node.advance(9.9)
        with pytest.raises(NothingReceived):
            one.receive()
        node.advance(0.2)
        assert one.receive() == Packet(SLOW, b"second a")
        assert one.receive() == Packet(PLAIN, b"behind it")
    assert seen == [("started", False)] * 2 + [("a", False)] + [("stopped", False)] * 2


def test_a_call_in_progress_begins_anew_when_its_worker_is_killed():
    app, seen = _app()
    with TestNode(app, workers=1) as node:
        client = node.connect()
        client.send(SLOW, b"a")
        client.send(PLAIN, b"behind it")
        node.advance(5)
        node.kill_worker()
        node.advance(9)
        assert [client.receive() for _ in range(2)] == [Packet(SLOW, b"first a")] * 2
        node.advance(2)
        assert client.receive() == Packet(SLOW, b"second a")
        assert client.receive() == Packet(PLAIN, b"behind it")
    assert [call for call in seen if call[0] == "a"] == [("a", False), ("a", True)]


def test_what_waits_behind_the_end_of_its_session_is_called_in_no_life():
    app, calls = App(), []
    node = TestNode(app)

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        calls.append(payload)
        await asyncio.sleep(1)
        session.disconnect()
        app.post(node.kill_worker)  # its end is published then, and what waits had no turn yet

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        calls.append(payload)

    with node:
        client = node.connect()
        client.send(SLOW, b"ends it")
        client.send(PLAIN, b"behind its end")
        client.send(PLAIN, b"behind its end, too")
        node.advance(5)
        assert calls == [b"ends it"]
        assert not client.is_connected


def test_an_answer_to_a_join_behind_the_end_of_its_session_is_heard_of_in_no_life():
    app, heard = App(), []
    node = TestNode(app)

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await asyncio.sleep(1)
        session.join("room")
        session.disconnect()
        await asyncio.sleep(1)
        app.post(node.kill_worker)  # its end is published then, and what waits had no turn yet

    @app.on_joined
    def joined(session: Session, name: str) -> None:
        heard.append(name)

    with node:
        node.connect().send(SLOW)
        node.advance(1.5)
        assert "2 calls" in node.describe()  # this one, and `on_disconnected`
        node.advance(5)
    assert heard == []


def test_the_rest_of_a_record_is_redelivered_also_behind_a_wait_for_coroutines():
    app, calls = App(coroutines_max=1, coroutines_waiting_max=0), []

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        calls.append((session.sequence, session.redelivered))
        await asyncio.sleep(1)

    @app.every(0.5)
    async def longer() -> None:
        await asyncio.sleep(3)  # so there are too many, also when the session waits no more

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        calls.append((session.sequence, session.redelivered))

    with TestNode(app) as node:
        client = node.connect()
        node.kill_worker(at_commit=True)
        client.send_bytes(make_packet(SLOW, b"") + make_packet(PLAIN, b"") * 2)
        client.send(PLAIN)
        node.advance(5)
    assert calls == [(1, False), (1, True), (2, True), (3, True), (4, False)]


def test_a_worker_may_be_killed_in_a_step():
    app, seen = _app()
    lives: list[bool] = []

    @app.on_packet(DIE)
    async def die(session: Session, payload: bytes) -> None:
        lives.append(session.redelivered)
        await asyncio.sleep(1)
        if len(lives) == 1:
            node.kill_worker()
        session.send(DIE, payload)

    with TestNode(app, workers=1) as node:
        client = node.connect()
        client.send(DIE, b"x")
        node.advance(5)  # two of them pass while the successor starts
        assert client.receive() == Packet(DIE, b"x")
        assert lives == [False, True]


def test_what_a_coroutine_raises_reaches_the_test():
    app, _ = _app()
    with pytest.raises(ZeroDivisionError), TestNode(app, workers=1) as node:
        client = node.connect()
        client.send(FAIL, b"")
        node.advance(1)
        assert not client.is_connected


def test_what_a_thread_brings_is_waited_for_in_real_time():
    app = App()
    may_go_on = threading.Event()

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        async with asyncio.timeout(60):
            await asyncio.to_thread(may_go_on.wait)
        session.send(SLOW, payload)

    @app.on_packet(FAIL)
    async def fail(session: Session, payload: bytes) -> None:
        await asyncio.to_thread(may_go_on.wait)
        raise ZeroDivisionError(payload)

    with TestNode(app) as node:
        client, other = node.connect(), node.connect()
        with pytest.raises(NothingReceived, match=r"the node is at rest$"):
            client.receive()
        try:
            client.send(SLOW, b"x")
            with pytest.raises(NothingReceived, match=r"1 call that awaits.*`node\.wait_until`"):
                client.receive()
            with pytest.raises(TimeoutError, match=r"within 0\.01 s; the node is at rest, but for"):
                node.wait_until(lambda: client.received, timeout_s=0.01)
            other.send(FAIL)
        finally:
            may_go_on.set()
        with pytest.raises(ZeroDivisionError):
            node.wait_until(lambda: not other.is_connected)
        before = node.now
        node.wait_until(lambda: client.received)
        assert client.receive() == Packet(SLOW, b"x")
        assert node.now == before


async def connect_to(address: tuple[str, int]) -> None:
    """As those who connect to a database do: a timeout, a thread that looks a name up, a socket."""
    async with asyncio.timeout(10):
        await asyncio.to_thread(time.sleep, 0.05)
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()


def test_what_start_and_end_await_outside_takes_its_time():
    app = App()
    done: list[str] = []

    def answer() -> None:
        for _ in range(3):
            client, _ = listener.accept()
            with client:
                time.sleep(0.05)
                client.sendall(b"hello")

    @app.on_start
    async def start() -> None:
        await connect_to(listener.getsockname())
        before = app_time()
        await asyncio.sleep(60)
        done.append(f"start, {app_time() - before:.0f} s later")

    def app_time() -> float:
        return asyncio.get_running_loop().time()

    @app.on_disconnected
    async def gone(session: Session, cause: str) -> None:
        await connect_to(listener.getsockname())
        done.append(cause)

    @app.on_stop
    async def stop() -> None:
        await connect_to(listener.getsockname())
        done.append("stop")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with TestNode(app) as node:
                node.connect()
        finally:
            for _ in range(3 - len(done)):  # what the application has not asked for
                socket.create_connection(listener.getsockname()).close()
            thread.join()
    assert done == ["start, 60 s later", "drain", "stop"]


@pytest.mark.parametrize("waits", [True, False])
def test_what_an_end_that_awaits_has_saved_is_there_when_it_begins_anew(waits: bool):
    """Whether or not it has waited for a call before it."""
    app, _ = _app()
    saved: list[bytes | None] = []

    @app.on_disconnected
    async def ended(session: Session, cause: str) -> None:
        saved.append(session.saved)
        await asyncio.sleep(1)
        session.save(b"half of it")
        await asyncio.sleep(5)

    with TestNode(app) as node:
        client = node.connect()
        if waits:
            client.send(SLOW, b"a")
        client.close()
        node.advance(12 if waits else 2)
        node.kill_worker()
        node.advance(10)
    assert saved == [None, b"half of it"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_session_whose_end_was_told_is_open_no_more(waits: bool):
    app, _ = _app()
    sessions: list[tuple[Session, bool]] = []

    @app.on_disconnected
    def ended(session: Session, cause: str) -> None:
        sessions.append((session, session.is_open))

    with TestNode(app) as node:
        client = node.connect()
        if waits:
            client.send(SLOW, b"a")
        client.close()
        node.advance(11)
        [(session, was_open)] = sessions
        assert was_open
        assert not session.is_open


def test_a_drain_waits_for_what_awaits():
    app, seen = _app()
    app_ended: list[str] = []

    @app.on_disconnected
    async def ended(session: Session, cause: str) -> None:
        await asyncio.sleep(1)
        app_ended.append(cause)

    with TestNode(app, workers=1) as node:
        client = node.connect()
        client.send(SLOW, b"a")
        client.receive()
        node.advance(5)
    assert app_ended == ["drain"]


def test_a_worker_full_of_coroutines_that_await_binds_gets_on_with_them():
    """Each session's next answer is held back until the one before is heard, and no longer."""
    app = App(coroutines_max=1, coroutines_waiting_max=0)

    @app.on_packet(SLOW)
    async def login(session: Session, payload: bytes) -> None:
        await session.bind(payload.decode())
        await session.bind(f"{session.user} again")
        session.send(SLOW, str(session.user).encode())

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        session.send(PLAIN, str(session.user).encode())

    with TestNode(app) as node:
        clients = {name: node.connect() for name in ("ann", "bob", "eve")}
        for name, client in clients.items():
            for number in range(3):
                client.send(SLOW, b"%s %d" % (name.encode(), number))
            client.send(PLAIN, b"")
        for name, client in clients.items():
            expected = [Packet(SLOW, b"%s %d again" % (name.encode(), n)) for n in range(3)]
            assert [client.receive() for _ in range(3)] == expected
            assert client.receive() == Packet(PLAIN, expected[-1].payload)


@pytest.mark.parametrize("has_bound", [False, True])
@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("waiting_max", [0, 100])
@pytest.mark.parametrize("coroutines_max", [1, 2, 10])
def test_who_asks_for_a_bind_when_the_client_has_gone_does_not_wait_for_ever(
    coroutines_max: int, waiting_max: int, dies: bool, has_bound: bool
):
    """Nor where the end is among what a worker full of such coroutines does not take."""
    app = App(coroutines_max=coroutines_max, coroutines_waiting_max=waiting_max)
    clients: list[TestClient] = []
    results: list[BindResult] = []
    app_ended: list[str] = []

    @app.on_packet(SLOW)
    async def login(session: Session, payload: bytes) -> None:
        if has_bound:
            await session.bind(f"{payload.decode()} before")
        clients[int(payload)].close()
        await asyncio.sleep(1)
        results.append(await session.bind(payload.decode()))

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        app_ended.append(cause)

    with TestNode(app) as node:
        clients.extend(node.connect() for _ in range(4))
        for number, client in enumerate(clients):
            client.send(SLOW, b"%d" % number)
        if dies:
            node.kill_worker()
        node.advance(60)
        assert app_ended == ["eof"] * 4
    assert results == [BindResult.REJECTED] * 4


def test_a_coroutine_that_kills_the_worker_of_another_shard_goes_on_in_its_own_loop():
    app = App()

    @app.on_start
    async def start() -> None:
        await asyncio.sleep(0)

    @app.on_packet(DIE)
    async def kill(session: Session, payload: bytes) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        node.kill_worker(1 - app.shard.shard)
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(1)
        session.send(DIE, payload)

    with TestNode(app, workers=2) as node:
        clients = [node.connect() for _ in range(4)]
        for client in clients:
            client.send(DIE, b"done")
            node.advance(1)
            assert client.receive() == Packet(DIE, b"done")


@pytest.mark.parametrize("event", ["packet", "bound", "joined"])
def test_a_call_that_has_ended_its_session_is_run_to_its_end_by_the_successor(event: str):
    app = App()
    seen: list[str] = []

    async def leave(session: Session) -> None:
        seen.append("begins")
        session.disconnect()
        await asyncio.sleep(1)
        seen.append("ends")

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        if event == "bound":
            session.bind("ann")
        else:
            session.join("room")

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await leave(session)

    @app.on_bound
    async def bound(session: Session, result: BindResult) -> None:
        await leave(session)

    @app.on_joined
    async def joined(session: Session, group: str) -> None:
        await leave(session)

    with TestNode(app, workers=1) as node:
        client = node.connect()
        client.send(SLOW if event == "packet" else PLAIN, b"")
        node.settle()
        assert seen == ["begins"]
        node.kill_worker()
        node.advance(5)
    assert seen == ["begins", "begins", "ends"]


@pytest.mark.parametrize("catches", [False, True])
def test_a_call_that_cancels_itself_and_awaits_nothing_ends_as_any(catches: bool):
    app = App()

    @app.on_packet(SLOW)
    async def cancel_itself(session: Session, payload: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            session.send(SLOW, payload)
            if not catches:
                raise

    @app.on_packet(PLAIN)
    def plain(session: Session, payload: bytes) -> None:
        session.send(PLAIN, payload)

    with TestNode(app) as node:
        client = node.connect()
        for number in range(3):
            client.send(SLOW, b"%d" % number)
            client.send(PLAIN, b"%d" % number)
            if catches:
                assert client.receive() == Packet(SLOW, b"%d" % number)
            assert client.receive() == Packet(PLAIN, b"%d" % number)
        assert node.describe() == "the node is at rest"


def test_who_cancels_all_tasks_cancels_no_call_that_is_still_to_come():
    app, _ = _app()

    @app.on_any
    def cancel_all(session: Session, packet_id: int, payload: bytes) -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    @app.on_packet(20)
    async def at_once(session: Session, payload: bytes) -> None:
        session.send(20, payload)

    with TestNode(app) as node:
        client = node.connect()
        client.send(20, b"done in its first step")
        client.send(30)
        client.send(SLOW, b"a")
        node.advance(11)
        payloads = [b"done in its first step", b"first a", b"second a"]
        assert [packet.payload for packet in client.received] == payloads


@pytest.mark.parametrize("way", ["first step", "later step", "no group"])
def test_a_worker_killed_beside_tasks_that_have_not_begun_leaves_nothing_unawaited(way: str):
    app = App()

    async def child() -> None:
        await asyncio.sleep(1)

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        if way == "later step":
            await asyncio.sleep(1)
        if way == "no group":
            task = asyncio.create_task(child())
            if not session.redelivered:
                node.kill_worker()
            await task
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())
                if not session.redelivered:
                    node.kill_worker()
        session.send(SLOW, payload)

    with TestNode(app) as node, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        client = node.connect()
        client.send(SLOW, b"done")
        node.advance(3)
        assert client.receive() == Packet(SLOW, b"done")
        gc.collect()
    assert [str(warning.message) for warning in told] == []
