"""Status from whoever knows it: the gateway, the supervisor's record, or nobody."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster.shared.config import Config
from cluster.shared.messages import (
    GatewayReady,
    StatusReply,
    StatusRequest,
    decode_message,
    encode_message,
)
from cluster.shared.node_status import GatewayStatus, NodeStatus
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.supervisor.node_record import make_node_record, write_node_record
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.status import read_status

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the control plane is ipc here")

SHORT_S = 0.2
STATUS = NodeStatus(
    node=1,
    epoch=5,
    gateway=GatewayStatus(pid=1, driver="readiness", sessions=3),
    workers=[],
    spares=[],
    links=[],
    counters={"sends": 9},
)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


@contextmanager
def gateway_that_answers(endpoint: str) -> Iterator[None]:
    """Answer one request for the status, after a message that is no answer."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 1_000)
        router.setsockopt(zmq.RCVTIMEO, 10_000)
        router.bind(endpoint)

        def answer() -> None:
            identity, frame = router.recv_multipart()
            assert decode_message(frame) == StatusRequest()
            for message in (StatusRequest(), StatusReply(status=STATUS)):
                router.send_multipart([identity, encode_message(message)])

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_nothing_runs_where_there_is_no_directory(tmp_path: Path):
    assert read_status(RunDirectory(tmp_path / "none"), SHORT_S) is None


def test_nothing_runs_where_nobody_holds_a_role(directory: RunDirectory):
    write_node_record(directory, STATUS)
    assert read_status(directory, SHORT_S) is None


@pytest.mark.parametrize("role", ["supervisor", "gateway"])
def test_a_node_that_has_only_begun_to_start_does_not_run_yet(directory: RunDirectory, role: str):
    with directory.lock(role):
        assert read_status(directory, SHORT_S) is None


def test_the_gateway_is_asked_first(directory: RunDirectory):
    with directory.lock("gateway"), gateway_that_answers(directory.sockets.control_endpoint()):
        assert read_status(directory) == STATUS


def test_the_record_of_the_supervisor_stands_in_for_the_gateway(directory: RunDirectory):
    with directory.lock("supervisor"):
        write_node_record(directory, STATUS)
        assert read_status(directory, SHORT_S) == STATUS


def test_a_gateway_without_a_supervisor_that_does_not_answer_is_shown_bare(
    directory: RunDirectory,
):
    directory.write_config(Config())
    with directory.lock("gateway"):
        status = read_status(directory, SHORT_S)
    assert status is not None
    assert status.gateway.pid is not None
    assert (status.node, status.workers) == (1, [])


def test_a_damaged_record_is_an_error_that_names_it(directory: RunDirectory):
    (directory.path / "supervisor.json").write_text("{}")
    with directory.lock("supervisor"), pytest.raises(RunDirectoryError, match=r"supervisor\.json"):
        read_status(directory, SHORT_S)


def test_the_record_shows_what_is_configured_until_a_gateway_was_ready():
    record = make_node_record(Config(), 4, None, [ShardPlace(0), ShardPlace(1)], [])
    assert (record.epoch, record.gateway.driver) == (0, "auto")
    assert [worker.lane for worker in record.workers] == ["auto", "auto"]
    ready = GatewayReady(pid=4, node=1, epoch=8, listen="x:1", driver="readiness", lane="zmq")
    later = make_node_record(Config(), None, ready, [ShardPlace(0)], [])
    assert (later.epoch, later.gateway) == (
        8,
        GatewayStatus(pid=None, driver="readiness", sessions=0),
    )
    assert later.workers[0].lane == "zmq"
    assert msgspec.json.decode(msgspec.json.encode(later), type=NodeStatus) == later
