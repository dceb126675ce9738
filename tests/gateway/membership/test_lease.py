"""The lease of a node, without a store and without a clock."""

import random

from cluster.gateway.backoff import BACKOFF_FIRST_S
from cluster.gateway.membership.lease import Lease, Step

LEASE_S = 9.0


def make_member(now: float = 0.0) -> Lease:
    """Return the lease of a member that asked for it at `now`."""
    lease = Lease(LEASE_S, random.Random(1))
    assert lease.next_step(now) is Step.JOIN
    lease.joined(now)
    lease.announce()
    assert lease.next_step(now) is Step.ANNOUNCE
    lease.announced()
    return lease


def test_a_node_joins_is_announced_and_renews_three_times_in_a_lease():
    lease = Lease(LEASE_S)
    assert (lease.state, lease.next_step(0.0)) == ("joining", Step.JOIN)
    assert lease.next_step(0.0) is None  # one request at a time
    lease.joined(0.0)
    assert (lease.state, lease.next_step(0.1), lease.due(0.1)) == ("joining", None, 3.0)
    lease.announce()
    assert lease.next_step(0.2) is Step.ANNOUNCE
    lease.announced()
    assert (lease.state, lease.next_step(2.9)) == ("member", None)
    for number in (1, 2, 3):
        now = 3.0 * number
        assert lease.next_step(now) is Step.RENEW
        lease.renewed(now, LEASE_S)
        assert (lease.state, lease.ends_at, lease.due(now)) == ("member", now + 9.0, now + 3.0)


def test_a_lease_that_is_not_announced_yet_is_kept():
    lease = Lease(LEASE_S)
    lease.next_step(0.0)
    lease.joined(0.0)
    assert lease.next_step(3.0) is Step.RENEW
    lease.renewed(3.0, LEASE_S)
    assert (lease.state, lease.ends_at) == ("joining", 12.0)


def test_a_change_of_the_list_is_read_once_and_again_if_it_came_while_it_was_read():
    lease = make_member()
    lease.list_changed()
    lease.list_changed()
    assert lease.next_step(1.0) is Step.LOOK
    lease.looked()
    assert lease.next_step(1.0) is None
    lease.list_changed()
    assert lease.next_step(1.0) is Step.LOOK
    lease.list_changed()
    assert lease.next_step(1.0) is None
    lease.looked()
    assert lease.next_step(1.0) is Step.LOOK
    lease.failed(1.0, "refused")
    assert lease.next_step(2.0) is Step.LOOK  # nothing was read
    lease.looked()
    lease.list_changed()
    assert lease.next_step(3.0) is Step.RENEW  # which reads the list as well
    lease.renewed(3.0, LEASE_S)
    assert lease.next_step(3.0) is None


def test_without_an_answer_the_lease_ends_by_the_clock_counted_from_the_last_request():
    lease = make_member()
    assert lease.next_step(3.0) is Step.RENEW
    lease.renewed(3.0, LEASE_S)  # answered late: at 5.0, say
    assert lease.next_step(6.0) is Step.RENEW
    assert not lease.check(11.99)
    assert lease.due(11.0) == 12.0
    assert lease.check(12.0)
    assert not lease.check(12.0)  # it is told once
    assert lease.state == "lease_lost"
    assert "not answered" in lease.reason


def test_a_lease_that_ended_by_the_clock_only_is_taken_up_again_in_the_same_life():
    lease = make_member()
    lease.next_step(3.0)
    lease.failed(4.0, "refused")
    assert lease.check(9.0)
    assert (lease.state, lease.reason) == ("lease_lost", "refused")
    assert lease.next_step(10.0) is Step.RENEW
    lease.renewed(10.0, LEASE_S)
    assert (lease.state, lease.reason, lease.has_lease) == ("member", "", True)


def test_a_lease_that_is_gone_in_the_store_is_asked_for_anew():
    lease = make_member()
    assert lease.next_step(3.0) is Step.RENEW
    lease.gone("revoked")
    assert (lease.state, lease.reason, lease.has_lease) == ("lease_lost", "revoked", False)
    assert lease.ends_at == 0.0
    assert lease.next_step(3.0) is Step.JOIN
    lease.joined(3.0)
    assert lease.state == "lease_lost"  # the others do not know it yet
    assert lease.next_step(3.0) is Step.ANNOUNCE
    lease.announced()
    assert (lease.state, lease.ends_at) == ("member", 12.0)


def test_what_is_new_to_say_is_written_again():
    lease = make_member()
    lease.announce()
    assert (lease.state, lease.next_step(1.0)) == ("member", Step.ANNOUNCE)


def test_failures_are_tried_again_with_a_pause_that_grows_and_stays_within_the_lease():
    lease = make_member()
    assert lease.check(9.0)  # so that its end is not what it comes back for
    now, pauses = 9.0, []
    for number in range(12):
        assert lease.next_step(now) is Step.RENEW
        lease.failed(now, "refused")
        assert lease.failures == number + 1
        again = lease.due(now)
        assert lease.next_step(again - 0.001) is None
        pauses.append(again - now)
        now = again
    assert BACKOFF_FIRST_S / 2 <= pauses[0] <= BACKOFF_FIRST_S
    assert pauses[3] > pauses[0]
    assert max(pauses) <= LEASE_S / 4
    assert lease.next_step(now) is Step.RENEW
    lease.renewed(now, LEASE_S)
    assert (lease.failures, lease.state) == (0, "member")


def test_there_is_always_something_to_come_back_for_and_never_at_once_for_nothing():
    chosen = random.Random(7)
    lease, now = Lease(LEASE_S, chosen), 0.0
    lease.announce()
    for _ in range(2_000):
        lease.check(now)
        step = lease.next_step(now)
        due = lease.due(now)
        assert now <= due <= now + LEASE_S
        if step is None:
            assert due > now
            now = due
            continue
        asked_at = now
        now += chosen.choice([0.001, 0.1, 4.0])
        outcome = chosen.random()
        if outcome < 0.3:
            lease.failed(now, "refused")
        elif step is Step.JOIN:
            lease.joined(asked_at)
        elif outcome < 0.4:
            lease.gone("revoked")
        elif step is Step.ANNOUNCE:
            lease.announced()
        elif step is Step.RENEW:
            lease.renewed(asked_at, LEASE_S)
        else:
            lease.looked()
        assert lease.has_lease or lease.state != "member"
        if chosen.random() < 0.3:
            lease.list_changed()
