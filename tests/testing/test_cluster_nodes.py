"""Nodes of a cluster under test that die, begin anew, join and leave, also within a handler."""

import asyncio
from typing import Any

import msgspec
import pytest

from cluster.testing import ClusterNode, TestClient, TestCluster
from cluster.worker import App, Session, ShardId, Undelivered

TELL, ASK, WAIT, DO = 1, 2, 3, 4


class Score(msgspec.Struct):
    player: str
    points: int


class Total(msgspec.Struct):
    points: int


def _ladder() -> tuple[App, list[Any], dict[ShardId, dict[str, int]]]:
    """Return an application that keeps one ladder, what it notes, and what its shards know."""
    app = App()
    log: list[Any] = []
    ladders: dict[ShardId, dict[str, int]] = {}

    @app.on_start
    def start() -> None:
        ladders[app.shard] = {player: int(blob) for player, blob in app.saved.items()}

    @app.on_packet(TELL)
    def tell(session: Session, player: bytes) -> None:
        app.tell_key("ladder", Score(player.decode(), len(player)))

    @app.on_packet(ASK)
    async def ask(session: Session, player: bytes) -> None:
        try:
            answer = await app.ask("ladder", Score(player.decode(), 0), Total, timeout_s=60)
            session.send(ASK, b"%d" % answer.points)
        except Undelivered:
            session.send(ASK, b"undelivered")

    @app.on_message
    def count(score: Score, sender: ShardId) -> Total:
        assert app.owns("ladder")
        ladder = ladders[app.shard]
        ladder[score.player] = ladder.get(score.player, 0) + score.points
        app.save(score.player, b"%d" % ladder[score.player])
        return Total(ladder[score.player])

    @app.on_keys
    def keys_changed(owners: tuple[int, ...]) -> None:
        log.append(("keys", app.shard.node, owners))
        if owners and not app.owns("ladder"):
            for player, blob in list(app.saved.items()):
                app.tell_key("ladder", Score(player, int(blob)))
                app.forget(player)
            ladders[app.shard].clear()

    @app.on_undelivered
    def undelivered(message: object, receiver: ShardId | bytes) -> None:
        assert isinstance(message, Score)
        log.append(("undelivered", message.player, receiver))

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        log.append(("end", app.shard.node, cause))

    @app.on_stop
    def stop() -> None:
        log.append(("stop", app.shard.node))

    return app, log, ladders


def _keepers(ladders: dict[ShardId, dict[str, int]]) -> dict[int, dict[str, int]]:
    return {shard.node: ladder for shard, ladder in ladders.items() if ladder}


def _elsewhere(cluster: TestCluster) -> tuple[ClusterNode, TestClient]:
    """Return the node that owns the ladder, and a client at another one."""
    keeper = cluster.owner_of("ladder")
    return keeper, next(node for node in cluster.nodes if node is not keeper).connect()


# -- gateways that die -----------------------------------------------------------------------------


def test_a_gateway_that_dies_cuts_its_clients_off_and_nobody_is_told():
    app, log, _ = _ladder()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        cluster.kill(two)
        assert (bob.is_connected, bob.cause, ann.is_connected) == (False, None, True)
        assert repr(bob) == "<TestClient cut off>"
        assert bob.received == []
        with pytest.raises(AssertionError, match="rest; node 2 does not run"):
            bob.receive()
        with pytest.raises(ConnectionError, match="cut off"):
            bob.send(TELL)
        with pytest.raises(LookupError):
            bob.session  # noqa: B018
        assert log == []
        assert cluster.nodes == [one]
        killed = "node 2 does not run: it was killed; cluster.start"
        for call in (two.connect, two.kill_worker, two.drain, lambda: cluster.kill(two)):
            with pytest.raises(RuntimeError, match=killed):
                call()
        two.settle()
        assert (two.sessions, two.is_closed, one.is_closed) == ([], True, False)


