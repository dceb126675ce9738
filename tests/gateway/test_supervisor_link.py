"""What a supervisor is told, whenever it comes, and what status shows of its processes."""

import pytest

from cluster.gateway import supervisor_link
from cluster.gateway.counters import Counters
from cluster.gateway.shard import Shard, ShardBounds
from cluster.gateway.supervisor_link import SupervisorLink
from cluster.gateway.worker_life import Applicant, WorkerLife
from cluster.shared.liveness import Liveness
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.messages import (
    ControlMessage,
    Drained,
    GatewayAlive,
    GatewayReady,
    Hello,
    Reload,
    Reloaded,
    ShardReport,
    WorkerReport,
)
from cluster.shared.node_status import WorkerState
from cluster.shared.shard_ids import ShardId

READY = GatewayReady(
    pid=1, node=1, epoch=2, listen="127.0.0.1:7777", driver="readiness", lane="zmq"
)
REPORT = ShardReport(shard=0, pid=5, state="ready", committed=False)


class Told:
    def __init__(self) -> None:
        self.sent: list[tuple[bytes, ControlMessage]] = []
        self.link = SupervisorLink(self._send, 2)

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        self.sent.append((identity, message))
        return True


def life(pid: int = 5, *, is_ready: bool) -> WorkerLife:
    applicant = Applicant(b"control", Hello(shard=0, pid=pid, create_time=0.0))
    lane, bounds = LocalGatewayLane(1_000, 1_000), ShardBounds(1_000, 1_000, 1_000, 1_000)
    shard = Shard(ShardId(1, 0), lane, Counters(), bounds, lambda: 0.0)
    made = WorkerLife(applicant, shard, 1, Liveness(1.0, 0.0))
    made.is_ready = is_ready
    return made


def test_nobody_is_told_while_there_is_no_supervisor():
    told = Told()
    told.link.set_ready(READY)
    told.link.report(REPORT)
    told.link.beat()
    told.link.drained()
    assert told.sent == []


@pytest.mark.parametrize("first", ["hello", "ready"])
def test_readiness_is_told_whoever_was_first(first: str):
    told = Told()
    if first == "hello":
        told.link.hello(b"supervisor")
        told.link.set_ready(READY)
    else:
        told.link.set_ready(READY)
        told.link.hello(b"supervisor")
    assert told.sent == [(b"supervisor", READY)]


def test_the_last_supervisor_that_said_hello_is_told():
    told = Told()
    told.link.hello(b"old")
    told.link.hello(b"new")
    told.link.report(REPORT)
    told.link.beat()
    told.link.drained()
    assert told.sent == [(b"new", REPORT), (b"new", GatewayAlive()), (b"new", Drained())]


def test_who_asked_for_a_reload_is_told_how_that_one_ended_and_once():
    told = Told()
    told.link.hello(b"supervisor")
    for asker in (b"ann", b"bob"):
        told.link.reload(asker)
    first, second = Reload(number=1), Reload(number=2)
    assert told.sent == [(b"supervisor", first), (b"supervisor", second)]
    told.sent.clear()
    failed, done = (
        Reloaded(succeeded=False, reason="no", number=1),
        Reloaded(succeeded=True, number=2),
    )
    told.link.reloaded(failed)
    assert told.sent == [(b"ann", failed)]
    told.link.reloaded(done)
    told.link.reloaded(done)
    assert told.sent == [(b"ann", failed), (b"bob", done)]


def test_a_reload_without_a_supervisor_and_one_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor_link, "_ASKERS_MAX", 1)
    told = Told()
    told.link.reload(b"ann")
    told.link.hello(b"supervisor")
    told.link.reload(b"bob")
    told.link.reload(b"eve")
    (ann, refused), (_, asked), (eve, crowded) = told.sent
    assert (ann, asked, eve) == (b"ann", Reload(number=1), b"eve")
    assert isinstance(refused, Reloaded)
    assert "no `cluster up` runs this node" in refused.reason
    assert crowded == Reloaded(succeeded=False, reason="1 others wait for one already")


@pytest.mark.parametrize(
    ("reported", "has_life", "is_ready", "is_draining", "shown"),
    [
        (None, False, False, False, "starting"),
        ("starting", False, False, False, "starting"),
        ("ready", False, False, False, "starting"),  # it has died, and nobody knows yet
        ("backoff", False, False, False, "backoff"),
        ("stuck", False, False, False, "stuck"),
        ("fenced", False, False, False, "fenced"),
        ("starting", True, False, False, "starting"),
        ("starting", True, True, False, "ready"),
        ("backoff", True, True, False, "ready"),  # the report of the predecessor
        ("ready", True, True, True, "draining"),
    ],
)
def test_the_state_of_a_worker_is_what_its_life_shows_else_what_was_reported(
    reported: WorkerState | None, has_life: bool, is_ready: bool, is_draining: bool, shown: str
):
    told = Told()
    if reported is not None:
        told.link.worker_report(WorkerReport(shard=1, pid=5, state=reported, restarts=3))
    found = life(is_ready=is_ready) if has_life else None
    status = told.link.worker_status(1, "zmq", found, is_draining)
    assert (status.shard, status.state, status.lane) == (1, shown, "zmq")
    assert status.restarts == (3 if reported else 0)


def test_the_pid_is_that_of_the_process_that_runs_handlers():
    told = Told()
    assert told.link.worker_status(0, "zmq", None, False).pid is None
    told.link.worker_report(WorkerReport(shard=0, pid=5, state="starting", restarts=0))
    assert told.link.worker_status(0, "zmq", None, False).pid == 5
    assert told.link.worker_status(0, "zmq", life(6, is_ready=True), False).pid == 6
    told.link.worker_report(WorkerReport(shard=0, pid=None, state="backoff", restarts=1))
    assert told.link.worker_status(0, "zmq", None, False).pid is None


@pytest.mark.parametrize("shard", [-1, 2, 1 << 40])
def test_a_report_of_a_shard_that_does_not_exist_is_ignored(shard: int):
    told = Told()
    told.link.worker_report(WorkerReport(shard=shard, pid=5, state="stuck", restarts=9))
    assert [told.link.worker_status(n, "zmq", None, False).restarts for n in range(2)] == [0, 0]
