"""Several nodes in one process: what goes between them, and a network that a test cuts."""

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cluster.shared.config import ConfigError
from cluster.testing import ClusterNode, NothingReceived, Packet, TestClient, TestCluster, TestNode
from cluster.worker import App, BindResult, Session, ShardId, Undelivered

JOIN, SAY, LOGIN, WHISPER, KICK, TELL, ASK, FAIL, SPOIL, ALL = range(1, 11)

CUT_S = 25.0
"""Until a cut is noticed (`links.timeout_s`), and users are decided alone at the latest."""

LINK_S = 5.0
"""Until nodes that can reach each other again are linked."""


class Note(msgspec.Struct):
    text: str


class Question(msgspec.Struct):
    text: str


class Answer(msgspec.Struct):
    text: str
    shard: tuple[int, int]


def _town(second_login: Any = "replace") -> tuple[App, list[Any]]:
    """Return an application in which all goes between nodes that can, and what it notes."""
    app = App(second_login=second_login)
    log: list[Any] = []

    @app.on_packet(JOIN)
    def join(session: Session, name: bytes) -> None:
        session.join(name.decode())

    @app.on_joined
    def joined(session: Session, name: str) -> None:
        session.send(JOIN, name.encode())

    @app.on_packet(SAY)
    def say(session: Session, text: bytes) -> None:
        for name in session.groups:
            app.publish(name, SAY, text, exclude=session)

    @app.on_packet(LOGIN)
    def login(session: Session, user: bytes) -> None:
        session.bind(user.decode())

    @app.on_bound
    def bound(session: Session, result: BindResult) -> None:
        session.send(LOGIN, result.name.encode())

    @app.on_packet(WHISPER)
    def whisper(session: Session, user: bytes) -> None:
        app.send_to(user.decode(), WHISPER, b"psst")

    @app.on_packet(KICK)
    def kick(session: Session, user: bytes) -> None:
        app.kick_user(user.decode(), KICK, b"out")

    @app.on_packet(TELL)
    def tell(session: Session, key: bytes) -> None:
        app.tell_key(key, Note(key.decode()))

    @app.on_packet(ASK)
    async def ask(session: Session, key: bytes) -> None:
        try:
            session.send(ASK, await app.ask(key, Question(key.decode()), Answer, timeout_s=60))
        except Undelivered:
            session.send(ASK, b"undelivered")

    @app.on_packet(FAIL)
    def fail(session: Session, text: bytes) -> None:
        raise ZeroDivisionError(text.decode())

    @app.on_packet(SPOIL)
    def spoil(session: Session, key: bytes) -> None:
        app.tell_key(key, Note("spoiled"))

    @app.on_packet(ALL)
    def to_all(session: Session, text: bytes) -> None:
        app.broadcast(ALL, text)

    @app.on_message
    def told(note: Note, sender: ShardId) -> None:
        log.append(("told", note.text, app.shard, sender))
        if note.text == "spoiled":
            raise ZeroDivisionError("in a message")

    @app.on_message
    def asked(question: Question, sender: ShardId) -> Answer:
        return Answer(question.text, app.shard)

    @app.on_undelivered
    def undelivered(message: object, receiver: ShardId | bytes) -> None:
        assert isinstance(message, Note)
        log.append(("undelivered", message.text, app.shard))

    @app.on_disconnected
    def disconnected(session: Session, cause: str) -> None:
        log.append(("end", session.user, cause))

    return app, log


def _key_of(cluster: TestCluster, node: ClusterNode) -> bytes:
    """Return a key that a shard of `node` owns."""
    return next(key for key in (b"%d" % n for n in range(10_000)) if cluster.owner_of(key) is node)


def _payloads(client: TestClient) -> list[bytes]:
    return [packet.payload for packet in client.received]


# -- a cluster that is well ------------------------------------------------------------------------


def test_nodes_are_linked_when_the_cluster_has_begun():
    app, _ = _town()
    starts: list[Any] = []
    app.on_start(lambda: starts.append((app.shard, app.nodes)))
    with TestCluster(app, nodes=3, workers=2) as cluster:
        one, two, three = cluster.nodes
        assert [node.id for node in (one, two, three)] == [1, 2, 3]
        assert starts == [(ShardId(n, shard), (1, 2, 3)) for n in (1, 2, 3) for shard in (0, 1)]
        assert cluster.are_linked(one, three)
        assert cluster.are_linked(three, two)
        assert cluster.now == one.now == 1_000
        assert cluster.describe() == one.describe() == "the cluster is at rest"


