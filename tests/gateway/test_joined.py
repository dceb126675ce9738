"""When a worker hears that other nodes know of a join: at once, when they do, or not at all."""

from collections.abc import Iterator

import pytest

from cluster.shared.group_records import read_join
from cluster.shared.records import JOIN, JOINED, make_record
from tests.gateway.test_groups_across_shards import join, leave, publish
from tests.gateway.test_node_groups import Cluster
from tests.gateway.world import ScriptedWorker


def heard(worker: ScriptedWorker) -> list[tuple[int, str]]:
    """Return request and group of each `joined` that has come to `worker`."""
    worker.read()
    read = [read_join(record.payload) for record in worker.records if record.kind == JOINED]
    return [(request, name.decode()) for request, name in read]


@pytest.fixture
def alone() -> Iterator[Cluster]:
    cluster = Cluster(1)
    yield cluster
    cluster.nodes.close()


@pytest.fixture
def three() -> Iterator[Cluster]:
    cluster = Cluster(3)
    yield cluster
    cluster.nodes.close()


def test_a_node_that_stands_alone_answers_at_once_who_asks(alone: Cluster):
    session, _ = alone.connect(1)
    alone.do(1, join(session, "silent"), join(session, request=1))
    assert heard(alone.workers[1]) == [(1, "room")]


def test_a_session_has_one_answer_in_the_lane_and_the_next_when_that_is_committed(alone: Cluster):
    session, _ = alone.connect(1)
    other, _ = alone.connect(1)
    names = "abc"
    alone.do(
        1,
        *[
            join(each, name, request)
            for request, name in enumerate(names, 1)
            for each in (session, other)
        ],
    )
    worker = alone.workers[1]
    for count in range(1, 4):
        assert heard(worker) == [pair for pair in enumerate(names[:count], 1) for _ in range(2)]
        alone.do(1)
    assert alone.nodes[1].shards[0].is_idle


def test_a_session_that_has_heard_all_is_answered_again(alone: Cluster):
    session, _ = alone.connect(1)
    for request, name in enumerate("abc", 1):
        alone.do(1, join(session, name, request))
        assert heard(alone.workers[1])[-1:] == [(request, name)]
        alone.do(1)
    assert alone.nodes[1].shards[0].is_idle


def test_what_is_left_again_is_not_answered(alone: Cluster):
    session, _ = alone.connect(1)
    joins = [join(session, name, request) for request, name in enumerate("abc", 1)]
    alone.do(1, *joins, leave(session, "b"))
    for _ in range(3):
        heard(alone.workers[1])
        alone.do(1)
    assert heard(alone.workers[1]) == [(1, "a"), (3, "c")]


@pytest.mark.parametrize("is_reset", [True, False])
def test_a_session_that_has_ended_is_answered_no_more(alone: Cluster, is_reset: bool):
    session, peer = alone.connect(1)
    alone.do(1, join(session, "a", 1), join(session, "b", 2))
    if is_reset:
        peer.reset()
        alone.nodes.run(lambda: session not in alone.nodes[1].table.sessions, "its end")
    else:
        peer.shut_down()
        shard = alone.nodes[1].shards[0]
        alone.nodes.run(lambda: shard.log.position > 2, "the end of what it sends")
    for _ in range(3):
        heard(alone.workers[1])
        alone.do(1)
    assert heard(alone.workers[1]) == [(1, "a")]
    assert alone.nodes[1].shards[0].is_idle


def test_a_linked_node_answers_when_all_the_others_know(three: Cluster):
    session, _ = three.connect(1)
    one, two, third = (three.nodes[node] for node in (1, 2, 3))
    worker = three.workers[1]
    worker.read()
    worker.commit(join(session, request=1))
    for _ in range(50):  # node 2 stands still
        one.turn(0.002)
        third.turn(0.002)
    assert heard(worker) == []
    three.nodes.run(lambda: heard(worker), "the answer")
    for node in (2, 3):
        three.do(node, publish(b"%d" % node))
    three.nodes.run_linked()
    assert two.count("publishes_to_other_nodes") == third.count("publishes_to_other_nodes") == 1
    # Whose node has members is answered at once.
    another, _ = three.connect(1)
    worker.read()
    worker.commit(join(another, request=1))
    one.run_until(lambda: len(heard(worker)) == 2, "the second answer")