def test_what_was_on_its_way_is_undelivered_in_the_next_life():
    app, log, ladders = _ladder()
    with TestCluster(app, nodes=2) as cluster:
        keeper, ann = _elsewhere(cluster)
        ann.send(TELL, b"ann")
        assert _keepers(ladders) == {keeper.id: {"ann": 3}}
        cluster.kill(keeper)
        ann.send(TELL, b"bob")
        ann.send(ASK, b"eve")
        cluster.advance(50)
        assert log == ann.received == []
        again = cluster.start(keeper)
        assert log == [("keys", 3 - keeper.id, (1, 2)), ("undelivered", "bob", b"ladder")]
        assert ann.receive().payload == b"undelivered"
        assert (again.id, again.is_closed, keeper.is_closed) == (keeper.id, False, True)
        assert cluster.are_linked(*cluster.nodes)
        assert _keepers(ladders) == {}, "memory and what was saved are gone"
        ann.send(ASK, b"ann")
        assert ann.receive().payload == b"0"
        client = again.connect()
        assert client.session.id >> 32 == keeper.id << 16 | 2, "the second epoch"
        with pytest.raises(RuntimeError, match="has begun another life"):
            keeper.connect()


def test_a_node_begins_anew_behind_a_cut():
    app, log, _ = _ladder()
    with TestCluster(app, nodes=2) as cluster:
        keeper, ann = _elsewhere(cluster)
        cluster.cut(keeper)
        ann.send(TELL, b"ann")
        cluster.kill(keeper)
        keeper = cluster.start(keeper)
        cluster.advance(30)
        assert log == []
        assert "are cut off from each other" in cluster.describe()
        cluster.mend()
        cluster.advance(10)
        assert cluster.describe() == "the cluster is at rest"
        assert log == [("keys", 3 - keeper.id, (1, 2)), ("undelivered", "ann", b"ladder")]
        ann.send(ASK, b"eve")
        assert ann.receive().payload == b"0"


def test_a_node_that_begins_anew_has_nothing_saved_and_asks_for_it_itself():
    app = App()
    log: list[Any] = []

    @app.on_start
    def start() -> None:
        log.append(("start", app.shard.node, dict(app.saved)))
        for node in app.nodes:
            if node != app.shard.node:
                app.tell(ShardId(node, 0), Total(app.shard.node))

    @app.on_message
    def began(total: Total, sender: ShardId) -> None:
        log.append(("told", app.shard.node, total.points))

    @app.on_message
    def save(score: Score, sender: ShardId) -> None:
        app.save(score.player, b"1")

    @app.on_keys
    def keys_changed(owners: tuple[int, ...], anew: tuple[int, ...]) -> None:
        log.append(("keys", app.shard.node, owners, anew))

    @app.on_packet(TELL)
    def tell(session: Session, player: bytes) -> None:
        app.tell(ShardId(2, 0), Score(player.decode(), 1))

    @app.on_packet(DO)
    def look(session: Session, payload: bytes) -> None:
        session.send(DO, ",".join(app.saved).encode())

    def saved_by(node: ClusterNode) -> bytes:
        client = node.connect()
        client.send(DO)
        return client.receive().payload

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        one.connect().send(TELL, b"ann")
        assert saved_by(two) == b"ann"
        del log[:]
        cluster.kill(two)
        cluster.advance(60)
        assert log == []
        two = cluster.start(two)
        cluster.advance(10)
        assert log == [("start", 2, {}), ("keys", 1, (1, 2), (2,)), ("told", 1, 2)]
        assert saved_by(two) == b""


def test_a_node_that_does_not_come_back_is_forgotten():
    app, log, ladders = _ladder()
    with TestCluster(app, nodes=3) as cluster:
        keeper, ann = _elsewhere(cluster)
        cluster.kill(keeper)
        ann.send(TELL, b"ann")
        cluster.remove(keeper)
        owners = tuple(node.id for node in cluster.nodes)
        assert ("undelivered", "ann", b"ladder") in log
        assert [entry for entry in log if entry[0] == "keys"] == [
            ("keys", node, owners) for node in owners
        ]
        heir = cluster.owner_of("ladder")
        ann.send(TELL, b"bob")
        assert _keepers(ladders) == {heir.id: {"bob": 3}}
        for call in (cluster.start, cluster.remove, cluster.kill, cluster.cut):
            with pytest.raises(ValueError, match="has left the cluster> is not of this cluster"):
                call(keeper)