def test_no_socket_is_opened_and_nobody_sleeps(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("this is not for tests of applications")

    app = App()
    app.every(0.5)(lambda: app.broadcast(9, b"tick"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "socketpair", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        client = two.connect()
        cluster.cut(one, two)
        cluster.advance(60)
        cluster.mend()
        cluster.advance(60)
        cluster.kill(one)
        one = cluster.start(one)
        assert cluster.are_linked(one, two)
        cluster.remove(one)
        assert len(client.received) > 240


def test_what_is_published_reaches_members_at_all_nodes():
    app, _ = _town()
    with TestCluster(app, nodes=3) as cluster:
        ann, bob, eve = (node.connect() for node in cluster.nodes)
        for client in (ann, bob):
            client.send(JOIN, b"room")
            assert client.receive() == Packet(JOIN, b"room")
        bob.send(SAY, b"hello")
        assert ann.receive() == Packet(SAY, b"hello")
        assert bob.received == eve.received == []
        eve.send(ALL, b"news")
        assert [client.receive().payload for client in (ann, bob, eve)] == [b"news"] * 3


def test_messages_go_to_the_shard_that_owns_a_key():
    app, log = _town()
    with TestCluster(app, nodes=3, workers=2) as cluster:
        one, two, three = cluster.nodes
        ann = one.connect()
        for node in (one, two, three):
            key = _key_of(cluster, node)
            ann.send(TELL, key)
            what, text, shard, sender = log.pop()
            assert (what, text, shard.node, sender.node) == ("told", key.decode(), node.id, 1)
            ann.send(ASK, key)
            assert ann.receive().decode(Answer) == Answer(key.decode(), shard)


def test_users_are_found_wherever_they_are():
    app, log = _town()
    with TestCluster(app, nodes=3) as cluster:
        clients = [node.connect() for node in cluster.nodes]
        for name, client in zip((b"ann", b"bob", b"eve"), clients, strict=True):
            client.send(LOGIN, name)
            assert client.receive().payload == b"BOUND"
        ann, bob, eve = clients
        bob.send(WHISPER, b"eve")
        assert eve.receive() == Packet(WHISPER, b"psst")
        eve.send(KICK, b"ann")
        assert ann.receive() == Packet(KICK, b"out")
        assert (ann.cause, ann.is_connected) == ("kicked", False)
        assert log == [("end", "ann", "kicked")]
        ann_again = cluster.nodes[1].connect()
        ann_again.send(LOGIN, b"ann")
        assert ann_again.session.user == "ann"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_second_login_at_another_node_replaces_the_first(first: int):
    app, log = _town()
    with TestCluster(app, nodes=3) as cluster:
        clients = [node.connect() for node in cluster.nodes]
        clients[first].send(LOGIN, b"ann")
        clients[first - 1].send(LOGIN, b"ann")
        assert clients[first].cause == "replaced"
        assert clients[first - 1].receive().payload == b"BOUND"
        assert log == [("end", "ann", "replaced")]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_second_login_at_another_node_may_be_rejected(first: int):
    app, log = _town("reject")
    with TestCluster(app, nodes=3) as cluster:
        clients = [node.connect() for node in cluster.nodes]
        clients[first].send(LOGIN, b"ann")
        clients[first - 1].send(LOGIN, b"ann")
        assert clients[first - 1].receive().payload == b"REJECTED"
        assert (clients[first].is_connected, log) == (True, [])
        clients[first].close()
        clients[first - 1].send(LOGIN, b"ann")
        assert clients[first - 1].receive().payload == b"BOUND"


def test_each_node_has_counters_and_sessions_of_its_own():
    app, _ = _town()
    app.on_packet(20)(_take_note)
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        bob.send(99)
        bob.send(20, b"not MessagePack of a Note")
        assert (one.counters["unhandled_packets"], two.counters["unhandled_packets"]) == (0, 1)
        assert (one.counters["decode_errors"], two.counters["decode_errors"]) == (0, 1)
        assert (bob.cause, two.sessions) == ("decode_error", [])
        assert [session.id for session in one.sessions] == [ann.session_id]
        assert ann.session.id >> 48 == one.id
        with pytest.raises(LookupError, match="knows no session"):
            two.session_of(ann)


def _take_note(session: Session, note: Note) -> None:
    session.send(20, note)


# -- a network that is cut -------------------------------------------------------------------------


def test_what_is_published_while_the_network_is_cut_comes_when_it_is_mended():
    app, _ = _town()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        for client in (ann, bob):
            client.send(JOIN, b"room")
            client.receive()
        cluster.cut(one, two)
        bob.send(SAY, b"into the cable")
        cluster.advance(CUT_S)
        assert not cluster.are_linked(one, two)
        bob.send(SAY, b"into the log")
        with pytest.raises(NothingReceived, match="nodes 1 and 2 are cut off from each other"):
            ann.receive()
        cluster.mend(one, two)
        cluster.advance(LINK_S)
        assert _payloads(ann) == [b"into the cable", b"into the log"]
        assert cluster.are_linked(two, one)


def test_a_short_cut_is_noticed_by_nobody():
    app, log = _town()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann = one.connect()
        key = _key_of(cluster, two)
        cluster.cut(one, two)
        ann.send(TELL, key)
        ann.send(ASK, key)
        assert log == ann.received == []
        assert "1 call that awaits something" in cluster.describe()
        cluster.advance(3)
        cluster.mend()
        assert [entry[0] for entry in log] == ["told"]
        assert ann.receive().decode(Answer).shard == (2, 0)
        assert one.counters["links_lost"] == two.counters["links_lost"] == 0


def test_one_way_may_be_cut_alone():
    app, log = _town()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        cluster.cut(one, two, one_way=True)
        assert cluster.describe().endswith("; nothing gets from node 1 to node 2")
        bob.send(TELL, _key_of(cluster, one))
        assert [entry[2].node for entry in log] == [1]
        ann.send(TELL, _key_of(cluster, two))
        assert len(log) == 1
        cluster.mend(two, one)
        assert [entry[2].node for entry in log] == [1, 2]


def test_a_node_may_be_cut_off_from_all_others_and_mended_in_part():
    app, _ = _town()
    with TestCluster(app, nodes=3) as cluster:
        one, two, three = cluster.nodes
        cluster.cut(three)
        cluster.advance(CUT_S)
        linked = [cluster.are_linked(a, b) for a, b in ((one, two), (one, three), (two, three))]
        assert linked == [True, False, False]
        cluster.mend(three, one)
        cluster.advance(LINK_S)
        assert cluster.are_linked(one, three)
        assert not cluster.are_linked(two, three)
        cluster.mend(three)
        cluster.advance(LINK_S)
        assert cluster.are_linked(two, three)


def test_a_link_that_does_not_stand_yet_is_told_of():
    app, _ = _town()
    told = set()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        for seconds in range(30, 50):
            cluster.cut(one, two)
            cluster.advance(seconds)
            cluster.mend()
            told.add(cluster.describe())
            cluster.advance(LINK_S)
            assert cluster.describe() == "the cluster is at rest"
    at_rest = "the cluster is at rest"
    assert told == {at_rest, f"{at_rest}; nodes 1 and 2 link again as time passes"}


@pytest.mark.parametrize("second_login", ["replace", "reject"])
@pytest.mark.parametrize("first", [0, 1])
def test_parted_nodes_let_a_user_in_twice_and_the_later_login_stays(second_login: str, first: int):
    app, log = _town(second_login)
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        clients = [one.connect(), two.connect()]
        earlier, later = clients[first], clients[1 - first]
        cluster.cut(one, two)
        cluster.advance(CUT_S)
        for client in (earlier, later):
            client.send(LOGIN, b"ann")
            assert client.receive().payload == b"BOUND"
        assert one.counters["binds_decided_alone"] + two.counters["binds_decided_alone"] == 1
        cluster.mend()
        cluster.advance(LINK_S)
        assert (earlier.cause, later.cause) == ("replaced", None)
        assert log == [("end", "ann", "replaced")]


def test_a_login_waits_for_an_owner_that_is_silent():
    app, _ = _town()
    with TestCluster(app, nodes=2, links={"timeout_s": 2}) as cluster:
        one, two = cluster.nodes
        clients = [one.connect(), two.connect()]
        cluster.cut(one, two)
        for client in clients:
            client.send(LOGIN, b"ann")
        assert sorted(len(client.received) for client in clients) == [0, 1]
        cluster.advance(7)
        assert [len(client.received) for client in clients] == [1, 1]


# -- handlers that raise, workers that die ---------------------------------------------------------


def test_what_a_handler_raises_at_any_node_is_raised_by_the_call():
    app, _ = _town()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        bob = two.connect()
        with pytest.raises(ZeroDivisionError, match="here") as raised:
            bob.send(FAIL, b"here")
        assert raised.value.__notes__ == ["this was raised at node 2"]
        ann = one.connect()
        with pytest.raises(ZeroDivisionError, match="in a message") as raised:
            ann.send(SPOIL, _key_of(cluster, two))
        assert raised.value.__notes__ == ["this was raised at node 2"]
        with pytest.raises(ZeroDivisionError, match="in a message") as raised:
            ann.send(SPOIL, _key_of(cluster, one))
        assert raised.value.__notes__ == ["this was raised at node 1"]


def test_errors_are_kept_for_each_node_where_they_are_not_raised():
    app, _ = _town()
    with TestCluster(app, nodes=2, raise_errors=False) as cluster:
        one, two = cluster.nodes
        one.connect().send(FAIL, b"first")
        two.connect().send(FAIL, b"second")
        assert [str(error) for error in cluster.errors] == ["first", "second"]
        assert [str(error) for error in one.errors] == ["first"]
        assert [str(error) for error in two.errors] == ["second"]


@pytest.mark.parametrize("at_commit", [False, True])
def test_a_worker_that_dies_loses_no_message_and_repeats_none(at_commit: bool):
    app, log = _town()
    with TestCluster(app, nodes=2, workers=2) as cluster:
        one, two = cluster.nodes
        ann = one.connect()
        keys = [key for key in (b"%d" % n for n in range(40)) if cluster.owner_of(key) is two]
        cluster.cut(one, two)
        for key in keys:
            ann.send(TELL, key)
        for shard in (0, 1):
            two.kill_worker(shard, at_commit=at_commit)
            one.kill_worker(shard, at_commit=at_commit)
        cluster.mend()
        told = [entry[1].encode() for entry in log]
        assert sorted(set(told)) == sorted(keys)
        assert (len(told) > len(keys)) == at_commit, "what was not committed came again"
        ann.send(ASK, keys[0])
        assert ann.receive().decode(Answer).shard[0] == 2


# -- time ------------------------------------------------------------------------------------------


def test_timers_of_all_nodes_come_due_by_one_clock():
    app = App()
    log: list[Any] = []
    app.every(1)(lambda: log.append((app.now, app.shard.node)))
    with TestCluster(app, nodes=2) as cluster:
        cluster.nodes[1].advance(2.5)
        assert cluster.now == 1_002.5
        assert sorted(log) == [(1_001, 1), (1_001, 2), (1_002, 1), (1_002, 2)]


def test_what_a_timer_posts_runs_in_its_own_worker():
    app = App()
    log: list[Any] = []

    @app.every(1)
    def tick() -> None:
        here = app.shard
        app.post(lambda: log.append((here, app.shard)))

    with TestCluster(app, nodes=2, workers=2) as cluster:
        cluster.advance(3)
    assert len(log) == 12
    assert all(posted_by == ran_in for posted_by, ran_in in log)


def test_what_a_test_posts_runs_once():
    app, _ = _town()
    log: list[Any] = []
    with TestCluster(app, nodes=2) as cluster:
        app.post(lambda: log.append(app.shard.node))
        cluster.settle()
        assert len(log) == 1


def test_real_time_may_be_waited_for():
    app, _ = _town()
    moments = iter((False, False, True))
    with TestCluster(app, nodes=2) as cluster:
        cluster.wait_until(lambda: next(moments))
        assert next(moments, None) is None
        with pytest.raises(TimeoutError, match=r"within 0.01 s; the cluster is at rest"):
            cluster.nodes[0].wait_until(lambda: False, timeout_s=0.01)


def test_two_runs_are_the_same(caplog: pytest.LogCaptureFixture):
    def run() -> list[Any]:
        app, log = _town()
        app.every(0.3)(lambda: log.append((app.shard, app.now)))
        with TestCluster(app, nodes=3, workers=2) as cluster:
            one, two, three = cluster.nodes
            clients = [node.connect() for node in cluster.nodes for _ in range(3)]
            for number, client in enumerate(clients):
                client.send(JOIN, b"%d" % (number % 2))
                client.send(LOGIN, b"%d" % (number % 4))
            cluster.cut(one, three)
            for number, client in enumerate(clients):
                if client.cause is None:
                    client.send(SAY, b"%d" % number)
                    client.send(TELL, b"%d" % number)
                    client.send(LOGIN, b"x")
                cluster.advance(2.7)
            two.kill_worker(0, at_commit=True)
            cluster.mend()
            cluster.advance(3)
            cluster.kill(three)
            cluster.start(three)
            cluster.remove(cluster.add())
            seen = [(client.received, client.cause) for client in clients]
            counters = [node.counters for node in cluster.nodes]
            return [log, seen, counters, cluster.now, cluster.describe()]

    with caplog.at_level(logging.ERROR):
        first = run()
        assert first == run()
    assert len(first[0]) > 500


# -- misuse ----------------------------------------------------------------------------------------


def test_a_cluster_is_begun_once_and_ended_once():
    app, log = _town()
    cluster = TestCluster(app)
    for use in (lambda: cluster.nodes, cluster.settle, lambda: cluster.advance(1), cluster.add):
        with pytest.raises(RuntimeError, match="has not been started"):
            use()
    with cluster:
        one, two = cluster.nodes
        ann = one.connect()
        with pytest.raises(RuntimeError, match="started before"):
            cluster.__enter__()
    cluster.close()
    assert (ann.cause, log) == ("drain", [("end", None, "drain")])
    for use in (cluster.settle, lambda: cluster.kill(one), lambda: cluster.nodes, two.settle):
        with pytest.raises(RuntimeError, match="the cluster is closed; make another"):
            use()
    with pytest.raises(RuntimeError, match="node 2 does not run: its cluster is closed"):
        two.connect()
    assert repr(two) == "<ClusterNode 2: its cluster is closed>"


def test_nodes_of_others_are_refused():
    app, _ = _town()
    with TestCluster(app) as cluster, TestCluster(app) as other, TestNode(app) as alone:
        (one, two), (stranger, _) = cluster.nodes, other.nodes
        calls: list[Callable[[ClusterNode], object]] = [
            cluster.kill,
            cluster.start,
            cluster.remove,
            cluster.cut,
            cluster.mend,
            lambda node: cluster.cut(one, node),
            lambda node: cluster.are_linked(node, two),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="ClusterNode 1: it runs> is not of this cluster"):
                call(stranger)
            with pytest.raises(TypeError, match="is no node of a cluster"):
                call(alone)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cannot be cut off from itself"):
            cluster.cut(one, one)
        with pytest.raises(RuntimeError, match="node 1 runs: kill it first"):
            cluster.start(one)
        with pytest.raises(ValueError, match="give 0 or more"):
            cluster.advance(-1)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "nodes=0: a cluster under test has 1 to 100", {"nodes": 0}),
        (ValueError, "workers=0", {"workers": 0}),
        (ConfigError, "TestCluster: node.id: that is the cluster's own", {"node": {"id": 3}}),
        (ConfigError, "links.nodes: that is the cluster's own", {"links": {"nodes": []}}),
        (ConfigError, "TestCluster: links.timeout", {"links": {"timeout": 3}}),
        (ConfigError, "TestCluster: limit", {"limit": {}}),
        (ConfigError, "TestCluster: links", {"links": 3}),
        (ConfigError, "TestCluster: gateway.proxies", {"gateway": {"proxies": ["::1"]}}),
    ],
)
def test_what_a_cluster_cannot_be_made_of(
    error: type[Exception], match: str, options: dict[str, Any]
):
    with pytest.raises(error, match=match):
        TestCluster(App(), **options)
    with pytest.raises(TypeError, match=r"TestCluster takes a cluster\.worker\.App"):
        TestCluster("app")  # type: ignore[arg-type]


def test_an_error_in_the_block_is_what_is_seen():
    app, log = _town()
    with pytest.raises(ZeroDivisionError), TestCluster(app) as cluster:
        cluster.nodes[0].connect()
        raise ZeroDivisionError
    assert log == []


def test_an_on_start_that_raises_is_raised():
    app = App()

    @app.on_start
    def start() -> None:
        if app.shard.node == 2:
            raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"), TestCluster(app):
        raise AssertionError("it has not begun")


def test_limits_and_other_sections_are_those_of_each_node():
    app, _ = _town()
    with TestCluster(app, nodes=2, limits={"idle_timeout_s": 60}) as cluster:
        clients = [node.connect() for node in cluster.nodes]
        cluster.advance(61)
        assert [client.cause for client in clients] == ["idle_timeout"] * 2
