"""Binds, second logins and sends to users across shards: real sessions, scripted workers."""

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import (
    BIND,
    BOUND,
    CLOSED,
    DISCONNECT,
    KICK_USER,
    OPENED,
    SEND,
    SEND_TO,
    UNBIND,
    make_record,
)
from cluster.shared.user_records import (
    BindResult,
    Bound,
    SecondLogin,
    pack_bind,
    pack_send_to,
    pack_unbind,
    read_bound,
)
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, ScriptedWorker
from tests.iocp.peers import Peer
from tests.shared.test_user_records import BAD_BINDS, BAD_SENDS

REPLACE, REJECT = SecondLogin
YES, NO = BindResult


def bind(session: int, user: str, request: int = 1, policy: SecondLogin = REPLACE) -> bytes:
    return make_record(BIND, session, pack_bind(policy, request, user.encode()))


def unbind(session: int, request: int = 2) -> bytes:
    return make_record(UNBIND, session, pack_unbind(request))


def send_to(user: str, data: bytes) -> bytes:
    return make_record(SEND_TO, 0, pack_send_to(user.encode(), data))


def kick_user(user: str, data: bytes) -> bytes:
    return make_record(KICK_USER, 0, pack_send_to(user.encode(), data))


def answers(worker: ScriptedWorker) -> list[Bound]:
    worker.read()
    return [read_bound(record.payload) for record in worker.records if record.kind == BOUND]


class Two:
    """A world of two shards: one session in each, `one` and `two`, and their workers."""

    def __init__(self, world: GatewayWorld) -> None:
        self.world = world
        self.workers = [world.start_worker(shard) for shard in range(2)]
        self.peers: list[Peer] = []
        self.ids: list[int] = []
        for _ in range(2):
            self.connect()
        assert [world.table.sessions[number].shard.index for number in self.ids] == [0, 1]

    def connect(self) -> int:
        """Have one more client; return its session's id."""
        self.peers.append(self.world.connect())
        self.ids.append(self.world.newest().id)
        return self.ids[-1]

    def do(self, shard: int, *records: bytes) -> None:
        """Publish as the effect of all that was read, and let it take effect."""
        worker = self.workers[shard]
        worker.read()
        worker.commit(*records)
        lane = self.world.lanes[shard]
        published = worker.lane.serial_published
        self.world.run_until(lambda: lane.serial_applied == published, "the batch")
        self.world.settle()

    def user_of(self, number: int) -> str | None:
        return self.world.table.sessions[self.ids[number]].user


@pytest.fixture
def two(gateway: MakeGateway) -> Two:
    return Two(gateway(shard_count=2, close_timeout_s=60))


@pytest.fixture
def memory_two(memory_gateway: MakeGateway) -> Two:
    return Two(memory_gateway(shard_count=2, close_timeout_s=60))


def test_a_bind_is_answered_in_the_log_of_its_shard(memory_two: Two):
    two = memory_two
    two.do(0, bind(two.ids[0], "ann", 7))
    assert answers(two.workers[0]) == [Bound(YES, 7, "ann")]
    assert answers(two.workers[1]) == []
    assert two.user_of(0) == "ann"


def test_a_bind_takes_effect_at_its_place_in_the_batch(memory_two: Two):
    two = memory_two
    one = two.ids[0]
    two.do(
        0,
        send_to("ann", b"too early"),
        bind(one, "ann"),
        send_to("ann", b"in time"),
        unbind(one),
        send_to("ann", b"too late"),
    )
    two.world.wait_received(two.peers[0], 7)
    assert two.peers[0].received == b"in time"
    assert two.world.count("sends_to_absent_users") == 2
    assert two.world.count("sends") == 1
    assert two.world.count("bytes_sent") == 7


def test_a_user_is_reached_from_any_shard(two: Two):
    two.do(1, bind(two.ids[1], "bob"))
    two.do(0, send_to("bob", b"from another shard"))
    two.do(1, send_to("bob", b", and from its own"))
    two.world.wait_received(two.peers[1], 36)
    assert two.peers[1].received == b"from another shard, and from its own"
    assert two.peers[0].received == b""


def test_a_user_is_kicked_from_any_shard_behind_what_was_sent(two: Two):
    world = two.world
    last, go = make_packet(1, b"last"), make_packet(2, b"go")
    two.do(1, bind(two.ids[1], "bob"))
    two.do(0, send_to("bob", last), kick_user("bob", go), send_to("bob", b"too late"))
    world.wait_ended(two.peers[1])
    assert two.peers[1].received == last + go
    two.peers[1].close()
    world.wait_for(two.workers[1], CLOSED)
    assert two.workers[1].records[-1].payload == b"kicked"
    two.do(0, kick_user("bob", go))
    assert world.count("kicks_of_absent_users") == 1
    assert world.count("sends_to_absent_users") == 1
    assert not two.peers[0].ended


