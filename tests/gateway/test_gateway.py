"""A whole gateway in a thread: what it answers on its control plane, and how it drains."""

import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster.gateway.gateway import Gateway
from cluster.gateway.session_ids import RESERVED
from cluster.iocp import IocpCore, choose_driver
from cluster.shared.config import Config, GatewayConfig, NodeConfig, WorkersConfig
from cluster.shared.lane import Commit
from cluster.shared.messages import (
    Assign,
    ControlMessage,
    Drain,
    Drained,
    EndWorker,
    GatewayAlive,
    GatewayHeartbeat,
    GatewayReady,
    Grant,
    Hello,
    Refuse,
    Reload,
    Reloaded,
    ShardReport,
    SpareAlive,
    SpareGone,
    SpareHello,
    SpareReport,
    StatusReply,
    StatusRequest,
    Stop,
    SupervisorHello,
    WorkerGone,
    WorkerReport,
    decode_message,
    encode_message,
)
from cluster.shared.node_status import NodeStatus, SpareStatus
from cluster.shared.process import ProcessIdentity, process_identity
from cluster.shared.run_directory import RunDirectory
from cluster.shared.zmq_lane import ZmqWorkerLane
from cluster.shared.zmq_sockets import open_control_socket
from tests.support import wait_until

PID, SINCE = process_identity(os.getpid())
"""Of a worker that lives: a gateway looks whether the process of each does."""

CONFIG = Config(
    node=NodeConfig(id=7, listen="127.0.0.1:0"),
    gateway=GatewayConfig(close_timeout_s=1.0, max_sessions=16),
    workers=WorkersConfig(count=2),
)


