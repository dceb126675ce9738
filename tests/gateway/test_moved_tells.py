"""Messages by key while keys move: they are handled by who owns the key, once, or are undelivered.

Nodes hear of a change one after the other here, in any order, as they do of a store.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cluster.gateway.drain import DrainPhase
from cluster.gateway.membership.cluster_members import ClusterMembers
from cluster.gateway.membership.membership import Member
from cluster.gateway.moved_tells import DELAY_MAX_S, MOVES_MAX, delay_s
from cluster.shared.rendezvous import owner
from cluster.worker import App, AskFailed, Full, NoOwner, Session, ShardId, Undelivered
from tests.gateway.tell_world import TellWorld, payloads, send
from tests.iocp.peers import Peer

TELL, ASK, FILL = range(1, 4)


class Order(msgspec.Struct):
    """What a client has its shard tell."""

    key: str
    number: int


class Note(msgspec.Struct):
    number: int


class Question(msgspec.Struct):
    number: int


class Answer(msgspec.Struct):
    node: int


class Heard:
    """What shards were given for keys, and what was undelivered."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, str, int, ShardId]] = []
        """Node, key, number and sender."""
        self.undelivered: list[tuple[int, Any]] = []
        self.keys: list[tuple[ShardId, tuple[int, ...], tuple[int, ...]]] = []
        self.order: list[tuple[int, Any]] = []
        """Node, and what it was told: the number of a note, undelivered if negative, or who began
        anew."""
        self.in_tell: Callable[[App], object] = lambda app: None
        """Called behind each tell, before its commit."""

    def prepare(self, app: App) -> None:
        @app.on_packet(TELL)
        def tell(session: Session, order: Order) -> None:
            app.tell_key(order.key, Note(order.number))
            self.in_tell(app)

        @app.on_packet(FILL)
        def fill(session: Session, order: Order) -> None:
            count = 0
            try:
                while True:
                    app.tell_key(order.key, Note(count))
                    count += 1
            except Full:
                session.send(FILL, b"%d" % count)

        @app.on_packet(ASK)
        async def ask(session: Session, order: Order) -> None:
            try:
                answer = await app.ask_key(order.key, Question(order.number), Answer)
            except (AskFailed, Undelivered, TimeoutError) as error:
                session.send(ASK, type(error).__name__.encode())
            else:
                session.send(ASK, b"%d" % answer.node)

        @app.on_message
        def take(note: Note, sender: ShardId, key: str) -> None:
            assert app.owns(key)
            assert app.owner_of(key) == app.shard.node
            self.notes.append((app.shard.node, key, note.number, sender))
            self.order.append((app.shard.node, note.number))

        @app.on_message
        def answer(question: Question, sender: ShardId, key: bytes) -> Answer:
            assert app.owns(key)
            return Answer(app.shard.node)

        @app.on_undelivered
        def lost(note: Note, receiver: ShardId | bytes) -> None:
            self.undelivered.append((note.number, receiver))
            self.order.append((app.shard.node, -note.number))

        @app.on_keys
        def keys_changed(owners: tuple[int, ...], anew: tuple[int, ...]) -> None:
            self.keys.append((app.shard, owners, anew))
            self.order.append((app.shard.node, anew))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make_world(heard: Heard) -> Iterator[Callable[..., TellWorld]]:
    made: list[TellWorld] = []

    def make(nodes: int = 3, shards: int = 1, **options: Any) -> TellWorld:
        made.append(TellWorld(heard.prepare, nodes, shards, **options))
        made[-1].run_linked()
        return made[-1]

    yield make
    for world in made:
        for node in world.nodes.values():
            assert not node.count("lane_violations")
            assert not any(shard.errors for shard in node.shards)
        world.close()


def tell_owners(world: TellWorld, node: int, *owners: int) -> None:
    """Have one node hear who owns keys."""
    others = [each for each in world.nodes if each not in owners]
    world[node].gateway.traffic.change_members(owners, others)


