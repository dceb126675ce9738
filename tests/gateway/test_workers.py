"""Who gets a shard, who is refused, and how a life ends."""

import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.grants import Grants, NodeIdentity
from cluster.gateway.shard import Shard, ShardBounds
from cluster.gateway.workers import Workers
from cluster.shared.lane import START, Commit, LaneState
from cluster.shared.local_lane import LocalGatewayLane, LocalWorkerLane
from cluster.shared.messages import (
    ControlMessage,
    GatewayAlive,
    GatewayHeartbeat,
    Grant,
    Hello,
    Refuse,
    ShardReport,
    Stop,
    WorkerHeartbeat,
)
from cluster.shared.process import process_identity
from cluster.shared.records import OPENED
from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import TELL_WINDOW_BYTES_MAX
from tests.gateway.fake_session import FakeSession

TIMEOUT_S = 5.0
LIFE = GatewayLife(node=3, epoch=4, nonce=5)
DEAD_PID = 1 << 30
LIVING_PID, LIVING_SINCE = process_identity(os.getpid())


class Node:
    """`Workers` of two shards, with everything it talks to noted."""

    def __init__(self, auth_timeout_s: float = 0.0) -> None:
        self.time = 100.0
        self.lanes = [LocalGatewayLane(1 << 20, 1 << 20) for _ in range(2)]
        self.counters = Counters()
        bounds = ShardBounds(65_535, 1 << 20, TELL_WINDOW_BYTES_MAX, SAVED_BYTES_MAX)
        self.shards = [
            Shard(ShardId(3, index), lane, self.counters, bounds, self.now)
            for index, lane in enumerate(self.lanes)
        ]
        self.sent: list[tuple[bytes, ControlMessage]] = []
        self.unreachable: set[bytes] = set()
        self.reports: list[ShardReport] = []
        self.fenced: list[int] = []
        self.drained = 0
        self.on_drain: Callable[[Shard], object] = lambda shard: None
        self.next: list[Callable[[], None]] = []
        self.workers = self.workers_by(
            Grants(NodeIdentity(LIFE, 65_535, 1 << 20, TIMEOUT_S), self.shards, "ipc://lanes"),
            auth_timeout_s,
        )

    def workers_by(self, grants: Grants, auth_timeout_s: float = 0.0) -> Workers:
        """Make workers that get their shards by `grants`, and talk to this node."""
        return Workers(
            grants,
            self.counters,
            self._send,
            self.reports.append,
            lambda shard: self.fenced.append(shard.index),
            self._drain,
            self,  # type: ignore[arg-type]  # of the core, only clock and timers are used
            auth_timeout_s,
        )

    def now(self) -> float:
        """Return the clock, as the core of a gateway does."""
        return self.time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Put off until `turn` what is put off until the next turn."""
        assert delay_s == 0
        self.next.append(callback)

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        self.sent.append((identity, message))
        return identity not in self.unreachable

    def _drain(self, shard: Shard) -> None:
        self.drained += 1
        self.on_drain(shard)

    def hello(
        self, name: bytes, shard: int = 0, pid: int = LIVING_PID, since: float = LIVING_SINCE
    ) -> Any:
        """Ask for a shard; return the answer."""
        self.workers.hello(name, Hello(shard=shard, pid=pid, create_time=since))
        identity, message = self.sent[-1]
        assert identity == name
        return message

    def hello_later(self, name: bytes) -> None:
        """Ask for shard 0, which is not granted in this turn."""
        self.workers.hello(name, Hello(shard=0, pid=LIVING_PID, create_time=LIVING_SINCE))

    def start(self, shard: int = 0) -> LocalWorkerLane:
        """Have a life that has opened its end of the lane."""
        assert isinstance(self.hello(b"worker", shard), Grant)
        lane = self.lanes[shard].open_worker()
        self.publish(lane, shard)
        return lane

    def publish(self, lane: LocalWorkerLane, shard: int = 0, commit: Commit | None = None) -> None:
        """Publish a batch of the shard's life, and apply it."""
        gateway_lane = self.lanes[shard]
        assert lane.publish(commit or gateway_lane.log.committed, [])
        batch = gateway_lane.receive()
        assert batch is not None
        self.shards[shard].committed(gateway_lane.apply(batch))
        self.workers.committed(self.shards[shard])

    def turn(self) -> None:
        """Do what was put off until the next turn."""
        put_off = self.next[:]
        self.next.clear()
        for callback in put_off:
            callback()

    def open_session(self, shard: int = 0) -> None:
        """Have a record in the lane that is not committed."""
        session = FakeSession()
        self.lanes[shard].append(OPENED, session.id, b"address", owner=session)
        self.lanes[shard].flush()

    def beat_for(self, seconds: float) -> None:
        """Let `seconds` pass, in which the workers are looked at as often as a gateway does."""
        for _ in range(4):
            self.time += seconds / 4
            self.workers.beat()

    def beat_of(self, shard: int, **changes: Any) -> WorkerHeartbeat:
        lane = self.lanes[shard]
        fields = {
            "position_received": lane.log.sent_position,
            "serial_sent": lane.serial_applied,
        }
        return WorkerHeartbeat(**{**fields, **changes})


