"""Users across nodes as workers see it: answers in their logs, also when they die meanwhile."""

from collections.abc import Iterator

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.records import BOUND, CLOSED
from cluster.shared.rendezvous import owner
from cluster.shared.user_records import BindResult, Bound, SecondLogin
from tests.gateway.test_node_groups import Cluster
from tests.gateway.test_user_requests import answers, bind, kick_user, send_to, unbind

REPLACE, REJECT = SecondLogin
YES, NO = BindResult


def owned_by(node: int) -> str:
    return next(name for name in map(str, range(100)) if owner(name, (1, 2)) == node)


@pytest.fixture
def two() -> Iterator[Cluster]:
    cluster = Cluster(2, close_timeout_s=0.2)
    yield cluster
    cluster.nodes.close()


def wait_answers(cluster: Cluster, node: int, count: int) -> list[Bound]:
    worker = cluster.workers[node]
    cluster.nodes.run(lambda: len(answers(worker)) >= count, f"{count} answers")
    return answers(worker)


@pytest.mark.parametrize("decides", [1, 2])
def test_a_second_login_ends_the_session_at_the_other_node(two: Cluster, decides: int):
    user = owned_by(decides)
    one, peer = two.connect(1)
    two.do(1, bind(one, user, 7))
    assert wait_answers(two, 1, 1) == [Bound(YES, 7, user)]
    last = make_packet(1, b"last")
    other, newer = two.connect(2)
    two.do(1, send_to(user, last))
    two.do(2, bind(other, user, 9))
    assert wait_answers(two, 2, 1) == [Bound(YES, 9, user)]
    two.nodes.run(lambda: peer.ended, "the end of the older session")
    assert peer.received == last
    two.nodes.run(lambda: two.workers[1].read() or CLOSED in two.workers[1].kinds(), "the news")
    assert two.workers[1].records[-1].payload == b"replaced"
    # Whoever was kicked from there hears so, and the node that has the session knows why.
    go = make_packet(2, b"go")
    two.do(1, kick_user(user, go))
    two.nodes.run(lambda: newer.ended, "the end of the newer session")
    assert newer.received == go
    assert two.count(2, "closed_replaced") == 0


@pytest.mark.parametrize("decides", [1, 2])
def test_a_login_that_the_owner_rejects_changes_nothing(two: Cluster, decides: int):
    user = owned_by(decides)
    one, _ = two.connect(1)
    other, _ = two.connect(2)
    two.do(1, bind(one, user, policy=REJECT))
    wait_answers(two, 1, 1)
    two.do(2, bind(other, "somebody", 1, REJECT))
    wait_answers(two, 2, 1)
    two.do(2, bind(other, user, 2, REJECT))
    assert wait_answers(two, 2, 2)[1] == Bound(NO, 2, "somebody")
    assert two.nodes[1].table.sessions[one].user == user
    assert two.nodes[2].table.sessions[other].user == "somebody"
    assert two.count(2, "binds_rejected") == 1


@pytest.mark.parametrize("decides", [1, 2])
def test_of_two_logins_at_one_node_that_come_together_the_second_is_rejected(
    two: Cluster, decides: int
):
    user = owned_by(decides)
    one, peer = two.connect(1)
    another, _ = two.connect(1)
    two.do(1, bind(one, user, 1, REJECT), bind(another, user, 2, REJECT))
    assert wait_answers(two, 1, 2) == [Bound(YES, 1, user), Bound(NO, 2, None)]
    assert two.nodes[1].table.sessions[one].user == user
    two.nodes.run_linked()
    assert not peer.ended
    assert two.count(1, "closed_replaced") == 0


def test_an_answer_that_comes_when_the_worker_is_dead_is_for_its_successor(two: Cluster):
    user = owned_by(2)
    one, _ = two.connect(1)
    two.do(1, bind(one, user, 3))
    assert answers(two.workers[1]) == []
    two.nodes[1].kill()
    two.nodes.run(lambda: two.nodes[1].table.sessions[one].user == user, "the answer")
    two.start_worker(1)
    (told,) = two.workers[1].grant.sessions
    # It is that user from the answer on, which comes now.
    assert (told.user, told.bind_request) == (None, 3)
    assert wait_answers(two, 1, 1) == [Bound(YES, 3, user)]
    two.do(1)
    two.nodes[1].kill()
    two.start_worker(1)
    (told,) = two.workers[1].grant.sessions
    assert (told.user, told.bind_request) == (user, 3)


def test_an_unbind_answers_what_the_owner_has_not(two: Cluster):
    user = owned_by(2)
    one, _ = two.connect(1)
    two.do(1, bind(one, user, 1), bind(one, "another", 2), unbind(one, 3))
    assert answers(two.workers[1]) == [Bound(NO, 2, None)]
    two.nodes.run_linked()
    two.do(1)
    assert answers(two.workers[1]) == [Bound(NO, 2, None)]
    two.nodes[1].kill()
    two.start_worker(1)
    (told,) = two.workers[1].grant.sessions
    assert (told.user, told.bind_request, told.unbind_request) == (None, 3, 3)
    assert two.nodes[2].users.logins.owned.directory.find(user) is None


def test_a_flood_of_binds_leaves_one_ask_and_one_that_waits(two: Cluster):
    one, _ = two.connect(1)
    records = two.nodes.links(1).status()[0].waiting_records
    two.do(1, *[bind(one, f"{owned_by(2)} {number}", number) for number in range(1, 5_000)])
    assert two.nodes.links(1).status()[0].waiting_records <= records + 2
    two.nodes.run(lambda: two.nodes[1].table.sessions[one].user == f"{owned_by(2)} 4999", "it")
    two.workers[1].read()
    assert two.workers[1].kinds().count(BOUND) == 1
    two.do(1)
    assert wait_answers(two, 1, 2)[-1] == Bound(YES, 4_999, f"{owned_by(2)} 4999")
