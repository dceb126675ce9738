"""What a shard saves for itself, as an author sees it: in step with what was handled, always."""

import asyncio
import threading

import msgspec
import pytest

from cluster.testing import Packet, TestNode
from cluster.worker import App, Session, ShardId

ADD, READ, FAIL, SLOW = 1, 2, 3, 4


class Score(msgspec.Struct):
    points: int


def make_app() -> App:
    """Return a ladder: each packet adds to a sum that the shard saves."""
    app = App()

    def add(points: int) -> bytes:
        total = b"%d" % (int(app.saved.get("total", b"0")) + points)
        app.save("total", total)
        return total

    @app.on_packet(ADD)
    def added(session: Session, payload: bytes) -> None:
        session.send(ADD, add(int(payload)))

    @app.on_packet(READ)
    def read(session: Session, payload: bytes) -> None:
        session.send(READ, app.saved.get(payload.decode(), b"nothing"))

    @app.on_packet(FAIL)
    def fail(session: Session, payload: bytes) -> None:
        app.save("total", b"never")
        app.forget("total")
        app.save("else", b"never")
        raise ValueError("this handler fails")

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        add(int(payload))
        await asyncio.sleep(1)
        session.send(SLOW, add(int(payload)))

    @app.on_message
    def scored(score: Score, sender: ShardId) -> None:
        add(score.points)

    app.on_any(lambda session, packet_id, payload: app.tell(0, Score(int(payload))))
    return app


def test_a_successor_goes_on_with_the_sum():
    app = make_app()
    with TestNode(app) as node:
        client = node.connect()
        client.send(ADD, b"1")
        node.kill_worker()
        client.send(ADD, b"2")
        node.kill_worker(at_commit=True)
        client.send(ADD, b"3")  # which is added by two workers, and counts once
        assert client.received == [Packet(ADD, b"1"), Packet(ADD, b"3"), Packet(ADD, b"6")]


def test_it_outlives_the_session_that_led_to_it():
    with TestNode(make_app()) as node:
        first = node.connect()
        first.send(ADD, b"5")
        first.close()
        client = node.connect()
        assert node.sessions == [client.session]
        node.kill_worker()
        client.send(READ, b"total")
        assert client.received == [Packet(READ, b"5")]


def test_on_start_has_it_already_and_may_save():
    app = App()
    seen: list[dict[str, bytes]] = []

    @app.on_start
    def start() -> None:
        seen.append(dict(app.saved))
        app.save("starts", b"%d" % (int(app.saved.get("starts", b"0")) + 1))

    with TestNode(app) as node:
        node.kill_worker()
        node.kill_worker()
        assert seen == [{}, {"starts": b"1"}, {"starts": b"2"}]


def test_a_call_that_raises_saves_nothing():
    with TestNode(make_app(), raise_errors=False) as node:
        client, failing = node.connect(), node.connect()
        client.send(ADD, b"1")
        failing.send(FAIL)
        assert not failing.is_connected
        client.send(READ, b"total")
        node.kill_worker()
        client.send(READ, b"total")
        client.send(READ, b"else")
        assert [packet.payload for packet in client.received] == [b"1", b"1", b"1", b"nothing"]


def test_a_message_of_a_shard_counts_once():
    with TestNode(make_app()) as node:
        client = node.connect()
        client.send(99, b"7")
        node.kill_worker(at_commit=True)
        client.send(99, b"1")
        node.kill_worker()
        client.send(READ, b"total")
        assert client.received == [Packet(READ, b"8")]


def test_the_steps_of_a_coroutine_count_one_by_one_and_again():
    with TestNode(make_app()) as node:
        client = node.connect()
        client.send(SLOW, b"1")
        node.kill_worker()
        node.advance(1)
        # Its first step was committed, and comes again: at least once, as everything that awaits.
        assert client.received == [Packet(SLOW, b"3")]


def test_the_last_step_of_a_coroutine_counts_once():
    app = App()
    ends: list[int] = []

    @app.on_packet(SLOW)
    async def slow(session: Session, payload: bytes) -> None:
        await asyncio.sleep(1)
        ends.append(len(ends))
        app.save("sum", b"%d" % (int(app.saved.get("sum", b"0")) + int(payload)))
        session.send(SLOW, app.saved["sum"])

    with TestNode(app) as node:
        client = node.connect()
        client.send(SLOW, b"7")
        node.kill_worker()
        node.kill_worker(at_commit=True)
        node.advance(3)
        assert len(ends) > 1
        assert client.received == [Packet(SLOW, b"7")]


