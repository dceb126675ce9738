"""What the supervisor remembers of a spare."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.supervisor.child import Child
from cluster.supervisor.restart_policy import BACKOFF_MAX_S, GiveUp, Restart
from cluster.supervisor.spare import REFILL_AFTER_S, Spare


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Three processes that wait to be killed."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    yield [Child(f"spare {n}", process) for n, process in enumerate(processes)]
    for process in processes:
        process.kill()
        process.communicate()


def started(child: Child, now: float, *, is_ready: bool = False) -> Spare:
    spare = Spare()
    spare.started(child, now)
    if is_ready:
        spare.became_ready(now)
    return spare


def test_a_spare_is_ready_when_the_gateway_says_so(children: list[Child]):
    spare = Spare()
    assert (spare.pid, spare.is_ready, spare.restart_due) == (None, False, None)
    spare.started(children[0], 100.0)
    assert (spare.pid, spare.is_ready) == (children[0].pid, False)
    spare.became_ready(101.0)
    assert spare.is_ready


def test_a_spare_that_is_taken_leaves_a_place_that_is_filled_a_moment_later(children: list[Child]):
    spare = started(children[0], 100.0, is_ready=True)
    assert spare.take(101.0) is children[0]
    assert (spare.pid, spare.is_ready, spare.restart_due) == (None, False, 101.0 + REFILL_AFTER_S)
    spare.started(children[1], 101.5)
    assert (spare.pid, spare.is_ready, spare.restart_due) == (children[1].pid, False, None)


def test_a_spare_that_was_taken_wipes_out_the_failures_of_its_place(children: list[Child]):
    spare = started(children[0], 100.0)
    assert spare.ended(100.1) == Restart(0.1)
    spare.started(children[1], 100.2)
    spare.take(100.3)
    spare.started(children[2], 100.3)
    assert spare.ended(100.4) == Restart(0.1)


def test_a_spare_that_ends_is_succeeded_after_a_pause_and_never_for_good(children: list[Child]):
    spare = Spare()
    decisions = []
    for n in range(7):
        spare.started(children[0], 100.0 + n)
        decisions.append(spare.ended(100.0 + n))
        assert spare.child is None
        pause = decisions[-1].delay_s if isinstance(decisions[-1], Restart) else BACKOFF_MAX_S
        assert spare.restart_due == 100.0 + n + pause
    assert decisions[:4] == [Restart(0.1), Restart(0.2), Restart(0.4), Restart(0.8)]
    assert all(isinstance(decision, GiveUp) for decision in decisions[4:])


def test_a_spare_that_was_ended_for_its_gateway_is_no_failure(children: list[Child]):
    spare = started(children[0], 100.0, is_ready=True)
    spare.withdraw()
    assert (spare.pid, spare.is_ready, spare.restart_due) == (None, False, None)
    assert spare.policy.failures == 0


def test_a_spare_that_takes_long_to_get_ready_is_noticed_once(children: list[Child]):
    spare = started(children[0], 100.0)
    assert not spare.is_slow_to_start(100.0 + 30.0 - 0.1, 30.0)
    assert spare.is_slow_to_start(100.0 + 30.0, 30.0)
    assert not spare.is_slow_to_start(200.0, 30.0)
    assert not started(children[1], 100.0, is_ready=True).is_slow_to_start(200.0, 30.0)


def test_a_spare_with_a_shard_still_calls_itself_what_it_was_started_as(children: list[Child]):
    child = started(children[1], 100.0).take(101.0)
    child.role = "worker 7"
    assert child.started_as == "spare-1"