def test_an_on_start_that_raises_leaves_a_node_dead():
    app = App()
    fails: list[Exception] = []

    @app.on_start
    def start() -> None:
        if fails:
            raise fails.pop()

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        cluster.kill(two)
        fails.append(ZeroDivisionError("no"))
        with pytest.raises(ZeroDivisionError, match="no"):
            cluster.start(two)
        assert cluster.nodes == [one]
        two = cluster.start(two)
        assert cluster.are_linked(one, two)
        fails.append(ZeroDivisionError("no"))
        with pytest.raises(ZeroDivisionError, match="no"):
            cluster.add()
        assert cluster.nodes == [one, two]
        assert cluster.describe() == "the cluster is at rest"


# -- nodes that join and leave ---------------------------------------------------------------------


def test_what_is_saved_for_a_key_follows_it_as_nodes_join_and_leave():
    app, log, ladders = _ladder()
    with TestCluster(app, nodes=1, workers=2) as cluster:
        (one,) = cluster.nodes
        ann = one.connect()
        for player in (b"ann", b"bob", b"ann"):
            ann.send(TELL, player)
        scores = {"ann": 6, "bob": 3}
        assert _keepers(ladders) == {1: scores}
        joined = [cluster.add() for _ in range(4)]
        assert [node.id for node in joined] == [2, 3, 4, 5]
        keeper = cluster.owner_of("ladder")
        assert keeper is not one, "this name is one of a node that joins"
        assert _keepers(ladders) == {keeper.id: scores}
        assert log[:2] == [("keys", 1, (1, 2))] * 2
        log.clear()
        clients = [node.connect() for node in (keeper, one)]
        cluster.remove(keeper)
        heir = cluster.owner_of("ladder")
        assert _keepers(ladders) == {heir.id: scores}
        assert ("end", keeper.id, "drain") in log
        assert log.count(("stop", keeper.id)) == 2
        assert [client.is_connected for client in clients] == [False, True]
        assert keeper not in cluster.nodes
        ann.send(ASK, b"ann")
        assert ann.receive().payload == b"6"
        assert cluster.add().id == keeper.id, "the smallest id that nobody has"


def test_a_message_that_is_told_as_its_key_moves_is_passed_on():
    app, _, ladders = _ladder()
    app.on_drain(lambda seconds: None)
    with TestCluster(app, nodes=3) as cluster:
        keeper, ann = _elsewhere(cluster)
        keeper.connect()
        cluster.cut(keeper)
        ann.send(TELL, b"ann")
        keeper.drain()
        cluster.mend()
        heir = cluster.owner_of("ladder")
        assert heir is not keeper
        assert _keepers(ladders) == {heir.id: {"ann": 3}}, "it went on to the new owner"
        with pytest.raises(ConnectionRefusedError):
            keeper.connect()
        assert repr(keeper) == f"<ClusterNode {keeper.id}: it drains>"
        cluster.remove(keeper)
        assert _keepers(ladders) == {heir.id: {"ann": 3}}


def test_a_message_by_key_that_a_drained_node_has_not_taken_goes_to_the_new_owner():
    app, log, ladders = _ladder()
    with TestCluster(app, nodes=3) as cluster:
        keeper, ann = _elsewhere(cluster)
        cluster.cut(keeper)
        ann.send(TELL, b"ann")
        keeper.drain()
        cluster.mend()
        heir = cluster.owner_of("ladder")
        assert _keepers(ladders) == {heir.id: {"ann": 3}}
        cluster.remove(keeper)
        assert not [entry for entry in log if entry[0] == "undelivered"]


