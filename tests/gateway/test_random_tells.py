"""Messages between shards of three nodes while workers die and links are cut, at random.

What each shard is told it sends to its own client, with the commit of the message: so a client sees
what was handled for good. Everything that happens follows from the seed in the test's name.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec
import pytest

from cluster.gateway.shard import Shard
from cluster.iocp.driver.memory import Faults
from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, iter_packets
from cluster.shared.rendezvous import owner
from cluster.worker import App, Full, Session, ShardId, Undelivered
from tests.gateway.tell_world import TellWorld, send
from tests.iocp.peers import Peer

TELL, AWAIT, KEY, ASK, TOLD, LOST, ANSWERED, REFUSED = range(1, 9)
NODES, SHARDS = 3, 2
ORDERS_EACH = 30
SEEDS = 3


class Order(msgspec.Struct):
    """What a client has its shard tell; `to` is a shard, or the name of a key."""

    number: int
    to: tuple[int, int] | str


class Note(msgspec.Struct):
    """Handled at once."""

    number: int
    filling: bytes = b""


class Question(msgspec.Struct):
    """Answered, by some after a while."""

    number: int


class Answer(msgspec.Struct):
    number: int


class Told(msgspec.Struct, array_like=True):
    """What a client hears of a message that its shard was told."""

    sender: tuple[int, int]
    number: int


def prepare(
    rng: random.Random,
    die: Callable[[App], None],
    handle: Callable[[ShardId, ShardId, int], None],
) -> Callable[[App], None]:
    """Return what gives applications their handlers, which call `die` at any moment.

    `handle` hears of each note that is handled, also of calls that are not committed.
    """

    def give_handlers(app: App) -> None:
        sessions: dict[int, Session] = {}

        def receiver(order: Order) -> ShardId:
            assert isinstance(order.to, tuple)
            return ShardId(*order.to)

        def filling() -> bytes:
            return bytes(rng.choice([0, 10, 3_000, 40_000]))

        @app.on_connected
        @app.on_resumed
        def remember(session: Session) -> None:
            sessions[session.id] = session

        @app.on_disconnected
        def forget(session: Session, cause: str) -> None:
            sessions.pop(session.id, None)

        def show(packet_id: int, message: msgspec.Struct) -> None:
            for session in sessions.values():
                session.send(packet_id, message)

        @app.on_packet(TELL)
        def tell(session: Session, order: Order) -> None:
            try:
                app.tell(receiver(order), Note(order.number))
            except Full:
                session.send(REFUSED, b"%d" % order.number)
            die(app)

        @app.on_packet(AWAIT)
        async def tell_later(session: Session, order: Order) -> None:
            await app.tell(receiver(order), Note(order.number, filling()))
            die(app)

        @app.on_packet(KEY)
        async def tell_key(session: Session, order: Order) -> None:
            assert isinstance(order.to, str)
            await app.tell_key(order.to, Note(order.number, filling()))

        @app.on_packet(ASK)
        async def ask(session: Session, order: Order) -> None:
            try:
                answer = await app.ask(
                    receiver(order), Question(order.number), Answer, timeout_s=100_000
                )
            except Undelivered:
                answer = Answer(order.number)
            die(app)
            session.send(ANSWERED, b"%d" % answer.number)

        @app.on_message
        def take(message: Note, sender: ShardId) -> None:
            die(app)
            handle(app.shard, sender, message.number)
            show(TOLD, Told(sender, message.number))
            die(app)

        @app.on_message
        async def answer(message: Question, sender: ShardId) -> Answer:
            if message.number % 2:
                await asyncio.sleep(0.2)
            die(app)
            return Answer(message.number)

        @app.on_undelivered
        def lost(message: Note, receiver: ShardId | bytes) -> None:
            die(app)
            show(LOST, Told(app.shard, message.number))

    return give_handlers


class Life:
    """The world, its clients, and what they have ordered and heard."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.deaths = 0
        self.handled: defaultdict[tuple[ShardId, ShardId, int], list[int]] = defaultdict(list)
        """By receiver, sender, and life of the receiver's node."""
        faults = Faults(partial_send=0.2, partial_recv=0.2, late=0.2)
        self.world = TellWorld(
            prepare(self.rng, self._die, self._handle), NODES, SHARDS, seed=seed, faults=faults
        )
        self.world.run_linked()
        self.clients: dict[ShardId, Peer] = {}
        for node in self.world.nodes:
            self.connect(node)
        self.expected: defaultdict[tuple[ShardId, ShardId], list[int]] = defaultdict(list)
        self.asked: dict[ShardId, list[int]] = {shard: [] for shard in self.clients}
        self.orders = dict.fromkeys(self.clients, 0)

    def connect(self, node: int) -> None:
        """Give each shard of a node a client."""
        for _ in range(SHARDS):
            peer = self.world[node].connect()
            sessions = self.world[node].gateway.table.sessions
            shard = sessions[max(sessions)].shard.index
            self.clients[ShardId(node, shard)] = peer

    def _handle(self, receiver: ShardId, sender: ShardId, number: int) -> None:
        self.handled[receiver, sender, self.world[receiver.node].epoch].append(number)

    def _die(self, app: App) -> None:
        if self.rng.random() < 0.01:
            self.deaths += 1
            self.kill(app.shard)

    def kill(self, name: ShardId, *, at_commit: bool = False) -> None:
        self.world[name.node].shards[name.shard].kill(at_commit=at_commit)

    def order(self, sender: ShardId) -> None:
        """Have the client of a shard order one more message."""
        rng = self.rng
        self.orders[sender] = number = self.orders[sender] + 1
        to = rng.choice(list(self.clients))
        kind = rng.choice([TELL, AWAIT, AWAIT, KEY, ASK])
        target: tuple[int, int] | str = to
        if kind == KEY:
            target = f"key-{rng.randrange(100)}"
            node = owner(target, list(self.world.nodes))
            to = owner(target, [ShardId(node, shard) for shard in range(SHARDS)])
        if kind == ASK:
            self.asked[sender].append(number)
        else:
            self.expected[sender, to].append(number)
        send(self.clients[sender], kind, Order(number, target))

    def heard(self, receiver: ShardId, packet_id: int) -> dict[ShardId, list[int]]:
        """Return the numbers that a client has heard, in order, by who told them."""
        told: defaultdict[ShardId, list[int]] = defaultdict(list)
        for found, payload in _packets(self.clients[receiver]):
            if found == packet_id:
                message = msgspec.msgpack.decode(payload, type=Told)
                told[ShardId(*message.sender)].append(message.number)
        return told

    def numbers(self, shard: ShardId, packet_id: int) -> list[int]:
        """Return the numbers that a client has got by packets with an id."""
        return [int(p) for found, p in _packets(self.clients[shard]) if found == packet_id]

    def told(self, sender: ShardId, receiver: ShardId) -> list[int]:
        """Return what a shard has told another one: what was ordered, but for what was refused."""
        refused = set(self.numbers(sender, REFUSED))
        return [number for number in self.expected[sender, receiver] if number not in refused]

    def check(self, receivers: Iterable[ShardId]) -> None:
        """Hold what `receivers` and those who ask have got against what was ordered."""
        for receiver in receivers:
            heard = self.heard(receiver, TOLD)
            for sender in self.asked:
                assert heard.get(sender, []) == self.told(sender, receiver), (sender, receiver)
        for sender, asked in self.asked.items():
            assert sorted(set(self.numbers(sender, ANSWERED))) == asked
        for node in self.world.nodes.values():
            assert not node.count("lane_violations")
            assert not any(shard.errors for shard in node.shards)


