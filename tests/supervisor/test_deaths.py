"""What follows the end of a process, with children that are none and times that are given."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.shared import messages
from cluster.shared.config import Config, NodeConfig, WorkersConfig
from cluster.shared.exit_codes import CANNOT_START, LOST_GATEWAY, TRY_AGAIN
from cluster.shared.run_directory import RunDirectory
from cluster.shared.start_failure import StartFailure, write_start_failure
from cluster.supervisor.child import Child
from cluster.supervisor.course import (
    EXIT_CANNOT_START,
    EXIT_DRAINED,
    EXIT_GAVE_UP,
    EXIT_NOT_DRAINED,
    Course,
)
from cluster.supervisor.deaths import STOP_NEWS_S, TRY_AGAIN_S, VERDICT_WAIT_S, Deaths
from cluster.supervisor.memory_kills import MemoryKills
from cluster.supervisor.node import Node
from cluster.supervisor.reload import Reloader
from cluster.supervisor.restart_policy import BACKOFF_FIRST_S, BACKOFF_MAX_S, FAILURES_MAX
from cluster.supervisor.versions import Verdict
from tests.supervisor.fake_child import fake_child, process_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the control plane is ipc here")

WORKER_TIMEOUT_S = 10.0


class Bench:
    """A node of one shard and one spare; its gateway was heard at second 0."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        workers = WorkersConfig(count=1, spares=1, worker_timeout_s=WORKER_TIMEOUT_S)
        self.node = Node(Config(node=NodeConfig(listen="127.0.0.1:0"), workers=workers), directory)
        self.course = Course()
        self.reload = Reloader(self.node, None, 1.0, lambda text: None)
        self.deaths = Deaths(self.node, self.course, self.reload)
        (self.shard,) = self.node.shards
        (self.spare,) = self.node.spares

    def worker_ends(self, exit_code: int, now: float) -> Child:
        """Have the shard served by a process, which ends."""
        worker = fake_child(role="worker 0")
        self.shard.started(worker, now)
        process_of(worker).returncode = exit_code
        self.deaths.worker_ended(self.shard, worker, exit_code, now)
        return worker

    def spare_ends(self, exit_code: int, now: float) -> None:
        """Have a process wait, which ends."""
        child = fake_child(role="spare 1")
        self.spare.started(child, now)
        process_of(child).returncode = exit_code
        self.deaths.spare_ended(self.spare, child, exit_code, now)

    def gateway_ends(self, exit_code: int, now: float = 1.0) -> None:
        gateway = fake_child(role="gateway")
        self.node.gateway.child = gateway
        self.node.gateway.policy.life_started()
        process_of(gateway).returncode = exit_code
        self.deaths.gateway_ended(gateway, exit_code, now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    made = Bench(directory)
    yield made
    made.node.close()


def test_a_shard_is_given_up_when_the_gateway_has_not_objected_in_time(
    bench: Bench, capsys: pytest.CaptureFixture[str]
):
    bench.course.became_ready()
    for _ in range(FAILURES_MAX):
        bench.worker_ends(3, 1.0)
    assert bench.shard.restart_due is None
    assert bench.deaths.next_due == 1.0 + VERDICT_WAIT_S
    bench.deaths.check_give_ups(1.0)
    assert bench.course.exit_code is None
    bench.deaths.check_give_ups(1.0 + VERDICT_WAIT_S)
    assert bench.course.exit_code == EXIT_GAVE_UP
    assert bench.deaths.next_due == float("inf")
    told = capsys.readouterr().err
    assert told.startswith(f"cluster: gave up restarting worker 0: {FAILURES_MAX} lives in 0.0 s")
    assert told.endswith("the last ended with exit code 3\n")


@pytest.mark.parametrize("why", ["the death was of use", "the files have changed"])
def test_a_shard_is_not_given_up_if(bench: Bench, why: str):
    bench.course.became_ready()
    for _ in range(FAILURES_MAX):
        bench.worker_ends(3, 1.0)
    if why == "the death was of use":
        bench.deaths.was_of_use(bench.shard, 1.2)
    else:
        bench.deaths.forgive(1.2)
    assert bench.shard.restart_due == 1.2
    bench.deaths.check_give_ups(100.0)
    assert bench.course.exit_code is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_death_by_somebody_else_s_hand_is_told_with_what_was_killed_for_want_of_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int
):
    monkeypatch.setattr(bench.node, "memory_kills", MemoryKills(iter([0, count, count]).__next__))
    bench.course.became_ready()
    bench.worker_ends(-9, 1.0)
    told = {
        0: "signal 9 (SIGKILL); successor",
        1: "for want of memory: the system has killed 1 process for that in the last 10 s; succ",
        2: "for want of memory: the system has killed 2 processes for that in the last 10 s; succ",
    }
    assert told[count] in caplog.messages[-1]
    ours = fake_child(role="spare 1")
    bench.spare.started(ours, 2.0)
    ours.kill()
    process_of(ours).returncode = -9
    bench.deaths.spare_ended(bench.spare, ours, -9, 2.0)
    assert "signal 9 (SIGKILL); successor" in caplog.messages[-1]


