"""What the supervisor remembers of a shard, without a gateway."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.shared.node_status import WorkerState
from cluster.supervisor.child import Child
from cluster.supervisor.restart_policy import Restart
from cluster.supervisor.shard import ShardPlace
from tests.supervisor.fake_child import fake_child, process_of


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Three processes that wait to be killed."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    yield [Child("worker 0", process) for process in processes]
    for process in processes:
        process.kill()
        process.communicate()


def test_only_successors_count_as_restarts(children: list[Child]):
    shard = ShardPlace(0)
    assert (shard.state, shard.pid, shard.restarts) == ("starting", None, 0)
    shard.started(children[0], 0.0)
    assert (shard.state, shard.pid, shard.restarts) == ("starting", children[0].pid, 0)
    assert shard.ended(100.0) == Restart(0.1)
    assert (shard.state, shard.pid, shard.restart_due) == ("backoff", None, 100.1)
    shard.started(children[1], 0.0)
    assert (shard.state, shard.restarts, shard.restart_due) == ("starting", 1, None)
    shard.withdraw()
    shard.started(children[2], 0.0)
    assert shard.restarts == 2
    report = shard.report()
    assert (report.shard, report.pid, report.restarts) == (0, children[2].pid, 2)


def test_a_commit_told_after_the_death_makes_the_successor_due_at_once(children: list[Child]):
    shard = ShardPlace(0)
    shard.started(children[0], 0.0)
    shard.ended(100.0)
    assert shard.proved(children[0].pid, 100.01)
    assert shard.restart_due == 100.01
    assert shard.policy.failures == 0


def test_a_commit_of_an_earlier_process_proves_nothing_for_the_present_one(children: list[Child]):
    shard = ShardPlace(0)
    shard.started(children[0], 0.0)
    shard.ended(100.0)
    shard.started(children[1], 0.0)
    assert not shard.proved(children[0].pid, 101.0)
    assert shard.ended(102.0) == Restart(0.2)


def test_a_process_that_was_ended_for_its_gateway_is_no_failure_of_the_shard(
    children: list[Child],
):
    shard = ShardPlace(0)
    shard.started(children[0], 0.0)
    shard.withdraw()
    assert shard.policy.failures == 0
    assert (shard.pid, shard.state) == (None, "backoff")


def test_a_process_that_takes_long_to_get_ready_is_noticed_once(children: list[Child]):
    shard = ShardPlace(0)
    shard.started(children[0], 100.0)
    assert not shard.is_slow_to_start(100.0 + 30.0 - 0.1, 30.0)
    assert shard.is_slow_to_start(100.0 + 30.0, 30.0)
    assert not shard.is_slow_to_start(200.0, 30.0)
    shard.ended(200.0)
    shard.started(children[1], 200.0)
    assert shard.is_slow_to_start(200.0 + 30.0, 30.0)
    shard.ended(300.0)
    shard.started(children[2], 300.0)
    shard.became_ready(301.0)
    assert not shard.is_slow_to_start(400.0, 30.0)


@pytest.mark.parametrize("state", ["stuck", "fenced"])
def test_a_process_that_was_cut_off_is_not_slow_to_start(children: list[Child], state: WorkerState):
    shard = ShardPlace(0)
    shard.started(children[0], 100.0)
    shard.state = state
    assert not shard.is_slow_to_start(200.0, 30.0)
    shard.ended(200.0)
    shard.started(children[1], 200.0)
    assert shard.is_slow_to_start(300.0, 30.0)


def test_a_process_that_was_told_to_stop_has_no_successor(children: list[Child]):
    shard = ShardPlace(0)
    shard.started(children[0], 0.0)
    shard.stopped()
    assert shard.restart_due is None


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to die of there")
def test_the_end_of_a_child_is_told_in_words(children: list[Child]):
    assert children[0].exit_code() is None
    children[0].kill_and_reap()
    assert children[0].exit_code() == -9
    assert children[0].describe_exit() == "signal 9 (SIGKILL)"
    children[1].ask_to_end()
    children[1].kill_and_reap()
    assert children[1].describe_exit() in ("signal 15 (SIGTERM)", "signal 9 (SIGKILL)")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        process.wait()
        assert Child("gateway", process).describe_exit() == "exit code 7"


def test_a_process_that_ends_as_it_was_asked_to_has_a_successor_at_once_and_did_not_die():
    shard = ShardPlace(0)
    shard.started(fake_child(3), 0.0)
    assert (shard.version, shard.is_ending) == (3, False)
    shard.asked_to_end(105.0)
    assert shard.is_ending
    assert not shard.kill_if_overdue(104.9)
    assert shard.ends_as_asked(0)
    assert not shard.ends_as_asked(-9)
    shard.replaced(101.0)
    assert (shard.version, shard.is_ending, shard.restart_due) == (None, False, 101.0)
    assert shard.policy.failures == 0
    shard.started(fake_child(4), 0.0)
    assert (shard.version, shard.is_ending, shard.restarts) == (4, False, 0)
    shard.ended(102.0)
    shard.started(fake_child(4), 0.0)
    assert shard.restarts == 1


def test_a_process_that_does_not_end_as_it_was_asked_to_is_killed_once_and_did_not_die():
    shard = ShardPlace(0)
    shard.started(fake_child(), 0.0)
    process = process_of(shard.child)
    shard.asked_to_end(105.0)
    assert shard.kill_if_overdue(105.0)
    assert process.was_killed
    assert not shard.kill_if_overdue(106.0)
    assert shard.is_ending
    assert shard.ends_as_asked(-9)


def test_a_process_that_nobody_asked_to_end_was_not_replaced():
    shard = ShardPlace(0)
    shard.started(fake_child(), 0.0)
    assert not shard.ends_as_asked(0)
    shard.asked_to_end(105.0)
    shard.ended(101.0)  # it died first
    shard.started(fake_child(), 0.0)
    assert not shard.is_ending
    assert not shard.kill_if_overdue(106.0)