def _packets(peer: Peer) -> list[tuple[int, bytes]]:
    """Return id and payload of each packet that a client has received."""
    packets = [bytes(packet) for packet in iter_packets(bytes(peer.received))]
    return [(HEADER.unpack_from(packet)[1], packet[HEADER_BYTES:]) for packet in packets]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_message_is_handled_once_and_in_order_whatever_dies_and_breaks(seed: int) -> None:
    life = Life(seed)
    try:
        _disturb(life, list(life.clients), ORDERS_EACH)
        life.check(life.clients)
        assert life.deaths > 0
        assert not any(node.count("tells_undelivered") for node in life.world.nodes.values())
    finally:
        life.world.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_a_node_that_dies_had_not_handled_is_undelivered_and_never_silence(seed: int) -> None:
    life = Life(seed)
    world, mortal = life.world, 3
    senders = [shard for shard in life.clients if shard.node != mortal]
    try:
        for _ in range(3):
            _disturb(life, senders, ORDERS_EACH // 3, at_rest=False)
            world[mortal].kill()
            for sender in senders:
                life.order(sender)
            world.run_for(life.rng.choice([0, 1]))
            world[mortal].begin()
            life.connect(mortal)
        _disturb(life, senders, ORDERS_EACH // 3)
        life.check(senders)
        undelivered = 0
        for sender in senders:
            lost = life.heard(sender, LOST).get(sender, [])
            assert len(lost) == len(set(lost))
            undelivered += len(lost)
            for receiver in life.clients:
                if receiver.node == mortal:
                    _check_lives(life, sender, receiver, set(lost))
        assert undelivered > 0
    finally:
        life.world.close()


def _check_lives(life: Life, sender: ShardId, receiver: ShardId, lost: set[int]) -> None:
    """Each message was handled or reported, in one life of the receiver, and in order."""
    told = life.told(sender, receiver)
    seen: set[int] = set()
    for epoch in range(1, life.world[receiver.node].epoch + 1):
        handled = list(dict.fromkeys(life.handled[receiver, sender, epoch]))
        assert handled == sorted(handled)
        assert seen.isdisjoint(handled)
        seen.update(handled)
    assert seen <= set(told)
    assert set(told) - lost <= seen


def _disturb(life: Life, senders: list[ShardId], orders_each: int, *, at_rest: bool = True) -> None:
    """Let `senders` order, while workers die and links are cut; wait for all if `at_rest`."""
    rng, world = life.rng, life.world
    left = dict.fromkeys(senders, orders_each)
    while left:
        for sender in list(left):
            if rng.random() < 0.5:
                life.order(sender)
                left[sender] -= 1
                if not left[sender]:
                    del left[sender]
        if rng.random() < 0.15:
            node = rng.choice(list(world.nodes))
            other = rng.choice([each for each in world.nodes if each != node])
            world[node].cut(other)
        if rng.random() < 0.15:
            life.kill(rng.choice(list(life.clients)), at_commit=rng.random() < 0.5)
            life.deaths += 1
        world.turn(rng.choice([0, 0.001, 0.01]))
    if at_rest:
        world.run_linked()
        world.run(lambda: _is_at_rest(life), "the end of everything", within_s=3_000)


def _is_at_rest(life: Life) -> bool:
    """Whether every order has arrived and nothing is left of it, and clients have all there is."""
    senders = [shard for shard in _shards(life) if life.orders[shard.tells.name]]
    if sum(shard.log.packets_appended for shard in senders) < sum(life.orders.values()):
        return False
    sent = sum(node.counters.bytes_sent for node in life.world.nodes.values())
    if sum(len(client.received) for client in life.clients.values()) < sent:
        return False
    return all(
        shard.is_idle and not shard.tells.windows.on_the_way_bytes for shard in _shards(life)
    )


def _shards(life: Life) -> list[Shard]:
    return [shard for node in life.world.nodes.values() for shard in node.gateway.shards]