def test_before_a_node_was_ready_a_shard_is_given_up_at_once(bench: Bench):
    for _ in range(FAILURES_MAX):
        bench.worker_ends(3, 1.0)
    assert bench.course.exit_code == EXIT_GAVE_UP


def test_in_a_drain_a_shard_is_given_up_as_late_and_the_gateway_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    told: list[messages.ControlMessage] = []
    monkeypatch.setattr(bench.node.gateway, "tell", told.append)
    bench.course.became_ready()
    bench.course.begin_drain(60.0)
    for _ in range(FAILURES_MAX):
        bench.worker_ends(3, 1.0)
    bench.deaths.was_of_use(bench.shard, 1.1)  # it had a packet set aside
    assert bench.shard.restart_due == 1.1
    bench.deaths.check_give_ups(1.0 + VERDICT_WAIT_S)
    bench.worker_ends(3, 2.0)
    given_up = messages.ShardGivenUp(shard=0)
    assert given_up not in told
    bench.deaths.check_give_ups(2.0 + VERDICT_WAIT_S)
    assert told[-1] == given_up
    assert bench.course.exit_code is None  # the drain goes on
    bench.course.finish_drain()
    assert bench.course.exit_code == EXIT_GAVE_UP


def test_the_death_of_the_gateway_takes_its_verdicts_along(bench: Bench):
    bench.course.became_ready()
    for _ in range(FAILURES_MAX):
        bench.worker_ends(3, 1.0)
    bench.gateway_ends(5)
    bench.deaths.check_give_ups(100.0)
    assert bench.course.exit_code is None


@pytest.mark.parametrize("is_serving", [False, True])
def test_what_keeps_workers_from_starting_is_told_once_and_ends_a_node_that_was_never_ready(
    bench: Bench, is_serving: bool, capsys: pytest.CaptureFixture[str]
):
    if is_serving:
        bench.course.became_ready()
    for _ in range(2):
        worker = fake_child(role="worker 0")
        bench.shard.started(worker, 0.0)
        failure = StartFailure(worker.pid, "no such app")
        write_start_failure(bench.directory, "worker-0", failure)
        process_of(worker).returncode = CANNOT_START
        bench.deaths.worker_ended(bench.shard, worker, CANNOT_START, 1.0)
        if not is_serving:
            assert bench.course.exit_code == EXIT_CANNOT_START
            break
    assert capsys.readouterr().err == "no such app\n"
    assert (bench.course.exit_code is None) == is_serving