@pytest.fixture
def node() -> Node:
    return Node()


# -- grants ----------------------------------------------------------------------------------------


def test_a_grant_says_all_that_a_worker_needs(node: Node):
    grant = node.hello(b"one", shard=1)
    assert grant == Grant(
        node=3,
        nonce=5,
        shard=1,
        incarnation=1,
        lane=grant.lane,
        position=1,
        index=0,
        sessions=[],
        max_packet_bytes=65_535,
        worker_timeout_s=TIMEOUT_S,
        nodes=[3],
        key_owners=[3],
        shard_count=2,
        saved_bytes_max=16 << 20,
    )
    assert grant.lane.kind == "local"
    assert grant.lane.endpoint == "ipc://lanes"
    assert grant.lane.capacity_bytes == grant.lane.max_batch_bytes == 1 << 20
    assert node.lanes[1].state is LaneState.GRANTED
    assert node.lanes[0].state is LaneState.VACANT


@pytest.fixture
def with_many(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node of whose shard 0 a successor is told in three turns; one process waits for that."""
    monkeypatch.setattr("cluster.gateway.workers.SESSIONS_PER_TURN", 2)
    for number in range(5):
        session = FakeSession()
        session.id = number
        node.shards[0].succession.opened(session)  # type: ignore[arg-type]
    node.hello_later(b"heir")
    return node


def test_many_sessions_are_told_of_in_several_turns(with_many: Node):
    node = with_many
    node.turn()
    assert (node.sent, node.workers.life(0)) == ([], None)
    assert node.lanes[0].state is LaneState.VACANT
    assert isinstance(node.hello(b"other", shard=1), Grant)  # who waits for nobody
    node.turn()
    identity, grant = node.sent[-1]
    assert identity == b"heir"
    assert isinstance(grant, Grant)
    assert [session.id for session in grant.sessions] == [0, 1, 2, 3, 4]
    assert node.workers.life(0) is not None
    assert node.next == []


def test_packets_that_come_between_are_not_told_of_as_done(with_many: Node):
    node = with_many
    sessions = node.shards[0].succession.sessions()
    for turn in range(2):
        for session in sessions:
            sequence = session.next_sequence
            node.lanes[0].log.append_packets(session.id, sequence, b"xxxx", 1, session)
            session.next_sequence = sequence + 1
        node.turn()
        assert bool(node.sent) is (turn == 1)
    (_, grant) = node.sent[-1]
    assert isinstance(grant, Grant)
    assert [session.sequence for session in grant.sessions] == [0] * 5


def test_nobody_else_gets_a_shard_while_its_heir_waits(with_many: Node):
    answer = with_many.hello(b"other")
    assert answer == Refuse(
        reason=f"shard 0 is held by process {LIVING_PID}; stop that one first", is_temporary=False
    )
    with_many.turn()
    with_many.turn()
    assert isinstance(with_many.sent[-1][1], Grant)


def test_an_heir_that_dies_is_granted_nothing(with_many: Node):
    node = with_many
    node.workers.gone(0, DEAD_PID)  # somebody else
    node.workers.gone(1, LIVING_PID)
    node.turn()
    node.workers.gone(0, LIVING_PID)
    for _ in range(5):
        node.turn()
    assert (node.sent, node.next) == ([], [])
    node.hello_later(b"next")
    node.turn()
    node.turn()
    identity, grant = node.sent[-1]
    assert identity == b"next"
    assert isinstance(grant, Grant)
    assert (grant.incarnation, len(grant.sessions)) == (1, 5)


def test_an_heir_that_is_known_dead_is_succeeded_at_once(
    with_many: Node, monkeypatch: pytest.MonkeyPatch
):
    node = with_many
    monkeypatch.setattr("cluster.gateway.workers.is_same_process", lambda pid, created: False)
    node.hello_later(b"next")
    for _ in range(4):
        node.turn()
    assert [identity for identity, _ in node.sent] == [b"next"]


def test_an_heir_hears_that_the_gateway_works(with_many: Node):
    with_many.workers.beat()
    assert with_many.sent == [(b"heir", GatewayAlive())]


def test_an_heir_is_told_to_stop_as_well_and_granted_nothing_then(with_many: Node):
    node = with_many
    assert node.workers.stop_all()
    assert node.sent == [(b"heir", Stop(serial_received=0))]
    for _ in range(5):
        node.turn()
    assert len(node.sent) == 1
    node.unreachable = {b"heir"}
    assert not node.workers.stop_all()


def test_every_incarnation_has_a_number_and_a_name_of_its_own(node: Node):
    grants = [node.hello(b"w%d" % n, shard=n % 2, pid=DEAD_PID + n) for n in range(6)]
    assert [grant.incarnation for grant in grants] == [1, 2, 3, 4, 5, 6]
    assert len({grant.lane.identity for grant in grants}) == 6
    # The second and later ones found their predecessors dead, and took what these had published.
    assert node.drained == 4
    assert node.fenced == [0, 1, 0, 1]


@pytest.mark.parametrize("shard", [-1, 2, 1 << 40])
def test_a_shard_that_does_not_exist_is_refused_with_those_that_do(node: Node, shard: int):
    answer = node.hello(b"one", shard=shard)
    assert isinstance(answer, Refuse)
    assert f"shard {shard} does not exist" in answer.reason
    assert "0 to 1 (workers.count)" in answer.reason
    assert node.counters.snapshot()["workers_refused"] == 1


def test_a_shard_whose_worker_lives_is_refused_with_its_pid(node: Node):
    node.start()
    answer = node.hello(b"two")
    assert isinstance(answer, Refuse)
    assert f"held by process {LIVING_PID}" in answer.reason
    life = node.workers.life(0)
    assert life is not None
    assert life.incarnation == 1
    assert node.lanes[0].is_open


@pytest.mark.parametrize(
    ("pid", "since"),
    [(DEAD_PID, 0.0), (LIVING_PID, LIVING_SINCE - 1), (LIVING_PID, float("nan"))],
    ids=["dead", "another process", "no time"],
)
def test_a_pid_that_is_dead_or_another_process_by_now_holds_nothing(
    node: Node, pid: int, since: float
):
    node.hello(b"one", pid=pid, since=since)
    assert isinstance(node.hello(b"two"), Grant)


def test_who_left_before_its_grant_is_fenced(node: Node):
    node.unreachable = {b"one"}
    node.workers.hello(b"one", Hello(shard=0, pid=LIVING_PID, create_time=LIVING_SINCE))
    assert node.workers.life(0) is None
    assert node.lanes[0].state is LaneState.VACANT
    assert node.reports[-1].state == "fenced"
    assert isinstance(node.hello(b"two"), Grant)


# -- what the supervisor hears ---------------------------------------------------------------------


def test_a_life_is_ready_with_its_first_batch_and_has_committed_with_its_first_record(node: Node):
    node.open_session()
    node.hello(b"one")
    assert node.reports == []
    lane = node.lanes[0].open_worker()
    node.publish(lane)
    assert [(report.state, report.committed) for report in node.reports] == [("ready", False)]
    node.lanes[0].flush()
    node.publish(lane)
    assert len(node.reports) == 1  # output alone proves nothing
    node.publish(lane, commit=Commit(2, 0))
    assert [(report.state, report.committed) for report in node.reports[1:]] == [("ready", True)]
    node.publish(lane)
    assert len(node.reports) == 2


def test_a_packet_in_the_middle_of_a_record_is_progress_as_well(node: Node):
    """A client that sends many at once has them in one record, which may outlive many workers."""
    session = FakeSession()
    node.lanes[0].append_packets(session.id, 1, struct.pack("<HH", 4, 1) * 10, 10, session)
    for index in range(1, 4):
        lane = node.start()
        node.lanes[0].flush()
        node.publish(lane)
        assert not node.reports[-1].committed
        node.publish(lane, commit=Commit(1, index))
        assert node.reports[-1].committed
        node.workers.gone(0, LIVING_PID)


def test_the_commits_of_a_predecessor_do_not_count_for_its_successor(node: Node):
    lane = node.start()
    node.open_session()
    node.publish(lane, commit=Commit(2, 0))
    assert node.reports[-1].committed
    node.workers.gone(0, LIVING_PID)
    successor = node.start()
    for _ in range(3):
        node.publish(successor)
    assert not node.reports[-1].committed


def test_a_supervisor_that_asks_is_told_who_is_ready(node: Node):
    node.workers.tell(0)
    node.hello(b"one")
    node.workers.tell(0)
    assert node.reports == []
    node.publish(node.lanes[0].open_worker())
    node.reports.clear()
    node.workers.tell(0)
    assert [report.state for report in node.reports] == ["ready"]


# -- ends ------------------------------------------------------------------------------------------


def test_a_dead_process_leaves_its_shard_vacant_and_nobody_is_told(node: Node):
    node.start()
    node.workers.gone(0, LIVING_PID + 1)  # an earlier process
    node.workers.gone(1, LIVING_PID)
    node.workers.gone(-1, LIVING_PID)
    node.workers.gone(99, LIVING_PID)
    assert node.workers.life(0) is not None
    node.reports.clear()
    node.workers.gone(0, LIVING_PID)
    assert node.workers.life(0) is None
    assert node.lanes[0].state is LaneState.VACANT
    assert node.drained == 1
    assert node.reports == []
    node.workers.gone(0, LIVING_PID)
    node.workers.vacate(0)
    assert node.drained == 1


def test_a_worker_is_asked_to_end_by_name_and_keeps_its_shard_until_it_is_gone(node: Node):
    node.start()
    node.sent.clear()
    for shard, pid in ((0, LIVING_PID + 1), (1, LIVING_PID), (-1, LIVING_PID), (99, LIVING_PID)):
        node.workers.ask_to_end(shard, pid)
    assert node.sent == []
    node.workers.ask_to_end(0, LIVING_PID)
    [(_, message)] = node.sent
    assert message == Stop(serial_received=node.lanes[0].serial_applied)
    life = node.workers.life(0)
    assert life is not None
    assert life.pid == LIVING_PID


def test_a_fenced_life_is_refused_and_reported_with_the_reason(node: Node):
    lane = node.start()
    node.workers.fence(node.shards[0], "for a reason")
    assert node.sent[-1] == (b"worker", Refuse(reason="fenced: for a reason"))
    assert node.reports[-1] == ShardReport(
        shard=0,
        pid=LIVING_PID,
        state="fenced",
        committed=False,
        reason="for a reason",
    )
    assert node.fenced == [0]
    assert node.counters.snapshot()["workers_fenced"] == 1
    node.workers.fence(node.shards[0], "again")
    assert node.counters.snapshot()["workers_fenced"] == 1

    lane.publish(Commit(1, 0), [])
    assert node.lanes[0].receive() is None
    node.workers.heartbeat(b"worker", node.beat_of(0))
    assert node.sent[-1] == (b"worker", Refuse(reason="this incarnation has no shard any more"))


def test_a_heartbeat_of_a_stranger_is_refused(node: Node):
    node.workers.heartbeat(b"stranger", node.beat_of(0))
    assert isinstance(node.sent[-1][1], Refuse)


def test_all_who_live_are_told_to_stop(node: Node):
    lane = node.start(1)
    node.publish(lane, shard=1)
    node.sent.clear()
    assert node.workers.stop_all()
    assert node.sent == [(b"worker", Stop(serial_received=2))]
    node.unreachable = {b"worker"}
    assert not node.workers.stop_all()


def test_an_application_that_nobody_can_log_in_to_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
):
    Node().hello(b"worker")
    assert "auth_timeout_s" not in caplog.text
    node = Node(auth_timeout_s=2.0)
    for shard in (0, 1):
        node.hello(b"worker %d" % shard, shard)
    assert caplog.text.count("limits.auth_timeout_s is 2, and the application has no packet") == 1
    caplog.clear()
    hello = Hello(shard=0, pid=LIVING_PID, create_time=LIVING_SINCE, public_ids=[1])
    Node(auth_timeout_s=2.0).workers.hello(b"worker", hello)
    assert caplog.text == ""


# -- signs of life ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "decode_errors",
        "tells_full",
        "unhandled_packets",
        "coroutines_full",
        "coroutines_waited",
        "batches_waited",
    ],
)
def test_what_workers_count_is_counted_over_all_lives(node: Node, name: str):
    node.start()
    for told in (0, 3, 3, 5):
        node.workers.heartbeat(b"worker", node.beat_of(0, **{name: told}))
    node.workers.vacate(0)
    node.start()
    node.workers.heartbeat(b"worker", node.beat_of(0, **{name: 2}))
    assert node.counters.snapshot()[name] == 7


def test_a_heartbeat_tells_each_worker_how_far_the_gateway_is(node: Node):
    node.start()
    node.open_session()
    node.sent.clear()
    node.workers.beat()
    expected = GatewayHeartbeat(incarnation=1, position_sent=1, serial_received=1)
    assert node.sent == [(b"worker", expected)]


def test_a_worker_that_waits_for_it_is_told_at_once_what_has_arrived(node: Node):
    lane = node.start()
    node.sent.clear()
    node.workers.heartbeat(b"worker", node.beat_of(0, serial_sent=2))
    assert node.sent == []
    node.workers.heartbeat(b"worker", node.beat_of(0, serial_sent=2, wants_answer=True))
    node.publish(lane)
    node.workers.heartbeat(b"worker", node.beat_of(0, serial_sent=2, wants_answer=True))
    answers = [message for _, message in node.sent]
    assert [answer.serial_received for answer in answers] == [1, 2]  # type: ignore[union-attr]
    assert all(isinstance(answer, GatewayHeartbeat) for answer in answers)


def test_a_worker_that_is_silent_for_the_whole_timeout_is_fenced(node: Node):
    node.start()
    for _ in range(4):
        node.time += TIMEOUT_S - 0.1
        node.workers.heartbeat(b"worker", node.beat_of(0))
        node.workers.beat()
    assert node.workers.life(0) is not None
    node.beat_for(TIMEOUT_S)
    assert node.workers.life(0) is None
    assert "no heartbeat" in node.sent[-1][1].reason  # type: ignore[union-attr]
    assert node.reports[-1].state == "stuck"
    assert "no heartbeat" in node.reports[-1].reason


@pytest.mark.parametrize("lost", [{"position_received": 0}, {"serial_sent": 2}])
def test_a_worker_that_stays_behind_what_was_sent_is_fenced(node: Node, lost: dict[str, int]):
    node.start()
    node.open_session()
    for _ in range(6):
        assert node.workers.life(0) is not None
        node.workers.heartbeat(b"worker", node.beat_of(0, **lost))
        node.time += 1
        node.workers.beat()
    assert node.workers.life(0) is None
    assert "no progress" in node.sent[-1][1].reason  # type: ignore[union-attr]


def test_a_batch_that_waits_in_the_gateway_is_not_lost(node: Node):
    lane = node.start()
    assert lane.publish(START, [])  # it has arrived, and the gateway has not come to it
    for _ in range(9):
        node.workers.heartbeat(b"worker", node.beat_of(0, serial_sent=2))
        node.time += 1
        node.workers.beat()
    assert node.workers.life(0) is not None


def test_what_a_worker_published_before_it_fell_silent_is_applied(node: Node):
    node.start()
    node.beat_for(TIMEOUT_S)
    assert node.workers.life(0) is None
    assert node.drained == 1


def test_a_worker_that_is_fenced_for_what_it_published_before_it_fell_silent_ends_once(node: Node):
    """Its last words cannot be carried out: it is not stuck as well, and its end counts once."""
    node.start()
    node.on_drain = lambda shard: node.workers.fence(shard, "for its last words")
    node.beat_for(TIMEOUT_S)
    assert node.workers.life(0) is None
    assert node.drained == 1
    assert [report.state for report in node.reports] == ["ready", "fenced"]
    assert node.fenced == [0]
    assert node.counters.snapshot()["workers_fenced"] == 1
    assert sum(isinstance(message, Refuse) for _, message in node.sent) == 1


def test_a_worker_that_waits_for_room_is_not_fenced_for_it(node: Node):
    """Its last batches wait in the gateway, which is busy with one that came before them."""
    lane = node.start()
    node.open_session()
    for _ in range(3):
        assert lane.publish(START, [])
    for _ in range(9):
        node.workers.heartbeat(b"worker", node.beat_of(0, serial_sent=4))
        node.time += 1
        node.workers.beat()
    assert node.workers.life(0) is not None


def test_a_process_that_has_ended_unheard_of_leaves_its_shard_vacant(node: Node):
    node.hello(b"one", pid=DEAD_PID)
    node.workers.beat()
    assert node.workers.life(0) is None
    assert "workers_fenced" not in node.counters.snapshot()