def test_a_session_that_is_ending_is_not_kicked(memory_two: Two):
    two = memory_two
    two.do(0, bind(two.ids[0], "ann"))
    two.peers[0].shut_down()
    two.world.wait_for(two.workers[0], CLOSED)
    two.do(1, kick_user("ann", make_packet(2, b"go")))
    assert two.world.count("kicks_of_absent_users") == 1
    assert two.workers[0].records[-1].payload == b"eof"


def test_a_second_login_ends_the_older_session_in_good_order(two: Two):
    world = two.world
    two.do(0, bind(two.ids[0], "ann"), make_record(SEND, two.ids[0], b"sent before"))
    two.do(1, bind(two.ids[1], "ann"))
    assert answers(two.workers[1]) == [Bound(YES, 1, "ann")]
    two.do(0, make_record(SEND, two.ids[0], b"too late"))
    two.do(0, send_to("ann", b"for the newer"))
    world.wait_ended(two.peers[0])
    assert two.peers[0].ended == "eof"
    assert two.peers[0].received == b"sent before"
    world.wait_received(two.peers[1], 13)
    assert two.peers[1].received == b"for the newer"
    two.peers[0].close()
    world.wait_for(two.workers[0], CLOSED)
    assert two.workers[0].records[-1].payload == b"replaced"
    assert world.count("closed_replaced") == 1
    assert world.table.users.find("ann") is world.table.sessions[two.ids[1]]


def test_what_waits_for_a_slow_older_session_still_reaches_it(memory_gateway: MakeGateway):
    world = memory_gateway(shard_count=2)  # whose connections hold 16 KiB
    two = Two(world)
    two.peers[0].read_no_more()
    two.do(0, bind(two.ids[0], "ann"), make_record(SEND, two.ids[0], b"x" * 100_000))
    two.do(1, bind(two.ids[1], "ann"))
    assert world.table.sessions[two.ids[0]].queued_bytes > 0
    two.peers[0].read()
    world.wait_ended(two.peers[0])
    assert len(two.peers[0].received) == 100_000


def test_the_older_sessions_late_words_do_not_evict_the_newer(two: Two):
    world = two.world
    two.do(0, bind(two.ids[0], "ann"))
    two.do(1, bind(two.ids[1], "ann"))
    two.do(0, bind(two.ids[0], "ann", 2))
    two.do(0, unbind(two.ids[0], 3), bind(two.ids[0], "ann", 4))
    two.do(0, make_record(DISCONNECT, two.ids[0], b"late"))
    two.peers[0].close()
    world.wait_for(two.workers[0], CLOSED)
    two.do(0, unbind(two.ids[0], 5), bind(two.ids[0], "ann", 6))
    newer = world.table.sessions[two.ids[1]]
    assert newer.is_present
    assert newer.user == "ann"
    assert world.table.users.find("ann") is newer
    assert not two.peers[1].ended
    # The end is the answer.
    assert answers(two.workers[0]) == [Bound(YES, 1, "ann")]
    assert two.workers[0].kinds()[-1] == CLOSED


def test_a_second_login_that_is_rejected_leaves_the_older_one_alone(two: Two):
    world = two.world
    two.do(0, bind(two.ids[0], "ann", policy=REJECT))
    two.do(1, bind(two.ids[1], "bob", policy=REJECT))
    two.do(1, bind(two.ids[1], "ann", 2, REJECT))
    assert answers(two.workers[1]) == [Bound(YES, 1, "bob"), Bound(NO, 2, "bob")]
    assert (two.user_of(0), two.user_of(1)) == ("ann", "bob")
    assert world.count("binds_rejected") == 1
    two.do(0, send_to("ann", b"still here"))
    world.wait_received(two.peers[0], 10)