@pytest.mark.parametrize("dies_at", ["now", "commit"])
def test_a_message_goes_to_whoever_owns_its_key_with_its_first_sender(dies_at: str):
    """Told at a node that is cut off from the owner, which leaves, and whose workers die."""
    app = App()
    taken: list[Any] = []

    @app.on_packet(TELL)
    def tell(session: Session, player: bytes) -> None:
        app.tell_key("ladder", Score(player.decode(), app.owner_of("ladder")))

    @app.on_message
    def count(score: Score, sender: ShardId, key: str) -> None:
        assert app.owns(key)
        app.save(score.player, app.saved.get(score.player, b"") + b"x")
        taken.append((app.shard, score, sender, key))

    @app.on_packet(DO)
    def look(session: Session, payload: bytes) -> None:
        session.send(DO, app.saved.get("ann", b"none"))

    with TestCluster(app, nodes=3) as cluster:
        keeper, ann = _elsewhere(cluster)
        sender = ShardId(ann.session.id >> 48, 0)
        cluster.cut(keeper)
        ann.send(TELL, b"ann")
        keeper.drain()
        heir = cluster.owner_of("ladder")
        heir.kill_worker(at_commit=dies_at == "commit")
        cluster.mend()
        if dies_at == "now":
            heir.kill_worker()
        cluster.remove(keeper)
        assert {*map(str, taken)} == {
            str((ShardId(heir.id, 0), Score("ann", keeper.id), sender, "ladder"))
        }
        client = heir.connect()
        client.send(DO)
        assert client.receive().payload == b"x"
        told = next(node for node in cluster.nodes if node.id == sender.node)
        assert told.counters["tells_passed_on"] == 1


def test_a_node_leaves_when_its_application_lets_its_sessions_go():
    app, log, _ = _ladder()

    @app.on_drain
    async def let_go(seconds: float) -> None:
        answer = await app.ask("ladder", Score("match", 7), Total)
        await asyncio.sleep(4)
        for session in list(app.sessions.values()):
            session.send(9, b"%d" % answer.points)
            session.disconnect("maintenance")

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        began = cluster.now
        cluster.remove(two)
        assert (bob.cause, bob.receive().payload) == ("maintenance", b"7")
        assert began + 4 <= cluster.now < began + 6
        assert ann.is_connected
    assert ann.cause == "maintenance"
    assert ann.received[-1].payload == b"14"
    assert log[-1] == ("stop", 1)


def test_all_nodes_drain_together_and_their_keys_stay():
    app, log, _ = _ladder()

    @app.on_drain
    async def let_go(seconds: float) -> None:
        log.append((await app.ask("ladder", Score("match", 1), Total)).points)
        for session in list(app.sessions.values()):
            session.disconnect("maintenance")

    with TestCluster(app, nodes=3) as cluster:
        clients = [node.connect() for node in cluster.nodes]
        began = cluster.now
    assert [client.cause for client in clients] == ["maintenance"] * 3
    assert sorted(entry for entry in log if isinstance(entry, int)) == [1, 2, 3]
    assert log[-3:] == [("stop", 1), ("stop", 2), ("stop", 3)]
    assert not [entry for entry in log if isinstance(entry, tuple) and entry[0] == "keys"]
    assert cluster.now == began


def test_the_end_does_not_wait_for_ever_for_who_is_cut_off():
    app, _, _ = _ladder()
    with TestCluster(app, nodes=2, supervisor={"drain_timeout_s": 5}) as cluster:
        keeper, ann = _elsewhere(cluster)
        cluster.cut(keeper)
        ann.send(TELL, b"ann")
        ann.send(ASK, b"ann")
        began = cluster.now
    assert cluster.now - began <= 5
    assert ann.cause == "drain"


def test_a_drain_may_be_begun_by_one_node_and_end_with_the_block():
    app, log, _ = _ladder()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        bob = two.connect()
        two.drain()
        assert bob.cause == "drain"
        keys = [entry for entry in log if entry[0] == "keys"]
        assert sorted(keys) == [("keys", 1, (1,)), ("keys", 2, (1,))]
        one.drain()
        with pytest.raises(LookupError, match="nobody owns keys"):
            cluster.owner_of("ladder")
    assert log[-2:] == [("stop", 1), ("stop", 2)]


def test_the_last_node_may_leave_and_another_join():
    app, _, ladders = _ladder()
    with TestCluster(app, nodes=1) as cluster:
        (one,) = cluster.nodes
        cluster.remove(one)
        assert cluster.nodes == []
        cluster.advance(1)
        again = cluster.add()
        again.connect().send(TELL, b"ann")
        assert (again.id, _keepers(ladders)) == (1, {1: {"ann": 3}})


