"""Who owns keys, as nodes join and leave: each worker hears of it in its place, and only then."""

from collections import defaultdict
from collections.abc import Iterator

import msgspec
import pytest

from cluster.worker import App, NoOwner, Session, ShardId
from tests.gateway.tell_world import TellWorld, payloads, send

PUT, OWNS = 1, 2
KEYS = [f"key-{number}" for number in range(120)]


class Put(msgspec.Struct):
    """A key to be kept by whoever owns it."""

    key: str


class Keeper:
    """Shards that keep keys, and hand over those that are another's when owners change."""

    def __init__(self) -> None:
        self.kept: defaultdict[ShardId, set[str]] = defaultdict(set)
        self.heard: defaultdict[ShardId, list[tuple[int, ...]]] = defaultdict(list)
        self.handed_over = 0
        self.raises_left = 0
        self.apps: dict[ShardId, App] = {}

    def prepare(self, app: App) -> None:
        @app.on_start
        def start() -> None:
            self.apps[app.shard] = app

        @app.on_packet(PUT)
        def put(session: Session, message: Put) -> None:
            try:
                app.tell_key(message.key, message)
            except NoOwner as error:
                session.send(PUT, str(error).encode())

        @app.on_packet(OWNS)
        def owns(session: Session, message: Put) -> None:
            session.send(OWNS, b"yes" if app.owns(message.key) else b"no")

        @app.on_message
        def keep(message: Put, sender: ShardId) -> None:
            if not app.owns(message.key):
                app.tell_key(message.key, message)  # on its way while owners changed
                return
            self.kept[app.shard].add(message.key)

        @app.on_keys
        def keys_changed(owners: tuple[int, ...]) -> None:
            self.heard[app.shard].append(owners)
            kept = self.kept[app.shard]
            for key in sorted(kept):
                if owners and not app.owns(key):
                    app.tell_key(key, Put(key))
                    if self.raises_left == 0:
                        kept.remove(key)
                        self.handed_over += 1
            if self.raises_left:
                self.raises_left -= 1
                raise ValueError("on purpose")

    def owner_of(self, key: str) -> list[ShardId]:
        return [shard for shard, keys in self.kept.items() if key in keys]

    def all_kept(self) -> list[str]:
        return sorted(key for keys in self.kept.values() for key in keys)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def world(keeper: Keeper) -> Iterator[TellWorld]:
    """Three nodes of two shards, of which the first two own keys."""
    made = TellWorld(keeper.prepare, 3, 2)
    made.run_linked()
    change(made, [1, 2], [3])
    made.run(lambda: len(keeper.heard) == 6, "that all have heard of it")
    shards = [shard for node in made.nodes.values() for shard in node.gateway.shards]
    made.run(lambda: all(shard.is_idle for shard in shards), "that it is committed")
    keeper.heard.clear()
    yield made
    made.close()


def change(world: TellWorld, owners: list[int], others: list[int]) -> None:
    for node in world.nodes.values():
        node.gateway.traffic.change_members(owners, others)


def put_all(world: TellWorld, keeper: Keeper) -> None:
    client = world[1].connect()
    for key in KEYS:
        send(client, PUT, Put(key))
    world.run(lambda: keeper.all_kept() == sorted(KEYS), "that all keys are kept")


