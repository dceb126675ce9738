"""Messages between shards of several nodes: order, cuts, deaths, windows, and lives that end."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cluster.shared.lane import LaneViolation
from cluster.shared.tell_records import BY_KEY, Purpose, pack_tell
from cluster.worker import App, AskFailed, Full, Session, ShardId, Undelivered
from tests.gateway.tell_world import Prepare, TellWorld, payloads, send

TELL, TELL_KEY, ASK, FLOOD = range(1, 5)

MakeTellWorld = Callable[..., TellWorld]


class Order(msgspec.Struct):
    """What a client has its shard tell."""

    node: int
    shard: int
    number: int
    size: int = 0
    key: str = ""


class Note(msgspec.Struct):
    """What shards tell each other."""

    number: int
    filling: bytes = b""


class Reply(msgspec.Struct):
    """What they answer."""

    number: int


class Heard:
    """What shards were given, by the worker that handled it, and what was undelivered."""

    def __init__(self) -> None:
        self.notes: defaultdict[ShardId, list[tuple[ShardId, int]]] = defaultdict(list)
        self.undelivered: list[tuple[ShardId, int, Any]] = []

    def prepare(self, app: App) -> None:
        @app.on_packet(TELL)
        async def tell(session: Session, order: Order) -> None:
            await app.tell(ShardId(order.node, order.shard), Note(order.number, bytes(order.size)))

        @app.on_packet(TELL_KEY)
        def tell_key(session: Session, order: Order) -> None:
            app.tell_key(order.key, Note(order.number))

        @app.on_packet(FLOOD)
        def flood(session: Session, order: Order) -> None:
            told = 0
            try:
                while True:
                    app.tell(ShardId(order.node, order.shard), Note(told, bytes(order.size)))
                    told += 1
            except Full:
                session.send(FLOOD, b"%d" % told)

        @app.on_packet(ASK)
        async def ask(session: Session, order: Order) -> None:
            to = order.key or ShardId(order.node, order.shard)
            try:
                reply = await app.ask(to, Note(order.number), Reply, timeout_s=5)
            except (AskFailed, Undelivered, TimeoutError) as error:
                session.send(ASK, type(error).__name__.encode())
            else:
                session.send(ASK, b"%d" % reply.number)

        @app.on_message
        def take(message: Note, sender: ShardId) -> Reply:
            self.notes[app.shard].append((sender, message.number))
            return Reply(message.number * 2)

        @app.on_undelivered
        def lost(message: Note, receiver: Any) -> None:
            self.undelivered.append((app.shard, message.number, receiver))

    def numbers(self, node: int, shard: int = 0) -> list[int]:
        return [number for _, number in self.notes[ShardId(node, shard)]]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make_tell_world() -> Iterator[MakeTellWorld]:
    made: list[TellWorld] = []

    def make(prepare: Prepare, *args: Any, **options: Any) -> TellWorld:
        made.append(TellWorld(prepare, *args, **options))
        made[-1].run_linked()
        return made[-1]

    yield make
    for world in made:
        world.close()


def test_a_message_reaches_a_shard_of_another_node(make_tell_world: MakeTellWorld, heard: Heard):
    world = make_tell_world(heard.prepare, 2, 2)
    client = world[1].connect()
    for number in range(5):
        send(client, TELL, Order(2, 1, number))
    world.run(lambda: len(heard.notes[ShardId(2, 1)]) == 5, "the messages")
    assert heard.notes[ShardId(2, 1)] == [(ShardId(1, 0), number) for number in range(5)]
    world.run(lambda: not world[1].gateway.shards[0].tells.windows.on_the_way_bytes, "their end")
    assert world[1].count("tells") == world[2].count("messages") == 5


def test_every_shard_comes_to_the_same_owner_of_a_key(make_tell_world: MakeTellWorld, heard: Heard):
    world = make_tell_world(heard.prepare, 3, 2)
    clients = [world[node].connect() for node in (1, 1, 2, 3)]
    keys = [f"key-{number}" for number in range(24)]
    for client in clients:
        for number, key in enumerate(keys):
            send(client, TELL_KEY, Order(0, 0, number, key=key))
    world.run(lambda: sum(map(len, heard.notes.values())) == 96, "the messages")
    for number in range(24):
        owners = {shard for shard, told in heard.notes.items() if number in [n for _, n in told]}
        assert len(owners) == 1
    assert len(heard.notes) == 6


def test_what_was_told_while_nodes_are_parted_comes_in_order(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    for number in range(60):
        send(client, TELL, Order(2, 0, number, size=1_000))
        if number % 7 == 0:
            world[1].cut(2)
        world.turn()
    world.run(lambda: len(heard.numbers(2)) >= 60, "the messages")
    assert heard.numbers(2) == list(range(60))


def test_a_window_bounds_what_is_on_its_way_to_a_node_that_is_silent(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    world[2].kill()
    send(client, FLOOD, Order(2, 0, 0, size=10_000))
    world.run(lambda: payloads(client), "the end of the flood")
    assert payloads(client) == [b"25"]  # of 256 KiB, a quarter of 1 MiB
    send(client, FLOOD, Order(2, 0, 0, size=10_000))
    send(client, FLOOD, Order(1, 0, 0, size=10_000))
    world.run(lambda: len(payloads(client)) == 3, "two more")
    assert payloads(client)[1:] == [b"0", b"25"]
    assert heard.numbers(1) == list(range(25))


def test_a_successor_may_tell_what_its_predecessor_has_left_of_the_window(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    world[2].kill()
    for number in range(10):
        send(client, TELL, Order(2, 0, number, size=10_000))
    world.run(lambda: world[1].count("tells") == 10, "ten messages on their way")
    world[1].shards[0].kill()
    send(client, FLOOD, Order(2, 0, 0, size=10_000))
    world.run(lambda: payloads(client), "the end of the flood")
    assert payloads(client) == [b"15"]  # of 25
    world[2].begin()
    world.run(lambda: len(heard.undelivered) == 25, "that all of it is undelivered")
    world.run(lambda: world[1].gateway.shards[0].is_idle, "the end of that")
    send(client, FLOOD, Order(2, 0, 0, size=10_000))
    world.run(lambda: payloads(client)[1:] == [b"25"], "a whole window")
    assert not world[1].count("lane_violations")


def test_a_coroutine_goes_on_when_a_silent_node_is_back_and_has_taken_what_was_before(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    world[1].cut(2)
    for number in range(100):
        send(client, TELL, Order(2, 0, number, size=10_000))
    world.run(lambda: len(heard.numbers(2)) == 100, "the messages")
    assert heard.numbers(2) == list(range(100))
    world.run(lambda: world[1].gateway.shards[0].is_idle, "the end of the coroutines")


def test_what_another_life_had_not_handled_is_undelivered_and_told_to_the_sender(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare, 2, 2)
    client = world[1].connect()
    send(client, TELL, Order(2, 0, 0))
    world.run(lambda: heard.numbers(2) == [0], "the first message")
    world.run(lambda: not world[1].gateway.shards[0].tells.windows.on_the_way_bytes, "its end")
    world[2].kill()
    send(client, TELL, Order(2, 0, 1))
    send(client, TELL, Order(2, 1, 2))
    send(client, TELL_KEY, Order(0, 0, 3, key=_key_of(2)))
    world.run_for(0.5)
    assert heard.undelivered == []
    world[1].shards[0].kill()  # its successor is told
    world[2].begin()
    world.run(lambda: len(heard.undelivered) == 3, "what is undelivered")
    me = ShardId(1, 0)
    assert heard.undelivered == [
        (me, 1, ShardId(2, 0)),
        (me, 2, ShardId(2, 1)),
        (me, 3, _key_of(2).encode()),
    ]
    send(client, TELL, Order(2, 0, 4))
    world.run(lambda: heard.numbers(2) == [0, 4], "what comes behind")
    world.run(lambda: not world[1].gateway.shards[0].tells.windows.on_the_way_bytes, "all ends")
    assert world[1].count("tells_undelivered") == 3


def test_what_had_arrived_and_was_not_handled_is_undelivered_too(
    make_tell_world: MakeTellWorld, heard: Heard
):
    def prepare(app: App) -> None:
        heard.prepare(app)
        app.messages.by_name.clear()

        @app.on_message
        async def never(message: Note, sender: ShardId) -> None:
            heard.notes[app.shard].append((sender, message.number))
            await asyncio.sleep(600)

    world = make_tell_world(prepare)
    client = world[1].connect()
    send(client, TELL, Order(2, 0, 1))
    world.run(lambda: heard.numbers(2) == [1], "the message")
    world.run_for(0.5)
    assert world[1].links.is_told  # it has arrived, and its record is settled
    world[2].kill()
    world[2].begin()
    world.run(lambda: heard.undelivered, "what is undelivered")
    assert heard.undelivered == [(ShardId(1, 0), 1, ShardId(2, 0))]


def test_a_node_that_leaves_the_list_takes_what_it_had_not_handled_with_it(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare, 3)
    client = world[1].connect()
    world[2].kill()
    send(client, TELL, Order(2, 0, 1))
    send(client, ASK, Order(2, 0, 2))
    world.run_for(0.5)
    world[1].links.remove_node(2)
    world.run(lambda: heard.undelivered and payloads(client), "what is undelivered")
    send(client, TELL, Order(2, 0, 3))  # this worker has not heard yet that it left
    world.run(lambda: len(heard.undelivered) == 2, "what is undelivered")
    assert [number for _, number, _ in heard.undelivered] == [1, 3]
    assert payloads(client) == [b"Undelivered"]


def test_a_shard_that_a_node_does_not_have_is_undelivered(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    send(client, TELL, Order(2, 7, 1))
    world.run(lambda: heard.undelivered, "what is undelivered")
    assert heard.undelivered == [(ShardId(1, 0), 1, ShardId(2, 7))]
    assert world[2].count("messages_refused") == 1


def test_a_question_goes_to_another_node_and_its_answer_comes_back(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare, 3)
    client = world[1].connect()
    send(client, ASK, Order(2, 0, 21))
    send(client, ASK, Order(0, 0, 4, key=_key_of(3, 3)))
    world.run(lambda: len(payloads(client)) == 2, "the answers")
    assert payloads(client) == [b"42", b"8"]
    assert heard.numbers(3) == [4]


def test_who_asks_a_node_that_begins_anew_is_told(make_tell_world: MakeTellWorld, heard: Heard):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    world[2].kill()
    send(client, ASK, Order(2, 0, 1))
    world.run_for(0.5)
    world[2].begin()
    world.run(lambda: payloads(client), "the end of the question")
    assert payloads(client) == [b"Undelivered"]
    assert heard.undelivered == []


def test_a_shard_whose_lane_is_full_holds_up_no_other(make_tell_world: MakeTellWorld, heard: Heard):
    world = make_tell_world(heard.prepare, 2, 2, lane_bytes=16_384)
    client, other = world[1].connect(), world[1].connect()
    world[2].shards[0].is_paused = True
    for number in range(80):
        send(client, TELL, Order(2, 0, number, size=1_000))
        send(other, TELL, Order(2, 1, number, size=1_000))
    world.run(lambda: len(heard.numbers(2, 1)) == 80, "those of the other shard")
    assert len(world[2].gateway.shards[0].tells.waiting) > 50
    assert world[2].count("messages_held") >= len(world[2].gateway.shards[0].tells.waiting)
    assert world[1].links.is_told  # nothing of the link waits for it either
    world[2].shards[0].is_paused = False
    world.run(lambda: len(heard.numbers(2, 0)) == 80, "those of the slow shard")
    assert heard.numbers(2, 0) == heard.numbers(2, 1) == list(range(80))


def test_a_node_that_drains_takes_nothing_more_and_who_told_it_hears_of_that(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare)
    client = world[1].connect()
    world[2].gateway.drain.advance(60)
    send(client, TELL, Order(2, 0, 1))
    world.run(lambda: world[2].count("messages_left_by_drain"), "the message")
    world.run_for(0.5)
    assert heard.numbers(2) == []
    assert heard.undelivered == []  # the node may be about to come back
    world[2].kill()
    world[2].begin()
    world.run(lambda: heard.undelivered, "what is undelivered")
    assert heard.undelivered == [(ShardId(1, 0), 1, ShardId(2, 0))]


def test_who_tells_without_credit_breaks_the_contract(make_tell_world: MakeTellWorld, heard: Heard):
    world = make_tell_world(heard.prepare)
    tells = world[1].gateway.shards[0].tells
    app = world[1].shards[0].app
    world[2].kill()
    records: list[bytes] = []
    try:
        while True:
            app.tell(ShardId(2, 0), Note(1, bytes(10_000)))
            records.append(world[1].shards[0].worker.worker._outbox.entries[-1][2])
    except Full:
        pass
    for record in records:
        tells.add(record)
    with pytest.raises(LaneViolation, match="262144 may be"):
        tells.add(records[0])
    tells.abandon()
    tells.add(records[0])
    tells.abandon()


def test_who_tells_a_shard_that_nobody_has_heard_of_breaks_the_contract(
    make_tell_world: MakeTellWorld, heard: Heard
):
    world = make_tell_world(heard.prepare, 2, 2)
    tells = world[1].gateway.shards[0].tells

    def tell(shard: ShardId) -> None:
        key = b"k" if shard.shard == BY_KEY else b""
        tells.add(pack_tell(shard, Purpose.TELL, 0, b"", key))

    for known in (ShardId(1, 1), ShardId(2, 9), ShardId(2, BY_KEY), ShardId(1, BY_KEY)):
        tell(known)
        tells.abandon()
    for unknown in (ShardId(1, 2), ShardId(3, 0)):
        with pytest.raises(LaneViolation, match="there is none"):
            tell(unknown)
        assert not tells.has_pending
    world[1].links.remove_node(2)
    tell(ShardId(2, 0))  # whoever tells it may not know that it has left
    tells.abandon()


def _key_of(node: int, nodes: int = 2) -> str:
    from cluster.shared.rendezvous import owner

    return next(key for key in map(str, range(1_000)) if owner(key, range(1, nodes + 1)) == node)