def test_a_node_that_cannot_be_reached_is_not_waited_for(three: Cluster):
    session, _ = three.connect(1)
    worker = three.workers[1]
    worker.read()
    worker.commit(join(session, request=1))
    three.nodes[1].turn(0.0)
    three.nodes[1].turn(0.0)
    three.nodes.kill(2)
    three.nodes.kill(3)
    three.nodes.run(lambda: heard(worker), "the answer")
    alone, _ = three.connect(1)
    three.do(1, join(alone, "hall", 1))
    assert heard(worker) == [(1, "room"), (1, "hall")]


def test_who_leaves_or_ends_before_the_others_know_is_not_answered(three: Cluster):
    leaver, _ = three.connect(1)
    ender, peer = three.connect(1)
    stayer, _ = three.connect(1)
    worker, one = three.workers[1], three.nodes[1]
    worker.read()
    worker.commit(join(leaver, request=1), join(ender, request=1), join(stayer, request=1))
    one.run_until(lambda: len(one.table.groups.members(b"room")) == 3, "the joins")
    worker.commit(leave(leaver), join(leaver, "hall", 2), leave(leaver, "hall"))
    peer.reset()
    one.run_until(lambda: len(one.table.groups.members(b"room")) == 1, "the ends")
    three.nodes.run_linked()
    worker.read()
    answered = [record.session for record in worker.records if record.kind == JOINED]
    assert answered == [stayer]
    assert not one.node_groups._asked


def test_a_successor_knows_the_numbers_and_is_given_the_answer_again(three: Cluster):
    session, _ = three.connect(1)
    three.do(1, join(session, request=1), join(session, "hall", 2), join(session, "silent"))
    three.do(1, leave(session, "hall"))
    three.nodes.run_linked()
    assert heard(three.workers[1]) == [(1, "room")]
    three.nodes[1].kill()
    three.start_worker(1)
    (replayed,) = three.workers[1].grant.sessions
    assert replayed.groups == ("room", "silent")
    assert replayed.group_requests == (1, 0)
    assert replayed.join_request == 2
    three.nodes.run(lambda: heard(three.workers[1]) == [(1, "room")], "the answer once more")


def test_a_worker_that_dies_before_the_answer_leaves_it_to_its_successor(three: Cluster):
    session, _ = three.connect(1)
    worker, one = three.workers[1], three.nodes[1]
    worker.read()
    worker.commit(join(session, request=1))
    one.run_until(lambda: one.table.groups.members(b"room"), "the join")
    one.kill()
    three.start_worker(1)
    three.nodes.run(lambda: heard(three.workers[1]) == [(1, "room")], "the answer")


def test_a_join_that_is_undone_has_no_answer_and_its_number_is_not_used_again(three: Cluster):
    session, _ = three.connect(1)
    three.do(1)
    worker, one = three.workers[1], three.nodes[1]
    worker.publish(join(session, request=1), make_record(JOIN, session, b""))
    one.run_until(lambda: one.violations, "the violation")
    three.start_worker(1)
    three.nodes.run_linked()
    assert heard(three.workers[1]) == []
    assert [each.join_request for each in three.workers[1].grant.sessions] == [1]


def test_a_leave_that_is_undone_has_its_answer_after_all(three: Cluster):
    session, _ = three.connect(1)
    worker, one = three.workers[1], three.nodes[1]
    worker.read()
    worker.commit(join(session, request=1))
    one.run_until(lambda: one.table.groups.members(b"room"), "the join")
    worker.publish(leave(session), make_record(JOIN, session, b""))
    one.run_until(lambda: one.violations, "the violation")
    three.start_worker(1)
    three.nodes.run(lambda: heard(three.workers[1]) == [(1, "room")], "the answer")