def test_a_worker_that_lost_a_silent_gateway_is_not_to_blame(bench: Bench):
    bench.course.became_ready()
    silent_at = WORKER_TIMEOUT_S / 2
    for _ in range(2 * FAILURES_MAX):
        bench.worker_ends(LOST_GATEWAY, silent_at)
        bench.spare_ends(LOST_GATEWAY, silent_at)
    assert bench.shard.restart_due == bench.spare.restart_due == silent_at + BACKOFF_FIRST_S
    assert bench.shard.policy.failures == bench.spare.policy.failures == 0
    bench.worker_ends(LOST_GATEWAY, silent_at - 0.1)  # others heard the gateway
    assert bench.shard.policy.failures == 1
    bench.worker_ends(3, silent_at)  # and this is something else
    assert bench.shard.policy.failures == 2


def test_a_worker_that_ends_unasked_has_died_also_with_0(bench: Bench):
    bench.course.became_ready()
    bench.worker_ends(0, 1.0)
    assert bench.shard.policy.failures == 1
    assert bench.shard.restart_due == 1.0 + BACKOFF_FIRST_S


def test_before_a_node_was_ready_a_spare_is_given_up_like_a_worker(bench: Bench):
    bench.spare_ends(3, 1.0)
    assert bench.spare.restart_due == 1.0 + BACKOFF_FIRST_S
    for _ in range(FAILURES_MAX - 1):
        assert bench.course.exit_code is None
        bench.spare_ends(3, 1.0)
    assert bench.course.exit_code == EXIT_GAVE_UP


def test_the_gateway_is_told_of_a_spare_that_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    told: list[messages.ControlMessage] = []
    monkeypatch.setattr(bench.node.gateway, "tell", told.append)
    bench.course.became_ready()
    bench.spare_ends(-9, 1.0)
    assert [message.pid for message in told if isinstance(message, messages.SpareGone)]


def test_a_worker_for_which_the_gateway_had_no_memory_tries_again_if_the_node_was_ready(
    bench: Bench,
):
    bench.worker_ends(TRY_AGAIN, 1.0)
    assert bench.shard.policy.failures == 1
    bench.course.became_ready()
    bench.worker_ends(TRY_AGAIN, 1.0)
    assert bench.shard.policy.failures == 1
    assert bench.shard.restart_due == 1.0 + TRY_AGAIN_S


def test_a_worker_that_was_asked_to_end_is_succeeded_at_once(bench: Bench):
    bench.course.became_ready()
    worker = fake_child(role="worker 0")
    bench.shard.started(worker, 0.0)
    bench.node.end_worker(bench.shard, 5.0)
    process_of(worker).returncode = 0
    bench.deaths.worker_ended(bench.shard, worker, 0, 1.0)
    assert bench.shard.restart_due == 1.0
    assert bench.shard.policy.failures == 0


def test_a_worker_that_ends_in_a_drain_has_a_successor_unless_the_gateway_says_that_it_is_drained(
    bench: Bench,
):
    bench.course.begin_drain(10.0)
    bench.worker_ends(0, 1.0)
    assert bench.shard.restart_due == 1.0 + STOP_NEWS_S
    bench.course.is_drained = True
    bench.worker_ends(0, 1.0)
    assert bench.shard.restart_due is None
    assert bench.course.exit_code == EXIT_DRAINED  # everybody has left