@pytest.mark.parametrize("how", ["reset", "eof", "disconnect", "unbind"])
def test_a_user_whose_session_is_ending_is_free_under_reject(two: Two, how: str):
    world = two.world
    two.do(0, bind(two.ids[0], "ann", policy=REJECT))
    if how == "reset":
        two.peers[0].reset()
        world.run_until(lambda: two.ids[0] not in world.table.sessions, "the end")
    elif how == "eof":
        # Its worker has not heard of it, so the session is still there.
        two.peers[0].shut_down()
        world.wait_for(two.workers[0], CLOSED)
        assert two.user_of(0) == "ann"
    elif how == "disconnect":
        # Its client takes its time, so the session is still there.
        two.do(0, make_record(DISCONNECT, two.ids[0], b"logout"))
        assert two.user_of(0) == "ann"
    else:
        two.do(0, unbind(two.ids[0]))
    two.do(1, bind(two.ids[1], "ann", policy=REJECT))
    assert answers(two.workers[1]) == [Bound(YES, 1, "ann")]
    assert world.table.users.find("ann") is world.table.sessions[two.ids[1]]


def test_a_session_whose_client_has_ended_its_side_is_not_bound_any_more(two: Two):
    two.peers[0].shut_down()
    two.world.wait_for(two.workers[0], CLOSED)
    two.workers[0].publish(bind(two.ids[0], "ann"))
    two.world.settle()
    assert len(two.world.table.users) == 0
    assert answers(two.workers[0]) == []


def test_a_bind_of_a_session_that_nobody_knows_is_passed_over(memory_two: Two):
    two = memory_two
    two.do(0, bind(99, "ann"), unbind(99, 3), unbind(two.ids[0]))
    assert answers(two.workers[0]) == []
    assert len(two.world.table.users) == 0


def test_users_are_never_more_than_sessions(memory_two: Two):
    two = memory_two
    for number in range(20):
        two.do(0, bind(two.ids[0], f"user {number}", number))
    assert len(two.world.table.users) == 1
    assert two.user_of(0) == "user 19"


# -- answers ---------------------------------------------------------------------------------------


def test_a_flood_of_binds_leaves_one_answer_in_the_lane_and_one_that_waits(memory_two: Two):
    two = memory_two
    world, worker, one = two.world, two.workers[0], two.ids[0]
    worker.read()
    opened = worker.lane.position_received
    for burst in range(50):
        numbers = range(burst * 100, burst * 100 + 100)
        worker.publish(*[bind(one, f"user {number}", number) for number in numbers])
        world.settle(1)
    assert world.lanes[0].log.position == opened + 1
    assert answers(worker) == [Bound(YES, 0, "user 0")]
    worker.commit()
    world.wait_for(worker, BOUND, 2)
    assert answers(worker)[1:] == [Bound(YES, 4_999, "user 4999")]
    worker.commit()
    world.settle()
    assert world.lanes[0].log.is_committed
    two.do(0, bind(one, "again", 5_000))
    assert answers(worker)[2:] == [Bound(YES, 5_000, "again")]


def test_an_answer_that_stands_for_others_says_who_the_session_is(memory_two: Two):
    two = memory_two
    one = two.ids[0]
    two.do(1, bind(two.ids[1], "bob"))
    users = enumerate(("ann", "eve", "bob"), 1)
    two.do(0, *[bind(one, user, number, REJECT) for number, user in users])
    two.do(0)
    assert answers(two.workers[0]) == [Bound(YES, 1, "ann"), Bound(NO, 3, "eve")]
    two.do(0)
    (told,) = successor(two).grant.sessions
    assert told.user == two.user_of(0) == "eve"


def test_an_answer_that_waits_is_not_told_behind_the_end(memory_two: Two):
    two = memory_two
    world, worker = two.world, two.workers[0]
    worker.publish(bind(two.ids[0], "ann", 1), bind(two.ids[0], "bob", 2))
    world.wait_for(worker, BOUND)
    two.peers[0].reset()
    world.wait_for(worker, CLOSED)
    worker.commit()
    world.settle()
    assert answers(worker) == [Bound(YES, 1, "ann")]
    assert worker.kinds() == [OPENED, BOUND, CLOSED]
    assert world.shards[0]._answers.is_empty


def test_an_answer_to_another_shards_session_wakes_that_shard(memory_two: Two):
    """Only its own worker asks for a session, but a lane must not depend on that."""
    two = memory_two
    two.do(0, bind(two.ids[1], "bob"))
    two.world.wait_for(two.workers[1], BOUND)
    assert answers(two.workers[1]) == [Bound(YES, 1, "bob")]


# -- deaths ----------------------------------------------------------------------------------------


def successor(two: Two) -> ScriptedWorker:
    two.world.kill(0)
    two.workers[0] = two.world.start_worker(0)
    return two.workers[0]