def test_all_nodes_may_be_dead_at_the_end():
    app, log, _ = _ladder()
    with TestCluster(app, nodes=2) as cluster:
        for node in cluster.nodes:
            cluster.kill(node)
    assert log == []


# -- in the midst of a step ------------------------------------------------------------------------


class _Hook:
    """What a handler does to the cluster that it runs in."""

    def __init__(self, app: App) -> None:
        self.deed: Any = None
        self.went_on: list[Any] = []

        @app.on_packet(DO)
        def do(session: Session, payload: bytes) -> None:
            deed, self.deed = self.deed, None
            result = deed() if deed is not None else None
            self.went_on.append((app.shard.node, result))
            session.send(DO, b"done")


def test_a_handler_may_kill_another_node():
    app, log, _ = _ladder()
    hook = _Hook(app)
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        hook.deed = lambda: cluster.kill(two)
        ann.send(DO)
        assert ann.receive().payload == b"done"
        assert (hook.went_on, bob.is_connected, cluster.nodes) == ([(1, None)], False, [one])
        hook.deed = lambda: cluster.start(two)
        ann.send(DO)
        assert ann.receive().payload == b"done"
        assert [node.id for node in cluster.nodes] == [1, 2]
        assert cluster.are_linked(*cluster.nodes)
        assert log == [("keys", 1, (1, 2))]


