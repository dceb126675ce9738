"""The reference: the code of its sections, taken as it is printed, does what stands there."""

import re
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from cluster.testing import ClusterNode, TestCluster, TestNode
from cluster.worker import App, Session

REFERENCE = Path(__file__).parents[2] / "docs" / "application.md"
README = Path(__file__).parents[2] / "README.md"


def code_of(section: str) -> str:
    """Return the Python of a section as one file."""
    text = REFERENCE.read_text("utf-8")
    body = re.split(r"^## ", text[text.index(f"## {section}\n") + 3 :], flags=re.MULTILINE)[0]
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL))


def block_behind(marker: str, page: Path) -> CodeType:
    """Return the first Python behind `marker`."""
    behind = page.read_text("utf-8").partition(marker)[2]
    source = behind.partition("```python\n")[2].partition("```")[0]
    return compile(source, str(page), "exec", dont_inherit=True)


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code of the section that the test names, where `app` and `Session` are if it has none."""
    module = ModuleType("reference")
    monkeypatch.setitem(sys.modules, "reference", module)
    vars(module).update(app=App(), Session=Session)
    source = code_of(request.param)
    exec(compile(source, str(REFERENCE), "exec", dont_inherit=True), vars(module))
    return module


@pytest.mark.parametrize("module", ["Messages between shards"], indirect=True)
def test_the_ladder_is_one_whichever_shard_a_score_comes_from(module: ModuleType):
    with TestNode(module.app, workers=2) as node:
        places = []
        for player, points in (("ann", 5), ("bob", 3), ("eve", 9)):
            client = node.connect()
            client.send(6, module.Score(player, points))
            places.append(client.receive().decode(module.Rank).place)
        assert places == [1, 2, 1]


@pytest.mark.parametrize("module", ["Messages between shards"], indirect=True)
def test_the_ladder_outlives_workers_and_moves_with_its_key(module: ModuleType):
    def place_of(node: ClusterNode, player: str, points: int) -> int:
        client = node.connect()
        client.send(6, module.Score(player, points))
        place: int = client.receive().decode(module.Rank).place
        return place

    with TestCluster(module.app, nodes=2) as cluster:
        for player, points in (("ann", 5), ("bob", 3)):
            place_of(cluster.nodes[0], player, points)
        owners = set()
        for points in range(4, 0, -1):
            owner = cluster.owner_of("ladder")
            owners.add(owner.id)
            owner.kill_worker()
            cluster.add()
            cluster.remove(owner)
            assert place_of(cluster.nodes[-1], "eve", points) == (2 if points >= 3 else 3)
        assert len(owners) > 1
        assert place_of(cluster.nodes[0], "bob", 9) == 1
        assert place_of(cluster.nodes[0], "eve", 6) == 2


@pytest.mark.parametrize("module", ["Messages between shards"], indirect=True)
def test_the_ladder_of_a_node_that_died_is_told_again(module: ModuleType):
    with TestCluster(module.app, nodes=2) as cluster:
        owner = cluster.owner_of("ladder")
        other = next(node for node in cluster.nodes if node is not owner)
        client = other.connect()
        client.send(6, module.Score("ann", 5))
        assert client.receive().decode(module.Rank).place == 1
        cluster.kill(owner)
        cluster.start(owner)
        client = other.connect()
        client.send(6, module.Score("bob", 3))
        assert client.receive().decode(module.Rank).place == 2


@pytest.mark.parametrize("module", ["When a worker dies"], indirect=True)
def test_no_ticket_is_drawn_twice(module: ModuleType):
    with TestNode(module.app) as node:
        client = node.connect()
        for at_commit in (False, True, False):
            client.send(8)
            node.kill_worker(at_commit=at_commit)
        client.send(8)
        assert [packet.payload for packet in client.received] == [b"1", b"2", b"3", b"4"]


class Database:
    """Keeps what it is given, and loses the first connection."""

    def __init__(self) -> None:
        self.rows: dict[str, list[bytes]] = {}
        self.calls = 0

    async def insert_unless_there(self, match: str, winner: memoryview) -> None:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionResetError
        self.rows.setdefault(match, []).append(bytes(winner))


@pytest.mark.parametrize("module", ["When a worker dies"], indirect=True)
def test_the_result_of_a_match_is_written_as_it_was_committed(module: ModuleType):
    """Its worker dies before the commit, and the next one finds another winner."""
    app, database, ends = module.app, Database(), ["ann", "bob", "eve"]
    vars(module)["database"] = database

    @app.on_packet(20)
    def last_move(session: Session, payload: bytes) -> None:
        app.call_later(1, lambda: module.end_match("final", ends.pop(0)))

    @app.on_start
    def plan_again() -> None:
        if len(ends) == 2:
            app.call_later(1, lambda: module.end_match("final", ends.pop(0)))

    with TestNode(app) as node:
        node.connect().send(20)
        node.kill_worker(at_commit=True)
        node.advance(1)
        assert ends == ["bob", "eve"]
        assert database.calls == 0
        node.advance(1)
        assert database.calls == 1
        node.kill_worker()  # its message is handled again
        node.advance(10)
        assert database.rows == {"final": [b"bob"]}
        assert node.counters["saved_bytes"] == 0


@pytest.mark.parametrize("module", ["Groups"], indirect=True)
def test_people_in_a_room_hear_who_comes_speaks_and_leaves(module: ModuleType):
    with TestNode(module.app, workers=2) as node:
        ann, bob = node.connect(), node.connect()
        for client in (ann, bob):
            client.send(4, b"garden")
        bob.send(5, b"hello")
        bob.close()
        said = [packet.payload for packet in ann.received]
        assert said == [
            b"you are in",
            b"you miss nothing from here on",
            b"somebody has come in",
            b"hello",
            b"somebody has left",
        ]


@pytest.mark.parametrize("module", ["Users"], indirect=True)
def test_a_second_login_is_rejected(module: ModuleType):
    with TestNode(module.app) as node:
        first, second = node.connect(), node.connect()
        for client in (first, second):
            client.send(1, b"ann")
        assert first.receive().payload == b"welcome"
        assert second.receive().payload == b"you are logged in elsewhere"
        first.send(2, b"to myself")
        assert first.receive().payload == b"to myself"


@pytest.mark.parametrize("module", ["Many packets at a time"], indirect=True)
def test_what_is_measured_is_taken(module: ModuleType):
    with TestNode(module.app) as node:
        client = node.connect()
        client.send(7, b"21.5")
        assert client.receive().payload == b"taken"


@pytest.mark.parametrize("module", ["Messages between shards"], indirect=True)
def test_sessions_of_several_shards_meet_in_one_room(module: ModuleType):
    with TestNode(module.app, workers=2) as node:
        clients = [node.connect() for _ in range(4)]
        for client in clients:
            client.send(7)
        rooms = [client.receive().payload for client in clients]
        assert rooms[0] == rooms[1] != rooms[2] == rooms[3]
        assert [session.groups for session in node.sessions] == [
            frozenset([room.decode()]) for room in rooms
        ]


def test_what_is_said_at_several_nodes_is_tested_as_it_is_printed(
    monkeypatch: pytest.MonkeyPatch,
):
    talk = ModuleType("talk")
    monkeypatch.setitem(sys.modules, "talk", talk)
    exec(block_behind("<!-- application: talk.py -->", README), vars(talk))
    tests: dict[str, Any] = {}
    exec(block_behind("<!-- tests: test_talk_of_nodes.py -->", REFERENCE), tests)
    tests["test_what_is_said_while_the_network_is_cut_comes_later"]()


def test_another_program_tells_a_user_what_it_has_to_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVICE_SECRET", "sesame")
    names: dict[str, Any] = {"__name__": "reference"}
    exec(compile(code_of("Other programs"), str(REFERENCE), "exec", dont_inherit=True), names)
    app: App = names["app"]

    @app.on_packet(1, public=True)
    def log_in(session: Session, name: bytes) -> None:
        session.bind(name.decode())

    with TestCluster(app, nodes=2, limits={"auth_timeout_s": 5}) as cluster:
        one, two = cluster.nodes
        program, stranger, ann = one.connect(), one.connect(), two.connect()
        ann.send(1, b"ann")
        program.send(20, names["Service"]("sesame"))
        stranger.send(20, names["Service"]("sésame"))
        assert stranger.cause == "wrong secret"
        one.kill_worker()
        message = names["Tell"](7, "ann", "dinner is ready")
        ann.send(21, message)  # nobody may who is no program
        program.send(21, message)
        assert program.receive().decode(names["Told"]).number == 7
        assert [ann.receive().decode(names["Tell"])] == [message]
        assert (ann.received, program.received) == ([], [])