def test_a_spare_of_a_gateway_that_drained_by_itself_has_a_successor_with_the_next_gateway_only(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    bench.course.became_ready()
    bench.node.gateway.child = fake_child(role="gateway")
    bench.course.is_drained = True
    bench.spare_ends(0, 1.0)
    assert bench.spare.restart_due is None
    assert bench.course.exit_code is None
    assert "spare 1" not in caplog.text


def test_a_spare_that_always_ends_is_never_given_up_in_a_node_that_was_ready(bench: Bench):
    bench.course.became_ready()
    for _ in range(FAILURES_MAX + 1):
        bench.spare_ends(3, 1.0)
    assert bench.spare.restart_due == 1.0 + BACKOFF_MAX_S
    assert bench.course.exit_code is None


def test_a_worker_of_a_new_version_that_hangs_before_it_is_ready_never_ends_the_node(
    bench: Bench,
):
    bench.course.became_ready()
    bench.reload.ask(messages.Reload(number=1))
    assert bench.reload.take_changes()
    for life in range(2 * FAILURES_MAX):
        worker = fake_child(1, role="worker 0")
        bench.shard.started(worker, life)
        bench.shard.state = "stuck"
        process_of(worker).returncode = -9
        bench.deaths.worker_ended(bench.shard, worker, -9, life)
        assert bench.reload.versions.verdict is Verdict.FAILS
        assert bench.shard.restart_due is not None
    bench.deaths.check_give_ups(1_000.0)
    assert bench.course.exit_code is None


def test_a_spare_that_dies_after_its_import_says_nothing_against_its_version(bench: Bench):
    bench.course.became_ready()
    bench.reload.ask(messages.Reload(number=1))
    assert bench.reload.take_changes()
    child = fake_child(1, role="spare 1")
    bench.spare.started(child, 0.0)
    bench.spare.became_ready(1.0)
    process_of(child).returncode = -9
    bench.deaths.spare_ended(bench.spare, child, -9, 1.0)
    assert bench.reload.versions.verdict is not Verdict.FAILS
    assert bench.spare.restart_due is not None


def test_a_spare_of_a_version_that_fails_in_a_drain_has_no_successor(bench: Bench):
    bench.course.became_ready()
    bench.reload.ask(messages.Reload(number=1))
    assert bench.reload.take_changes()
    child = fake_child(1, role="spare 1")
    bench.spare.started(child, 0.0)
    bench.course.begin_drain(60.0)
    bench.course.is_drained = True
    process_of(child).returncode = CANNOT_START
    bench.deaths.spare_ended(bench.spare, child, CANNOT_START, 1.0)
    assert bench.reload.versions.verdict is not Verdict.FAILS
    assert bench.spare.restart_due is None
    assert bench.course.exit_code == EXIT_DRAINED


def test_who_asks_while_a_version_fails_is_not_told_of_that_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    told: list[object] = []
    monkeypatch.setattr(bench.node.gateway, "tell", told.append)
    bench.course.became_ready()
    bench.reload.ask(messages.Reload(number=1))
    assert bench.reload.take_changes()
    bench.reload.ask(messages.Reload(number=2))
    child = fake_child(1, role="spare 1")
    process_of(child).returncode = 3
    assert bench.reload.is_at_fault(child, 3, None)
    assert [message.number for message in told if isinstance(message, messages.Reloaded)] == [1]
    assert bench.reload.take_changes()
    bench.reload.end("over")
    assert [message.number for message in told if isinstance(message, messages.Reloaded)] == [1, 2]


@pytest.mark.parametrize(
    ("served", "is_vacant"), [((0,), True), ((0, 1), False)], ids=["nothing", "workers"]
)
def test_a_shard_whose_process_is_of_a_version_that_started_nothing_is_told_as_left_without_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, served: tuple[int, ...], is_vacant: bool
):
    told: list[object] = []
    monkeypatch.setattr(bench.node.gateway, "tell", told.append)
    bench.course.became_ready()
    bench.reload.worker_is_ready(fake_child(0, role="worker 0"))
    bench.reload.ask(messages.Reload(number=1))
    assert bench.reload.take_changes()
    for version in served[1:]:
        bench.reload.worker_is_ready(fake_child(version, role="worker 0"))
    # One more of version 1 is about to start when the next one does not.
    bench.shard.started(fake_child(1, role="worker 0"), 0.0)
    bench.reload.ask(messages.Reload(number=2))
    assert bench.reload.take_changes()
    spare = fake_child(2, role="spare 1")
    process_of(spare).returncode = 3
    assert bench.reload.is_at_fault(spare, 3, None)
    (answer,) = [message for message in told if isinstance(message, messages.Reloaded)]
    assert ("worker 0 has no process" in answer.reason) is is_vacant