def test_only_the_keys_that_must_move_do_and_each_has_one_owner(world: TellWorld, keeper: Keeper):
    put_all(world, keeper)
    before = {key: keeper.owner_of(key) for key in KEYS}
    assert {shard.node for (shard,) in before.values()} == {1, 2}
    change(world, [1, 2, 3], [])
    world.run(lambda: len(keeper.heard) == 6, "that all have heard of it")
    world.run(lambda: keeper.all_kept() == sorted(KEYS), "that all keys are kept again")
    after = {key: keeper.owner_of(key) for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    assert all(shard.node == 3 for key in moved for shard in after[key])
    assert 20 < len(moved) == keeper.handed_over < 60  # about a third
    change(world, [1, 3], [2])
    world.run(lambda: all(len(heard) == 2 for heard in keeper.heard.values()), "another change")
    world.run(lambda: keeper.all_kept() == sorted(KEYS), "that all keys are kept once more")
    for key in KEYS:
        (owner,) = keeper.owner_of(key)
        assert owner.node in (1, 3)
        if after[key][0].node != 2:
            assert [owner] == after[key]
        assert [shard for shard, app in keeper.apps.items() if app.owns(key)] == [owner]


def test_a_change_takes_effect_in_its_place_in_the_log(world: TellWorld, keeper: Keeper):
    client = world[3].connect()
    (place,) = [each for each in world[3].shards if each.worker.worker._dispatcher.sessions]
    key = next(key for key in KEYS if _owner_with(keeper, [1, 2, 3], key) == place.app.shard)
    place.is_paused = True
    send(client, OWNS, Put(key))
    world.run_for(0.1)
    change(world, [1, 2, 3], [])
    send(client, OWNS, Put(key))
    world.run_for(0.1)
    place.is_paused = False
    world.run(lambda: len(payloads(client)) == 2, "both answers")
    assert payloads(client) == [b"no", b"yes"]
    assert keeper.heard[place.app.shard] == [(1, 2, 3)]


def _owner_with(keeper: Keeper, owners: list[int], key: str) -> ShardId:
    from cluster.shared.rendezvous import owner

    node = owner(key, owners)
    return owner(key, [ShardId(node, 0), ShardId(node, 1)])


def test_of_changes_that_come_while_one_is_not_handled_the_last_one_follows(
    world: TellWorld, keeper: Keeper
):
    place = world[1].shards[0]
    place.is_paused = True
    for owners, others in (([1, 2, 3], []), ([1, 3], [2]), ([1], [2, 3]), ([2, 3], [1])):
        change(world, owners, others)
        world.run_for(0.05)
    assert keeper.heard[ShardId(1, 0)] == []
    place.is_paused = False
    world.run(lambda: len(keeper.heard[ShardId(1, 0)]) == 2, "two changes")
    world.run_for(0.2)
    assert keeper.heard[ShardId(1, 0)] == [(1, 2, 3), (2, 3)]
    assert world[1].gateway.shards[0].is_idle


def test_who_succeeds_a_worker_knows_what_that_one_knew_and_hears_the_rest(
    world: TellWorld, keeper: Keeper
):
    place, shard = world[1].shards[0], ShardId(1, 0)
    place.kill(at_commit=True)
    change(world, [1, 2, 3], [])
    world.run(lambda: len(keeper.heard[shard]) == 2, "the call, again")
    assert keeper.heard[shard] == [(1, 2, 3)] * 2
    world.run(lambda: world[1].gateway.shards[0].is_idle, "that it is committed")
    place.kill()
    world.run_for(0.2)
    assert keeper.heard[shard] == [(1, 2, 3)] * 2  # the grant tells it, and nobody else
    assert place.app.nodes == (1, 2, 3)
    change(world, [1, 2], [])
    world.run(lambda: len(keeper.heard[shard]) == 3, "the change")


def test_a_call_that_raises_hands_nothing_over_and_the_list_counts_all_the_same(
    world: TellWorld, keeper: Keeper
):
    put_all(world, keeper)
    world.run_for(0.2)
    messages = sum(node.count("messages") for node in world.nodes.values())
    keeper.raises_left = 6
    change(world, [3], [1, 2])
    world.run(lambda: keeper.raises_left == 0, "the calls")
    world.run_for(0.2)
    assert sum(node.count("messages") for node in world.nodes.values()) == messages
    assert not any(keeper.apps[ShardId(1, 0)].owns(key) for key in KEYS)
    places = [place for node in world.nodes.values() for place in node.shards]
    assert [str(error) for place in places for error in place.errors] == ["on purpose"] * 6


def test_without_owners_nobody_is_told_and_the_reason_is(world: TellWorld, keeper: Keeper):
    client = world[1].connect()
    world[1].gateway.traffic.change_members([], [1, 2, 3])  # its lease has ended
    world.run(lambda: len(keeper.heard) == 2, "that its shards have heard of it")
    send(client, PUT, Put("key"))
    world.run(lambda: bool(payloads(client)), "the answer")
    assert payloads(client)[0].startswith(b"no node may own keys: this one has no lease")
    assert keeper.heard == {ShardId(1, 0): [()], ShardId(1, 1): [()]}


def test_a_node_that_has_left_may_not_be_told_and_one_that_owns_nothing_may(
    world: TellWorld, keeper: Keeper
):
    app = keeper.apps[ShardId(1, 0)]
    assert app.nodes == (1, 2, 3)
    assert app.tell(ShardId(3, 0), Put(KEYS[0])).is_told
    change(world, [1, 2], [])
    world.run(lambda: len(keeper.heard[ShardId(1, 0)]) == 1, "the change")
    with pytest.raises(ValueError, match="there is no shard 0 of node 3; the nodes are 1, 2"):
        app.tell(ShardId(3, 0), Put(KEYS[0]))