def key_of(node: int, then: int, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Return a key that `node` owns among `before`, and `then` does among `after`."""
    return next(
        key
        for key in map(str, range(10_000))
        if owner(key, before) == node and owner(key, after) == then
    )


def check_windows(world: TellWorld) -> None:
    """Wait until all that was told has come to its end."""
    shards = [shard for node in world.nodes.values() for shard in node.gateway.shards]
    world.run(
        lambda: not any(shard.tells.windows.on_the_way_bytes for shard in shards), "the end of all"
    )


ALL, WITHOUT_2 = (1, 2, 3), (1, 3)
MOVED = key_of(2, 3, ALL, WITHOUT_2)
"""A key of node 2 that is node 3's when node 2 owns none."""
ME = ShardId(1, 0)


def test_a_message_on_its_way_as_its_key_moves_goes_on_with_key_and_sender(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    client = world[1].connect()
    for node in (2, 3):
        tell_owners(world, node, *WITHOUT_2)
    for number in range(3):
        send(client, TELL, Order(MOVED, number))
    world.run(lambda: world[1].count("tells_passed_on") >= 3, "its way back to the same node")
    assert heard.notes == []
    tell_owners(world, 1, *WITHOUT_2)
    send(client, TELL, Order(MOVED, 3))
    world.run(lambda: len(heard.notes) == 4, "the messages")
    assert heard.notes == [(3, MOVED, number, ME) for number in range(4)]
    check_windows(world)
    assert world[3].count("messages") == 4
    assert not world[2].count("messages")


def test_a_message_that_is_ahead_of_its_owner_waits_until_that_knows(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    client = world[1].connect()
    tell_owners(world, 1, *WITHOUT_2)
    world.run(lambda: heard.keys, "the news")
    send(client, TELL, Order(MOVED, 1))
    send(client, ASK, Order(MOVED, 1))
    world.run_for(0.5)
    assert heard.notes == []
    tell_owners(world, 3, *WITHOUT_2)
    send(client, TELL, Order(MOVED, 2))
    world.run(lambda: len(heard.notes) == 2 and payloads(client), "the messages")
    assert heard.notes == [(3, MOVED, 1, ME), (3, MOVED, 2, ME)]
    assert payloads(client) == [b"3"]
    assert (ShardId(3, 0), WITHOUT_2, ()) in heard.keys


def test_what_is_told_in_the_moment_of_a_change_is_not_sent_to_who_owns_nothing(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    client = world[1].connect()
    tell_owners(world, 3, *WITHOUT_2)
    heard.in_tell = lambda app: tell_owners(world, 1, *WITHOUT_2)  # the worker does not know yet
    send(client, TELL, Order(MOVED, 1))
    world.run(lambda: heard.notes, "the message")
    assert heard.notes == [(3, MOVED, 1, ME)]
    assert world[1].count("tells_passed_on") == 1
    check_windows(world)


def test_one_batch_that_has_seen_a_key_move_there_and_back_keeps_its_order(
    make_world: Callable[..., TellWorld], heard: Heard
):
    """What was told for an owner that has left meanwhile is behind what was told before."""
    world = make_world()
    client = world[1].connect()
    tell_owners(world, 3, *WITHOUT_2)
    tell_owners(world, 1, *WITHOUT_2)
    world.run(lambda: len(heard.keys) == 2, "the news")
    world.run_for(0.1)  # until that is committed
    world[1].shards[0].is_paused = True
    send(client, TELL, Order(MOVED, 1))
    world.run_for(0.1)
    tell_owners(world, 1, *ALL)
    send(client, TELL, Order(MOVED, 2))
    world.run_for(0.1)
    tell_owners(world, 1, *WITHOUT_2)
    world[1].shards[0].kill()  # whose successor gets all of it at once
    world[1].shards[0].is_paused = False
    world.run(lambda: len(heard.notes) == 2, "the messages")
    assert heard.notes == [(3, MOVED, 1, ME), (3, MOVED, 2, ME)]
    check_windows(world)


@pytest.mark.parametrize("sender", [1, 2])
def test_a_key_of_ones_own_moves_away_and_back(
    make_world: Callable[..., TellWorld], heard: Heard, sender: int
):
    """Node 2 tells its own shard, or node 1 that of node 2, and the key is the teller's by then."""
    world = make_world(2)
    key = key_of(2, 1, (1, 2), (1,))
    client = world[sender].connect()
    tell_owners(world, 3 - sender, 1)
    heard.in_tell = lambda app: tell_owners(world, sender, 1)
    send(client, TELL, Order(key, 1))
    world.run(lambda: heard.notes, "the message")
    assert heard.notes == [(1, key, 1, ShardId(sender, 0))]
    check_windows(world)


def test_two_that_disagree_send_nothing_back_and_forth_without_end(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world(2)
    client = world[1].connect()
    tell_owners(world, 2, 1)
    key = key_of(2, 1, (1, 2), (1,))
    send(client, TELL, Order(key, 1))
    send(client, FILL, Order(key, 2))
    count = int(wait_payload(world, client))
    world.run_for(30)
    assert not heard.undelivered
    world.run(lambda: len(heard.undelivered) == count + 1, "that they are undelivered")
    assert heard.undelivered[0] == (1, key.encode())
    assert world[1].count("tells_passed_on") == (count + 1) * MOVES_MAX
    assert world[1].count("tells_undelivered") == count + 1
    assert heard.notes == []
    check_windows(world)
    tell_owners(world, 2, 1, 2)
    send(client, TELL, Order(key, 3))
    world.run(lambda: heard.notes, "the next one")


def wait_payload(world: TellWorld, client: Peer) -> bytes:
    world.run(lambda: payloads(client), "an answer")
    return payloads(client)[-1]


def test_the_delays_grow_and_are_bounded():
    delays = [delay_s(moves) for moves in range(1, MOVES_MAX + 1)]
    assert delays == sorted(delays)
    assert delays[0] == 0.02
    assert delays[-1] == DELAY_MAX_S
    assert 30 < sum(delays) < 60


def test_what_has_no_owner_waits_for_one(make_world: Callable[..., TellWorld], heard: Heard):
    world = make_world()
    client = world[1].connect()
    for node in (2, 3):
        tell_owners(world, node)
    heard.in_tell = lambda app: tell_owners(world, 1)
    send(client, TELL, Order(MOVED, 1))
    world.run_for(300)
    assert (heard.notes, heard.undelivered) == ([], [])
    with pytest.raises(NoOwner, match="no node may own keys"):
        world[1].shards[0].app.owner_of(MOVED)
    world[1].shards[0].kill()
    for node in ALL:
        tell_owners(world, node, *WITHOUT_2)
    world.run(lambda: heard.notes, "the message")
    assert heard.notes == [(3, MOVED, 1, ME)]
    check_windows(world)


def test_a_node_that_ends_waits_for_no_owner(make_world: Callable[..., TellWorld], heard: Heard):
    world = make_world()
    client = world[1].connect()
    for node in (2, 3):
        tell_owners(world, node)
    heard.in_tell = lambda app: tell_owners(world, 1)
    send(client, TELL, Order(MOVED, 1))
    world.run(lambda: world[1].gateway.tells.moved_count, "that it waits")
    drain = world[1].gateway.drain
    world.run(lambda: drain.advance(600), "the end", within_s=20)
    assert heard.undelivered == [(1, MOVED.encode())]


def test_a_drain_that_is_out_of_time_tells_what_still_waited(
    make_world: Callable[..., TellWorld], heard: Heard, caplog: pytest.LogCaptureFixture
):
    world = make_world()
    client = world[1].connect()
    tell_owners(world, 2, *WITHOUT_2)
    for number in range(3):
        send(client, TELL, Order(MOVED, number))
    world.run(lambda: world[1].gateway.tells.moved_count == 3, "that they wait")
    drain = world[1].gateway.drain
    world.run(lambda: drain.advance(2), "the end")
    drain.log_undone()
    assert "the time to drain is up: " in caplog.text
    assert "messages that wait for the owner of their key: 3, " in caplog.text


def test_what_a_node_hands_over_as_it_ends_reaches_owners_that_hear_of_that_later(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    key = key_of(1, 3, ALL, (2, 3))
    client = world[1].connect()
    tell_owners(world, 1, 2, 3)
    world.run(lambda: heard.keys, "the news")
    send(client, TELL, Order(key, 1))
    drain = world[1].gateway.drain
    for _ in range(300):
        assert not drain.advance(600)
        world.turn()
    assert drain.phase is DrainPhase.CLOSING
    tell_owners(world, 3, 2, 3)
    world.run(lambda: drain.advance(600), "the end", within_s=20)
    world[1].kill()
    world.run(lambda: heard.notes, "what it has handed over")
    assert heard.notes == [(3, key, 1, ME)]


def test_a_node_that_drains_gives_back_what_is_not_its_own_any_more(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    client = world[1].connect()
    for node in (2, 3):
        tell_owners(world, node, *WITHOUT_2)
    world[2].gateway.drain.advance(60)
    send(client, TELL, Order(MOVED, 1))
    world.run(lambda: world[1].count("tells_passed_on"), "its way back")
    tell_owners(world, 1, *WITHOUT_2)
    world.run(lambda: heard.notes, "the message")
    assert heard.notes == [(3, MOVED, 1, ME)]
    assert not world[2].count("messages_left_by_drain")


def test_a_message_waits_until_its_shard_has_been_told_of_its_key(
    make_world: Callable[..., TellWorld], heard: Heard
):
    """The news of a change waits for the commit of those before it: the message comes behind."""
    world = make_world()
    client = world[1].connect()
    key = key_of(3, 3, ALL, WITHOUT_2)
    world[3].shards[0].is_paused = True
    tell_owners(world, 3, 1, 2)  # in the lane, and not committed
    tell_owners(world, 3, *ALL)
    send(client, TELL, Order(key, 1))
    world.run(lambda: world[3].count("messages_held"), "that it waits")
    world.run_for(1)
    world[3].shards[0].is_paused = False
    world.run(lambda: heard.notes, "the message")
    assert heard.keys == [(ShardId(3, 0), (1, 2), ()), (ShardId(3, 0), ALL, ())]
    assert heard.notes == [(3, key, 1, ME)]
    assert not world[1].count("tells_passed_on")
    check_windows(world)


def test_what_waits_for_room_goes_back_when_its_key_has_moved(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world(lane_bytes=65_536)
    client = world[1].connect()
    world[2].shards[0].is_paused = True
    send(client, FILL, Order(MOVED, 0))
    count = int(wait_payload(world, client))
    world.run(lambda: world[2].gateway.shards[0].tells.waiting, "what has no room")
    for node in ALL:
        tell_owners(world, node, *WITHOUT_2)
    world[2].shards[0].is_paused = False
    world.run(lambda: len(heard.notes) == count, "the messages")
    numbers = [number for _, _, number, _ in heard.notes]
    assert sorted(numbers) == list(range(count))
    before = [number for node, _, number, _ in heard.notes if node == 2]
    behind = [number for node, _, number, _ in heard.notes if node == 3]
    assert before + behind == list(range(count)), "in order, at each of them"
    assert before
    assert behind
    check_windows(world)


@pytest.mark.parametrize("begins_anew", [True, False])
def test_what_waits_for_room_and_belongs_to_nobody_any_more_is_counted(
    make_world: Callable[..., TellWorld], heard: Heard, begins_anew: bool
):
    """The node that told it has ended, and the key moves: nobody is left who could tell it."""
    world = make_world(lane_bytes=65_536)
    world[2].shards[0].is_paused = True
    client = world[1].connect()
    send(client, FILL, Order(MOVED, 0))
    count = int(wait_payload(world, client))
    world.run(lambda: world[2].gateway.shards[0].tells.waiting, "what has no room")
    world.run_for(1)
    world[1].kill()
    if begins_anew:
        world[1].begin()
        world.run_linked()
    else:
        world[2].links.remove_node(1)
    tell_owners(world, 3, *WITHOUT_2)
    tell_owners(world, 2, *WITHOUT_2)
    world[2].shards[0].is_paused = False
    world.run(lambda: world[2].count("messages_orphaned"), "what nobody can tell again")
    world.run_for(5)
    assert heard.notes
    assert len(heard.notes) + world[2].count("messages_orphaned") == count
    assert not world[2].gateway.tells._nodes._taken_bytes, "no room is lost for that"


@pytest.mark.parametrize("is_handled", [True, False])
def test_a_gateway_that_dies_after_it_gave_a_message_back_takes_nothing_with_it(
    make_world: Callable[..., TellWorld], heard: Heard, is_handled: bool
):
    world = make_world()
    client = world[1].connect()
    for node in (2, 3):
        tell_owners(world, node, *WITHOUT_2)
    send(client, TELL, Order(MOVED, 1))
    world.run(lambda: world[1].gateway.tells._moved._delayed, "its way back")
    if is_handled:
        tell_owners(world, 1, *WITHOUT_2)
    world[2].kill()
    if is_handled:
        world.run(lambda: heard.notes, "the message")
        assert heard.notes == [(3, MOVED, 1, ME)]
        world[2].begin()
        world.run_linked()
        assert heard.undelivered == []
    else:  # it was sent there again
        world.run_for(5)
        world[2].begin()
        world.run(lambda: heard.undelivered, "that it is undelivered")
        assert heard.notes == []
    check_windows(world)


@pytest.mark.parametrize("before", [(1, 2), ()])
def test_what_waits_goes_to_a_node_that_has_just_joined(
    make_world: Callable[..., TellWorld], heard: Heard, before: tuple[int, ...]
):
    """The news that there is such a node, and that keys are its own, is one."""
    world = make_world()
    client = world[1].connect()
    store = SimpleNamespace(members=[], is_member=True, user=None)
    user = ClusterMembers(store, world[1].links, world[1].gateway.traffic, world[1].counters)

    def become(*nodes: int) -> None:
        store.members = [Member(node, world.addresses[node], "ff", True) for node in nodes]
        store.is_member = bool(nodes)
        user.members_changed()

    become(1, 2)
    key = key_of(2, 3, (1, 2), ALL)
    world.run(lambda: heard.keys and heard.keys[-1][1] == (1, 2), "the news")
    heard.in_tell = lambda app: become(*before)
    send(client, TELL, Order(key, 1))
    world.run(lambda: world[1].gateway.tells.moved_count, "that it waits")
    become(*ALL)
    world.run(lambda: heard.notes or heard.undelivered, "the message")
    assert (heard.notes, heard.undelivered) == ([(3, key, 1, ME)], [])
    check_windows(world)


def fill_windows(world: TellWorld, stays: tuple[int, int]) -> dict[str, int]:
    """Have node 1 tell each other node what it may, for keys that the last of `stays` owns when
    only those own keys, as all but node 1 know already; return how much each key was told."""
    everyone = tuple(world.nodes)
    client = world[1].connect()
    counts = {}
    for node in everyone[1:]:
        if world[node].shards:
            tell_owners(world, node, *stays)
        key = key_of(node, stays[1], everyone, stays)
        answers = len(payloads(client))
        send(client, FILL, Order(key, 0))
        world.run(lambda: len(payloads(client)) > answers, "an answer")  # noqa: B023
        counts[key] = int(payloads(client)[-1])
    return counts


def test_one_owner_takes_over_what_fills_the_windows_of_many(
    make_world: Callable[..., TellWorld], heard: Heard
):
    """It is told no more than it takes of one node; what waits meanwhile keeps its order."""
    world = make_world(7, lane_bytes=65_536)
    world[7].shards[0].is_paused = True
    counts = fill_windows(world, (1, 7))
    tell_owners(world, 1, 1, 7)
    world.run_for(5)
    assert not world[7].count("messages_refused")
    world[7].shards[0].is_paused = False
    total = sum(counts.values())
    world.run(lambda: len(heard.notes) + len(heard.undelivered) == total, "the messages")
    assert heard.undelivered == []
    for key, count in counts.items():
        assert [number for _, told, number, _ in heard.notes if told == key] == list(range(count))
    check_windows(world)


def test_a_drain_does_not_wait_for_room_at_a_node_that_may_never_come_back(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world(7)
    world[7].kill()
    fill_windows(world, (1, 7))
    tell_owners(world, 1, 1, 7)
    world.run_for(5)
    assert world[1].gateway.tells.moved_count
    drain = world[1].gateway.drain
    world.run(lambda: drain.advance(600), "the end", within_s=30)


# -- nodes that begin anew -------------------------------------------------------------------------


def test_shards_hear_once_that_an_owner_has_begun_anew(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world(2, 2)
    world[1].cut(2)
    world.run_linked()
    assert heard.keys == []  # the same life
    world[2].kill()
    world.run_for(5)
    assert heard.keys == []
    world[1].shards[0].kill(at_commit=True)
    world[2].begin()
    world.run_linked()
    world.run(lambda: len(heard.keys) == 3, "the news")
    told = [(ShardId(1, shard), (1, 2), (2,)) for shard in (0, 0, 1)]
    assert sorted(heard.keys) == told, "one worker died of it, and its successor is told again"
    world[1].shards[1].kill()
    world.run_for(5)
    assert sorted(heard.keys) == told


def test_a_shard_hears_of_all_that_began_anew_while_it_was_busy(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    world[1].shards[0].is_paused = True
    for node in (2, 3, 2):
        world[node].kill()
        world[node].begin()
        world.run_linked()
    world[1].shards[0].is_paused = False
    world.run(lambda: len([1 for shard, *_ in heard.keys if shard == ME]) == 2, "the news")
    world.run_for(5)
    assert [told for told in heard.keys if told[0] == ME] == [(ME, ALL, (2,)), (ME, ALL, (2, 3))]


def test_nothing_of_a_new_life_is_ahead_of_the_news_of_it(
    make_world: Callable[..., TellWorld], heard: Heard
):
    """Also when the news waits for the commit of other news."""
    world = make_world()
    world[3].kill()
    send(world[1].connect(), TELL, Order(key_of(3, 3, ALL, ALL), 7))
    world.run(lambda: world[1].count("tells"), "that it is told")
    world[1].shards[0].is_paused = True
    for node in (2, 3):
        if node == 2:
            world[2].kill()
        world[node].begin()
        world.run_linked() if node == 3 else world.run_for(5)
        for number in range(2):
            send(world[node].connect(), TELL, Order(key_of(1, 1, ALL, ALL), 10 * node + number))
        world.run_for(1)
    world[1].shards[0].kill()
    world.run_for(1)
    world[1].shards[0].is_paused = False
    world.run(lambda: len(heard.notes) == 4, "the messages")
    world.run_for(5)
    assert [what for node, what in heard.order if node == 1] == [(2,), 20, 21, (3,), -7, 30, 31]
    check_windows(world)


def test_nobody_hears_of_a_new_life_of_who_owns_no_keys(
    make_world: Callable[..., TellWorld], heard: Heard
):
    world = make_world()
    tell_owners(world, 1, *WITHOUT_2)
    world.run(lambda: heard.keys, "the news")
    world[2].kill()
    world[2].begin()
    world.run_linked()
    world.run_for(1)
    assert [told for told in heard.keys if told[0] == ME] == [(ME, WITHOUT_2, ())]
    tell_owners(world, 1, *ALL)
    world.run_for(1)
    assert heard.keys[-1] == (ME, ALL, ())


# -- at random -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_whatever_nodes_think_each_message_is_handled_once_by_an_owner(seed: int):
    """Workers die at any moment, links break, and each node changes its mind when it likes."""
    rng = random.Random(seed)
    done: Counter[int] = Counter()
    lost: Counter[int] = Counter()

    def prepare(app: App) -> None:
        def die() -> None:
            if rng.random() < 0.03:
                name = app.shard
                world[name.node].shards[name.shard].kill(at_commit=rng.random() < 0.5)

        @app.on_packet(TELL)
        def tell(session: Session, order: Order) -> None:
            try:
                app.tell_key(order.key, Note(order.number))
            except NoOwner:
                lost[order.number] += 1
            die()

        @app.on_message
        def take(note: Note, sender: ShardId, key: str) -> None:
            assert app.owns(key)
            die()
            app.save(str(note.number), b"%d" % (int(app.saved.get(str(note.number), b"0")) + 1))
            die()

        @app.on_undelivered
        def undelivered(note: Note, receiver: object) -> None:
            lost[note.number] += 1

        @app.on_keys
        def keys_changed(owners: tuple[int, ...]) -> None:
            die()

    world = TellWorld(prepare, 3, 2, seed=seed)
    try:
        world.run_linked()
        clients = [world[node].connect() for node in (1, 1, 2, 2, 3, 3)]
        number = 0
        for _ in range(300):
            what = rng.random()
            if what < 0.6:
                number += 1
                send(rng.choice(clients), TELL, Order(str(rng.randrange(40)), number))
            elif what < 0.75:
                owners = rng.choice([(1, 2, 3), (1, 2), (2, 3), (1, 3), (1,), (2,), (3,)])
                tell_owners(world, rng.choice(ALL), *owners)
            elif what < 0.8:
                cut = world[rng.choice(ALL)]
                cut.cut(rng.choice(cut.links.nodes))
            for _ in range(rng.randrange(4)):
                world.turn(rng.choice([0, 0.01, 0.1]))
        for each in ALL:
            tell_owners(world, each, *ALL)
        world.run_linked()
        shards = [shard for node in world.nodes.values() for shard in node.gateway.shards]
        world.run(
            lambda: (
                sum(shard.log.packets_appended for shard in shards) == number
                and all(shard.is_idle for shard in shards)
            ),
            "all that was ordered",
        )
        check_windows(world)
        for node in world.nodes.values():
            assert not node.count("lane_violations")
            assert not any(shard.errors for shard in node.shards)
            for shard in node.shards:
                for name, blob in shard.app.saved.items():
                    done[int(name)] += int(blob)
        for each in range(1, number + 1):
            assert done[each] + min(lost[each], 1) == 1, each
        assert sum(node.count("tells_passed_on") for node in world.nodes.values())
    finally:
        world.close()