def test_who_asks_the_next_gateway_is_not_told_of_a_version_that_was_asked_for_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    told: list[object] = []
    monkeypatch.setattr(bench.node.gateway, "tell", told.append)
    bench.course.became_ready()
    bench.reload.ask(messages.Reload(number=7))
    assert bench.reload.take_changes()
    bench.reload.ask(messages.Reload(number=8))
    bench.gateway_ends(-9)
    assert not bench.reload.take_changes()  # who had asked is told by the end of the gateway
    child = fake_child(bench.reload.versions.latest, role="spare 1")
    process_of(child).returncode = 3
    assert bench.reload.is_at_fault(child, 3, None)
    assert [message.number for message in told if isinstance(message, messages.Reloaded)] == [0]


def test_a_spare_that_was_retired_leaves_its_place_to_another(bench: Bench):
    bench.course.became_ready()
    child = fake_child()
    bench.spare.started(child, 0.0)
    bench.node.spares.retire(bench.spare)
    assert process_of(child).was_killed
    process_of(child).returncode = -9
    bench.deaths.spare_ended(bench.spare, child, -9, 1.0)
    assert bench.spare.restart_due == 1.0
    assert bench.spare.policy.failures == 0


@pytest.mark.parametrize(
    ("exit_code", "code_of_the_node"), [(0, EXIT_DRAINED), (5, EXIT_NOT_DRAINED)]
)
def test_a_gateway_that_ends_in_a_drain_tells_by_its_exit_code_how_it_went(
    bench: Bench, exit_code: int, code_of_the_node: int
):
    bench.course.begin_drain(10.0)
    bench.gateway_ends(exit_code)
    assert bench.course.exit_code == code_of_the_node


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_gateway_that_cannot_start_ends_a_node_that_was_never_ready_only(
    bench: Bench, was_ready: bool
):
    if was_ready:
        bench.course.became_ready()
    bench.gateway_ends(CANNOT_START)
    if was_ready:
        assert bench.course.exit_code is None
        assert bench.node.gateway.restart_due == 1.0 + BACKOFF_FIRST_S
    else:
        assert bench.course.exit_code == EXIT_CANNOT_START


def test_a_gateway_that_dies_before_the_node_was_ready_is_succeeded_until_it_is_given_up(
    bench: Bench,
):
    for _ in range(FAILURES_MAX):
        assert bench.course.exit_code is None
        bench.gateway_ends(-9)
    assert bench.course.exit_code == EXIT_GAVE_UP


def test_the_workers_of_a_gateway_that_died_are_ended_and_have_done_no_wrong(bench: Bench):
    bench.course.became_ready()
    worker, spare = fake_child(role="worker 0"), fake_child()
    bench.shard.started(worker, 0.0)
    bench.spare.started(spare, 0.0)
    bench.gateway_ends(-9)
    assert process_of(worker).was_killed
    assert process_of(spare).was_killed
    assert bench.shard.policy.failures == bench.spare.policy.failures == 0


def test_whoever_is_left_when_the_gateway_has_drained_is_ended_too(bench: Bench):
    bench.course.begin_drain(10.0)
    spare = fake_child()
    bench.spare.started(spare, 0.0)
    bench.gateway_ends(0)
    assert process_of(spare).was_killed
    assert bench.course.exit_code is None  # that is waited for
    process_of(spare).returncode = -9
    bench.deaths.spare_ended(bench.spare, spare, -9, 1.0)
    assert bench.course.exit_code == EXIT_DRAINED


def test_a_gateway_that_drained_unasked_is_succeeded_by_one_that_has_not(bench: Bench):
    bench.course.became_ready()
    bench.course.is_drained = True
    bench.gateway_ends(0)
    assert not bench.course.is_drained
    assert bench.node.gateway.restart_due is not None