class Peer:
    """One who talks to the control plane."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, is_worker: bool
    ) -> None:
        if is_worker:
            self.socket = open_control_socket(context, zmq.DEALER)
        else:
            self.socket = context.socket(zmq.DEALER)
            self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, message: ControlMessage) -> None:
        assert self.socket.poll(5_000, zmq.POLLOUT)
        self.socket.send(encode_message(message))

    def receive(self) -> ControlMessage:
        """Return the next message that is more than a sign of life."""
        while True:
            assert self.socket.poll(10_000), "no answer"
            message = decode_message(self.socket.recv())
            if not isinstance(message, GatewayAlive | GatewayHeartbeat):
                return message

    def status(self) -> NodeStatus:
        self.send(StatusRequest())
        while True:
            message = self.receive()
            if isinstance(message, StatusReply):
                return message.status


class Running:
    """A gateway that serves in a thread of its own."""

    def __init__(self, path: Path, config: Config) -> None:
        self.directory = RunDirectory(path)
        self.directory.create()
        self.gateway: Gateway | None = None
        self.config = config
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._started.wait(10)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers: list[Peer] = []
        self._lanes: list[ZmqWorkerLane] = []

    def _serve(self) -> None:
        core = IocpCore(driver=choose_driver(self.config.gateway.driver))
        gateway = Gateway(self.config, self.directory, core, epoch=9)
        gateway.start()
        self.gateway = gateway
        self._started.set()
        gateway.serve()
        gateway.close()
        core.close()

    def peer(self, *, is_worker: bool = False) -> Peer:
        endpoint = self.directory.sockets.control_endpoint()
        self._peers.append(Peer(self._context, endpoint, is_worker))
        return self._peers[-1]

    def start_worker(self, shard: int = 0) -> Peer:
        """Return one who has the shard, with its end of the lane open."""
        worker = self.peer(is_worker=True)
        worker.send(Hello(shard=shard, pid=PID, create_time=SINCE))
        grant = worker.receive()
        assert isinstance(grant, Grant)
        self.open_lane(grant)
        return worker

    def open_lane(self, grant: Grant) -> ZmqWorkerLane:
        lane = ZmqWorkerLane(
            self._context,
            grant.lane.endpoint,
            grant.lane.identity,
            grant.incarnation,
            grant.position,
            grant.lane.capacity_bytes,
        )
        self._lanes.append(lane)
        start = Commit(grant.position, grant.index)
        wait_until(lambda: lane.publish(start, []), what="the connection")
        return lane

    def address(self) -> tuple[str, int]:
        supervisor = self.peer()
        supervisor.send(SupervisorHello())
        ready = supervisor.receive()
        assert isinstance(ready, GatewayReady)
        host, _, port = ready.listen.rpartition(":")
        return host, int(port)

    def has_ended(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def wait_end(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive(), "the gateway still serves"

    def close(self) -> None:
        for peer in self._peers:
            peer.socket.close()
        if self._thread.is_alive() and self.gateway is not None:
            self.gateway.request_drain(0.0)
        self.wait_end()
        for lane in self._lanes:
            lane.close()
        self._context.term()


@pytest.fixture
def running(tmp_path: Path, socket_driver: str) -> Iterator[Running]:
    gateway = msgspec.structs.replace(CONFIG.gateway, driver=socket_driver)
    made = Running(tmp_path / "run", msgspec.structs.replace(CONFIG, gateway=gateway))
    yield made
    made.close()


def test_a_supervisor_is_told_where_the_gateway_listens(running: Running):
    supervisor = running.peer()
    supervisor.send(SupervisorHello())
    ready = supervisor.receive()
    assert isinstance(ready, GatewayReady)
    driver = running.config.gateway.driver
    assert (ready.node, ready.epoch, ready.driver, ready.lane) == (7, 9, driver, "zmq")
    assert ready.listen.startswith("127.0.0.1:")


def test_a_supervisor_is_shown_again_and_again_that_the_gateway_works(tmp_path: Path):
    workers = WorkersConfig(count=1, worker_timeout_s=0.2)
    running = Running(tmp_path / "run", msgspec.structs.replace(CONFIG, workers=workers))
    try:
        supervisor = running.peer()
        supervisor.send(SupervisorHello())
        alive = 0
        while alive < 5:
            assert supervisor.socket.poll(5_000), "no sign of life"
            alive += decode_message(supervisor.socket.recv()) == GatewayAlive()
    finally:
        running.close()


def test_status_tells_of_every_shard_also_without_workers(running: Running):
    status = running.peer().status()
    assert (status.node, status.epoch) == (7, 9)
    assert status.gateway.driver == running.config.gateway.driver
    assert status.gateway.sessions == 0
    assert [worker.state for worker in status.workers] == ["starting", "starting"]
    assert [worker.pid for worker in status.workers] == [None, None]
    assert status.counters["sessions_held"] == 0
    assert status.counters["uncommitted_bytes"] == 0


def test_a_process_is_granted_a_shard_and_reported_ready(running: Running):
    supervisor = running.peer()
    supervisor.send(SupervisorHello())
    assert isinstance(supervisor.receive(), GatewayReady)
    supervisor.send(WorkerReport(shard=1, pid=5, state="starting", restarts=2))
    worker = running.peer()
    worker.send(Hello(shard=1, pid=PID, create_time=SINCE))
    grant = worker.receive()
    assert isinstance(grant, Grant)
    running.open_lane(grant)
    report = supervisor.receive()
    assert report == ShardReport(shard=1, pid=PID, state="ready", committed=False)
    late = running.peer()
    late.send(SupervisorHello())
    assert isinstance(late.receive(), GatewayReady)
    assert late.receive() == report
    late.send(WorkerGone(shard=1, pid=PID))
    assert running.peer().status().workers[1].restarts == 2


def test_a_spare_waits_is_given_a_shard_and_is_succeeded_by_another(running: Running):
    supervisor = running.peer()
    supervisor.send(SupervisorHello())
    assert isinstance(supervisor.receive(), GatewayReady)
    pid, since = PID, SINCE
    spare = running.peer(is_worker=True)
    spare.send(SpareHello(pid=pid, create_time=since))
    assert supervisor.receive() == SpareReport(pid=pid, state="ready")
    spare.send(SpareAlive())
    assert running.peer().status().spares == [SpareStatus(pid=pid)]
    supervisor.send(Assign(shard=1, pid=pid))
    grant = spare.receive()
    assert isinstance(grant, Grant)
    assert grant.shard == 1
    running.open_lane(grant)
    assert isinstance(supervisor.receive(), ShardReport)
    status = running.peer().status()
    assert (status.workers[1].pid, status.spares) == (pid, [])
    supervisor.send(WorkerGone(shard=1, pid=pid))
    supervisor.send(SpareGone(pid=pid))
    supervisor.send(Assign(shard=1, pid=pid))  # of a spare that has not come yet
    supervisor.send(WorkerGone(shard=1, pid=pid))  # and never will
    later = running.peer(is_worker=True)
    assert supervisor.status().workers[1].pid is None
    later.send(SpareHello(pid=pid, create_time=since))
    assert supervisor.receive() == SpareReport(pid=pid, state="ready")
    supervisor.send(Drain(timeout_s=1.0))
    assert supervisor.receive() == Drained()
    assert later.receive() == Stop()


def test_messages_that_wait_for_a_gateway_are_answered_when_it_is_there(tmp_path: Path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    early = [Peer(context, directory.sockets.control_endpoint(), True) for _ in range(2)]
    for shard, peer in enumerate(early):
        peer.socket.send(encode_message(Hello(shard=shard, pid=1 << 30, create_time=1.0)))
    running = Running(tmp_path / "run", CONFIG)
    try:
        assert all(isinstance(peer.receive(), Grant) for peer in early)
    finally:
        for peer in early:
            peer.socket.close()
        context.term()
        running.close()


def test_what_a_gateway_is_not_told_is_counted(running: Running):
    peer = running.peer()
    for message in (
        Stop(),
        Drained(),
        Refuse(reason="me?"),
        Drain(timeout_s=-1.0),
        Drain(timeout_s=math.nan),
        Drain(timeout_s=math.inf),
    ):
        peer.send(message)
    peer.socket.send(b"garbage")
    assert isinstance(peer.receive(), Refuse)
    assert peer.status().counters["control_refused"] == 7


@pytest.mark.parametrize("pid", [0, -1, 1 << 62])
def test_a_hello_of_a_process_that_cannot_be_harms_nobody(running: Running, pid: int):
    peer = running.peer()
    peer.send(Hello(shard=0, pid=pid, create_time=math.nan))
    assert isinstance(peer.receive(), Grant)
    other = running.peer()
    other.send(Hello(shard=0, pid=1 << 30, create_time=1.0))
    assert isinstance(other.receive(), Grant)


def test_a_drain_without_sessions_is_over_at_once(running: Running):
    supervisor = running.peer()
    supervisor.send(SupervisorHello())
    assert isinstance(supervisor.receive(), GatewayReady)
    supervisor.send(Drain(timeout_s=10.0))
    assert supervisor.receive() == Drained()
    running.wait_end()


def test_a_worker_that_is_slow_to_listen_hears_that_it_may_stop(running: Running):
    worker = running.start_worker()
    assert running.gateway is not None
    running.gateway.request_drain()
    wait_until(lambda: worker.socket.poll(0), what="the message")
    # What has come and was not read must not be lost to the end of the connection.
    assert not running.has_ended(within_s=0.1)
    assert isinstance(worker.receive(), Stop)
    worker.socket.close()
    running.wait_end()


def test_a_drain_closes_sessions_and_accepts_nobody(running: Running):
    address = running.address()
    with socket.create_connection(address, timeout=10) as client:
        peer = running.peer()
        wait_until(lambda: peer.status().gateway.sessions == 1, what="the session")
        assert running.gateway is not None
        # Its `opened` is not committed, for there is no worker, so the drain takes all its time.
        running.gateway.request_drain(0.3)
        running.wait_end()
        with pytest.raises(ConnectionError):
            client.recv(1)
            client.sendall(b"x")
            client.recv(1)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=10)


def test_a_life_with_few_session_ids_left_drains_for_the_next_one_to_begin(running: Running):
    address = running.address()
    gateway = running.gateway
    assert gateway is not None
    gateway._drain_timeout_s = 0.3  # nobody commits what is opened here
    gateway._serving.table._ids._counter = 0xFFFF_FFFF - RESERVED - 2
    peer = running.peer()
    with socket.create_connection(address, timeout=10):
        wait_until(lambda: peer.status().gateway.sessions == 1, what="the session")
        assert not gateway.has_used_up_ids
        with socket.create_connection(address, timeout=10):
            running.wait_end()
    assert gateway.has_used_up_ids


def test_a_life_that_drains_for_its_ids_and_is_asked_to_end_is_followed_by_none(running: Running):
    address = running.address()
    gateway = running.gateway
    assert gateway is not None
    gateway._drain_timeout_s = 1.0  # nobody commits what is opened here
    gateway._serving.table._ids._counter = 0xFFFF_FFFF - RESERVED - 1
    with socket.create_connection(address, timeout=10):
        wait_until(lambda: gateway.has_used_up_ids, what="the drain")
        gateway.request_drain()
        running.wait_end()
    assert not gateway.has_used_up_ids


def test_lives_that_were_given_the_same_epoch_give_no_session_the_same_id(tmp_path: Path):
    ids = [_id_of_a_session(Running(tmp_path / f"run-{life}", CONFIG)) for life in range(2)]
    assert ids[0] != ids[1]
    assert ids[0] >> 32 == ids[1] >> 32, "of one node and one epoch"


def _id_of_a_session(running: Running) -> int:
    try:
        with socket.create_connection(running.address(), timeout=10):
            peer = running.peer()
            wait_until(lambda: peer.status().gateway.sessions == 1, what="the session")
            assert running.gateway is not None
            (number,) = running.gateway._serving.table.sessions
            return number
    finally:
        running.close()


def test_a_node_has_as_many_shards_as_configured(tmp_path: Path):
    config = msgspec.structs.replace(CONFIG, workers=WorkersConfig(count=5))
    running = Running(tmp_path / "run", config)
    try:
        assert [worker.shard for worker in running.peer().status().workers] == [0, 1, 2, 3, 4]
    finally:
        running.close()


@pytest.fixture
def living() -> Iterator[list[ProcessIdentity]]:
    """As many processes as there may be spares with one candidate, alive until the test ends."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with ExitStack() as stack:
        yield [
            process_identity(
                stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE)).pid
            )
            for _ in range(CONFIG.workers.spares + 1)
        ]