def test_a_handler_that_kills_its_own_node_goes_no_further():
    app, log, _ = _ladder()
    hook = _Hook(app)
    with TestCluster(app, nodes=2, workers=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        hook.deed = lambda: cluster.kill(two)
        bob.send(DO)
        assert (hook.went_on, bob.received, bob.is_connected) == ([], [], False)
        ann.send(DO)
        assert hook.went_on == [(1, None)]
        two = cluster.start(two)
        two.connect().send(DO)
        assert hook.went_on[-1] == (2, None)
        assert log == [("keys", 1, (1, 2))] * 2


def test_a_handler_may_have_a_node_join():
    app, log, _ = _ladder()
    hook = _Hook(app)
    with TestCluster(app, nodes=1) as cluster:
        ann = cluster.nodes[0].connect()
        hook.deed = cluster.add
        ann.send(DO)
        assert ann.receive().payload == b"done"
        assert [node.id for node in cluster.nodes] == [1, 2]
        assert (cluster.are_linked(*cluster.nodes), log) == (True, [("keys", 1, (1, 2))])


def test_a_handler_that_raises_keeps_no_node_from_leaving_and_none_from_joining():
    app = App()

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        raise ZeroDivisionError(cause)

    @app.on_keys
    def keys_changed(owners: tuple[int, ...]) -> None:
        if len(owners) == 3:
            raise ZeroDivisionError("a third")

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        with pytest.raises(ZeroDivisionError, match="a third"):
            cluster.add()
        assert [node.id for node in cluster.nodes] == [1, 2, 3]
        two.connect()
        with pytest.raises(ZeroDivisionError, match="drain"):
            cluster.remove(two)
        assert [node.id for node in cluster.nodes] == [1, 3]
        assert cluster.describe() == "the cluster is at rest"


@pytest.mark.parametrize("at_stop", [False, True])
def test_a_node_may_be_killed_as_it_leaves(at_stop: bool):
    app = App()
    ends: list[str] = []

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        if not at_stop:
            cluster.kill(two)

    @app.on_stop
    def stop() -> None:
        if at_stop and app.shard.node == 2:
            cluster.kill(two)
        ends.append(str(app.shard))

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        bob = two.connect()
        cluster.remove(two)
        assert not bob.is_connected
        assert (cluster.nodes, ends) == ([one], [])
        assert cluster.describe() == "the cluster is at rest"
    assert ends == ["shard 0 of node 1"]


def test_a_node_cannot_leave_while_a_handler_runs():
    app, _, _ = _ladder()
    hook = _Hook(app)
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann = one.connect()
        hook.deed = lambda: cluster.remove(two)
        with pytest.raises(RuntimeError, match="cannot leave in good order while a handler runs"):
            ann.send(DO)
        assert cluster.nodes == [one, two]
        bob = two.connect()
        hook.deed = lambda: cluster.advance(1)
        with pytest.raises(RuntimeError, match="time does not pass in the midst of a call"):
            bob.send(DO)


@pytest.mark.parametrize("is_gateway", [False, True])
def test_who_waits_in_a_step_may_be_killed_by_a_handler_of_another_node(is_gateway: bool):
    app = App(coroutines_max=1, coroutines_waiting_max=0)
    hook = _Hook(app)
    log: list[Any] = []

    @app.on_packet(WAIT)
    async def wait(session: Session, payload: bytes) -> None:
        await asyncio.sleep(3)
        log.append(app.shard.node)
        session.send(WAIT, b"again" if session.redelivered else b"")

    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        hook.deed = lambda: app.call_later(
            1, lambda: cluster.kill(two) if is_gateway else two.kill_worker()
        )
        ann.send(DO)
        began = cluster.now
        bob.send(WAIT)  # the worker takes nothing more, and time passes; then ann's timer is due
        if is_gateway:
            assert (log, bob.is_connected, cluster.nodes) == ([], False, [one])
            assert cluster.now == began + 1
        else:
            assert log == [2]
            assert bob.receive().payload == b"again"
            assert began + 4 <= cluster.now < began + 6
        ann.send(DO)
        assert [node for node, _ in hook.went_on] == [1, 1]


def test_a_worker_that_waits_has_the_other_nodes_go_on():
    app = App(coroutines_max=1, coroutines_waiting_max=0)
    log: list[Any] = []

    @app.on_packet(ASK)
    async def ask(session: Session, number: bytes) -> None:
        answer = await app.ask(ShardId(2, 0), Score("x", int(number)), Total, timeout_s=50)
        session.send(ASK, b"%d" % answer.points)

    @app.on_message
    async def asked(score: Score, sender: ShardId) -> Total:
        await asyncio.sleep(score.points)
        log.append((app.shard.node, app.now))
        return Total(score.points)

    with TestCluster(app, nodes=2) as cluster:
        one, _ = cluster.nodes
        ann, bob = one.connect(), one.connect()
        began = cluster.now
        ann.send(ASK, b"3")
        bob.send(ASK, b"4")
        cluster.advance(30)
        assert ann.receive().payload == b"3"
        assert bob.receive().payload == b"4"
        assert log == [(2, began + 3), (2, began + 7)]


def test_who_waits_for_what_nothing_brings_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.testing.stage.WAITS_MAX", 100)
    monkeypatch.setattr("cluster.testing.stage.WAITS_MIN_S", 0.0)
    app = App(coroutines_max=1, coroutines_waiting_max=0)

    @app.on_packet(WAIT)
    async def wait(session: Session, payload: bytes) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="which nothing in this cluster ends"):  # noqa: SIM117
        with TestCluster(app, nodes=2) as cluster:
            one, _ = cluster.nodes
            one.connect().send(WAIT)
            one.connect().send(WAIT)


def test_a_time_that_a_full_worker_awaits_may_be_far_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.testing.stage.WAITS_MAX", 100)
    monkeypatch.setattr("cluster.testing.stage.WAITS_MIN_S", 0.0)
    app = App(coroutines_max=1, coroutines_waiting_max=0)

    @app.on_packet(WAIT)
    async def wait(session: Session, payload: bytes) -> None:
        await asyncio.sleep(600)
        session.send(WAIT)

    with TestCluster(app, nodes=2) as cluster:
        one, _ = cluster.nodes
        client, began = one.connect(), cluster.now
        client.send(WAIT)
        one.connect()
        assert client.receive().id == WAIT
        assert cluster.now - began >= 600


def test_an_on_start_that_asks_another_node_is_told_in_time():
    app = App()

    @app.on_start
    async def start() -> None:
        await app.ask(ShardId(3 - app.shard.node, 0), Score("x", 1), Total, timeout_s=5)

    with pytest.raises(TimeoutError), TestCluster(app, nodes=2):
        raise AssertionError("it has not begun")