def test_what_is_told_and_forgotten_in_one_step_moves_once_however_much_it_is():
    app = App()
    count = 30_000  # more than may be on its way at one time
    deaths = [9_000, 20_000]
    moved = 0

    @app.on_message
    def scored(score: Score, sender: ShardId) -> None:
        app.save("total", b"%d" % (int(app.saved.get("total", b"0")) + score.points))

    @app.on_packet(ADD)
    def fill(session: Session, payload: bytes) -> None:
        for number in range(count):
            app.save(f"player {number}", b"%d" % number)

    @app.on_packet(SLOW)
    async def move(session: Session, payload: bytes) -> None:
        nonlocal moved
        for player in list(app.saved):
            await app.tell(1, Score(int(app.saved[player])))
            app.forget(player)
            moved += 1
            if deaths and moved == deaths[0]:
                del deaths[0]
                node.kill_worker(0)

    @app.on_packet(READ)
    def read(session: Session, payload: bytes) -> None:
        session.send(READ, b"%d %b" % (len(app.saved), app.saved.get("total", b"")))

    with TestNode(app, workers=2) as node:
        first, second = node.connect(), node.connect()
        first.send(ADD)
        first.send(SLOW)
        first.send(READ)
        second.send(READ)
        assert not deaths
        assert first.received == [Packet(READ, b"0 ")]
        assert second.received == [Packet(READ, b"1 %d" % (count * (count - 1) // 2))]


def test_shards_save_each_their_own():
    app = App()

    @app.on_packet(ADD)
    def save(session: Session, payload: bytes) -> None:
        app.save("shard", b"%d" % app.shard.shard)
        session.send(ADD, app.saved["shard"])

    with TestNode(app, workers=2) as node:
        clients = [node.connect(), node.connect()]
        for client in clients:
            client.send(ADD)
        node.kill_worker(0)
        node.kill_worker(1)
        for client in clients:
            client.send(ADD)
        assert sorted(client.received[0].payload for client in clients) == [b"0", b"1"]
        assert all(client.received[0] == client.received[1] for client in clients)


def test_no_other_thread_may_save():
    app = App()
    raised: list[BaseException] = []

    @app.on_packet(ADD)
    def save(session: Session, payload: bytes) -> None:
        def run() -> None:
            for call in (lambda: app.save("name", b"2"), lambda: app.forget("name")):
                with pytest.raises(RuntimeError, match="may not send, or do anything else") as info:
                    call()
                raised.append(info.value)

        app.save("name", b"1")
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        session.send(ADD, app.saved["name"])

    with TestNode(app) as node:
        client = node.connect()
        client.send(ADD)
        assert client.received == [Packet(ADD, b"1")]
        assert len(raised) == 2


@pytest.mark.parametrize(
    ("name", "blob", "error", "text"),
    [
        ("", b"", ValueError, "a name of 0 bytes; give 1 to 255"),
        ("n" * 256, b"", ValueError, "a name of 256 bytes"),
        (7, b"", TypeError, "a name is a str, not int: 7"),
        ("n", "text", TypeError, "save takes bytes, not str; encode it first"),
        ("n", None, TypeError, "save takes bytes, not NoneType"),
        ("n", b"x" * 65_537, ValueError, "a blob of 65537 bytes"),
    ],
)
def test_what_cannot_be_saved_is_told(name, blob, error: type[Exception], text: str):
    app = App()

    @app.on_packet(ADD)
    def save(session: Session, payload: bytes) -> None:
        with pytest.raises(error, match=text):
            app.save(name, blob)
        session.send(ADD)

    with TestNode(app) as node:
        client = node.connect()
        client.send(ADD)
        assert client.received == [Packet(ADD, b"")]


def test_how_much_is_a_setting():
    app = App()

    @app.on_packet(ADD)
    def save(session: Session, payload: bytes) -> None:
        with pytest.raises(ValueError, match="saved_bytes_max allows 0; forget"):
            app.save("name", b"")
        session.send(ADD)

    with TestNode(app, workers={"saved_bytes_max": 0}) as node:
        client = node.connect()
        client.send(ADD)
        assert client.received == [Packet(ADD, b"")]