def test_a_bind_that_was_published_counts_and_its_answer_waits_for_the_successor(two: Two):
    world = two.world
    two.workers[0].read()
    two.workers[0].commit(bind(two.ids[0], "ann", 3))
    worker = successor(two)
    (told,) = worker.grant.sessions
    # Who it is, it is from the answer on, which comes again.
    assert (told.user, told.bind_request, told.unbind_request) == (None, 3, 0)
    world.wait_for(worker, BOUND)
    assert answers(worker) == [Bound(YES, 3, "ann")]
    worker = successor(two)
    world.wait_for(worker, BOUND)
    two.do(0)
    (told,) = successor(two).grant.sessions
    assert (told.user, told.bind_request, told.unbind_request) == ("ann", 3, 0)
    world.settle()
    assert answers(two.workers[0]) == []
    assert two.user_of(0) == "ann"


def test_a_successor_hears_of_an_unbind_and_that_answers_before_it_are_void(memory_two: Two):
    two = memory_two
    one = two.ids[0]
    two.do(0, bind(one, "ann", 1))
    two.workers[0].read()
    two.workers[0].commit(unbind(one, 2))
    (told,) = successor(two).grant.sessions
    assert (told.user, told.bind_request, told.unbind_request) == (None, 2, 2)
    two.do(0, bind(one, "ann", 3), unbind(one, 4))
    two.do(0)  # the answer to 3 is done, and was void
    (told,) = successor(two).grant.sessions
    assert (told.user, told.bind_request, told.unbind_request) == (None, 4, 4)
    two.do(0, bind(one, "bob", 5))
    two.do(0, bind(one, "ann", 6, REJECT))
    two.do(0)
    (told,) = successor(two).grant.sessions
    assert (told.user, told.bind_request, told.unbind_request) == ("ann", 6, 4)


def test_a_rejected_bind_leaves_a_successor_with_who_it_was(memory_two: Two):
    two = memory_two
    two.do(1, bind(two.ids[1], "ann"))
    two.do(0, bind(two.ids[0], "bob", 1))
    two.do(0, bind(two.ids[0], "ann", 2, REJECT))
    two.do(0)
    (told,) = successor(two).grant.sessions
    assert (told.user, told.bind_request) == ("bob", 2)


def test_a_replaced_session_is_taken_over_as_who_it_was_until_its_end_is_done(memory_two: Two):
    two = memory_two
    world = two.world
    two.do(0, bind(two.ids[0], "ann"))
    two.do(0)
    two.do(1, bind(two.ids[1], "ann"))
    two.peers[0].close()
    world.run_until(lambda: two.ids[0] not in world.table.sessions, "the end")
    worker = successor(two)
    (told,) = worker.grant.sessions
    assert told.user == "ann"
    world.wait_for(worker, CLOSED)
    assert worker.records[-1].payload == b"replaced"
    two.do(0)
    assert successor(two).grant.sessions == []
    world.check_invariants()


def test_a_user_stays_bound_while_its_shard_has_no_worker(two: Two):
    world = two.world
    two.do(0, bind(two.ids[0], "ann", policy=REJECT))
    world.kill(0)
    two.do(1, bind(two.ids[1], "ann", policy=REJECT), send_to("ann", make_packet(1, b"hello")))
    assert answers(two.workers[1]) == [Bound(NO, 1, None)]
    world.wait_received(two.peers[0], 9)
    two.do(1, bind(two.ids[1], "ann", 2, REPLACE))
    world.wait_ended(two.peers[0])
    assert answers(two.workers[1])[1:] == [Bound(YES, 2, "ann")]


# -- what no worker of ours does -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        *[(BIND, payload) for payload in BAD_BINDS],
        *[(SEND_TO, payload) for payload in BAD_SENDS],
        *[(KICK_USER, payload) for payload in BAD_SENDS],
        (UNBIND, b"abc"),
        (UNBIND, b"abcde"),
    ],
)
def test_a_record_that_cannot_be_ends_its_worker_alone(memory_two: Two, kind: int, payload: bytes):
    two = memory_two
    worker = two.workers[0]
    worker.publish(make_record(kind, two.ids[0], payload))
    two.world.run_until(lambda: two.world.violations, "the violation")
    assert [shard for shard, _ in two.world.violations] == [0]
    assert two.world.workers.life(0) is None
    assert two.world.workers.life(1) is not None
    assert len(two.world.table.users) == 0
    two.do(1, bind(two.ids[1], "ann"))
    assert answers(two.workers[1]) == [Bound(YES, 1, "ann")]
    assert answers(two.world.start_worker(0)) == []