def test_a_supervisor_replaces_a_worker_by_a_candidate_and_counts_reloads(
    running: Running, living: list[ProcessIdentity]
):
    supervisor = running.peer()
    supervisor.send(SupervisorHello(candidates_max=1))
    assert isinstance(supervisor.receive(), GatewayReady)
    worker = running.peer(is_worker=True)
    worker.send(Hello(shard=0, pid=PID, create_time=SINCE))
    assert isinstance(worker.receive(), Grant)
    candidates = [running.peer(is_worker=True) for _ in living]
    for candidate, (pid, since) in zip(candidates, living, strict=True):
        candidate.send(SpareHello(pid=pid, create_time=since))
        assert supervisor.receive() == SpareReport(pid=pid, state="ready")
    supervisor.send(EndWorker(shard=0, pid=PID))
    assert isinstance(worker.receive(), Stop)
    supervisor.send(WorkerGone(shard=0, pid=PID, was_replaced=True))
    supervisor.send(Assign(shard=0, pid=living[0].pid))
    assert isinstance(candidates[0].receive(), Grant)
    asker = running.peer()
    asker.send(Reload())
    assert supervisor.receive() == Reload(number=1)
    for succeeded in (False, True, True):
        supervisor.send(Reloaded(succeeded=succeeded, number=int(succeeded)))
    assert asker.receive() == Reloaded(succeeded=True, number=1)
    counters = supervisor.status().counters
    assert (counters["reloads"], counters["reloads_failed"]) == (2, 1)
