"""What a gateway keeps of its open files for its own is not for clients."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from cluster.gateway import descriptors
from cluster.gateway.descriptors import cap_sessions, descriptors_reserved
from cluster.gateway.process import run_gateway
from cluster.iocp import NetAddress
from cluster.shared.config import (
    Config,
    GatewayConfig,
    LaneConfig,
    LinksConfig,
    NodeConfig,
    RemoteConfig,
    WorkersConfig,
)
from cluster.shared.descriptor_limit import TooFewDescriptorsError
from cluster.shared.messages import (
    Drain,
    GatewayReady,
    Grant,
    Hello,
    StatusReply,
    StatusRequest,
    SupervisorHello,
    decode_message,
    encode_message,
)
from cluster.shared.process import process_identity
from cluster.shared.run_directory import RunDirectory
from tests.support import wait_until
from tests.system.cluster_node import cluster_command, cluster_environment


def reserved(**sections: object) -> int:
    return descriptors_reserved(Config(**sections))  # type: ignore[arg-type]


def test_each_process_and_each_node_has_its_own():
    few = reserved(workers=WorkersConfig(count=2, spares=0))
    assert reserved(workers=WorkersConfig(count=52, spares=0)) - few == 50 * descriptors.PER_WORKER
    assert reserved(workers=WorkersConfig(count=2, spares=9)) - few == 9 * descriptors.PER_SPARE
    links = LinksConfig(listen="127.0.0.1:1", nodes=["1@h:1", "2@h:1", "3@h:1"])
    with_links = reserved(workers=WorkersConfig(count=2, spares=0), links=links)
    assert with_links - few == descriptors.LINKS + 2 * descriptors.PER_NODE
    store = LinksConfig(listen="127.0.0.1:1", membership="etcd", etcd=["http://h:1"])
    with_store = reserved(workers=WorkersConfig(count=2, spares=0), links=store)
    assert with_store - with_links == (
        (descriptors.NODES_EXPECTED - 2) * descriptors.PER_NODE + descriptors.PER_STORE
    )
    remote = RemoteConfig(listen="127.0.0.1:1", keys_dir="keys", shards=[1])
    with_remote = reserved(workers=WorkersConfig(count=2, spares=0), remote=remote)
    assert with_remote - few == (
        descriptors.REMOTE + descriptors.PER_REMOTE_WORKER - descriptors.PER_WORKER
    )


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the system allow so many open files."""

    def allow(limit: int) -> None:
        monkeypatch.setattr(descriptors, "make_room_for_descriptors", lambda count: None)
        monkeypatch.setattr(descriptors, "raise_descriptor_limit", lambda wanted: limit)

    return allow


def test_as_many_sessions_as_the_limit_leaves_and_a_line_that_says_so(
    allow: Callable[[int], None],
):
    config = Config(gateway=GatewayConfig(max_sessions=100), workers=WorkersConfig(count=52))
    needed = descriptors_reserved(config)
    allow(needed + 100)
    assert cap_sessions(config) == (config, None)
    allow(needed + 99)
    capped, told = cap_sessions(config)
    assert capped.gateway.max_sessions == 99
    assert told is not None
    assert told.startswith(f"max_sessions = 100 is capped at 99: {needed} open files are needed ")
    assert f"workers.count = 52, workers.spares = 1), and {needed + 99} are allowed here" in told
    allow(needed)
    with pytest.raises(TooFewDescriptorsError, match=r"LimitNOFILE\), or lower workers.count"):
        cap_sessions(config)


def test_a_gateway_without_open_files_for_one_session_says_so_and_ends(
    allow: Callable[[int], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    allow(60)
    assert run_gateway(RunDirectory(tmp_path / "run"), Config()) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"cluster gateway: {descriptors_reserved(Config())} open files are ")
    assert "60 are allowed here: raise the limit (ulimit -Hn" in told


WORKERS = 60
CLIENTS = 100


@contextlib.contextmanager
def gateway_process(tmp_path: Path, config: Config) -> Iterator["subprocess.Popen[bytes]"]:
    """A gateway in a process of its own, whose soft limit of open files is 64 at first."""
    resource = pytest.importorskip("resource")
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.write_config(config)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = subprocess.Popen(
        [
            *cluster_command(module="cluster.gateway"),
            *("--run-dir", str(directory.path), "--parent-pid", str(os.getpid())),
        ],
        env=cluster_environment(),
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="what they cost is counted in /proc")
@pytest.mark.parametrize("lane", ["shm", "zmq"])
def test_many_workers_and_all_clients_that_may_come_have_descriptors(tmp_path: Path, lane: str):
    config = Config(
        node=NodeConfig(listen="127.0.0.1:0"),
        gateway=GatewayConfig(max_sessions=CLIENTS),
        workers=WorkersConfig(count=WORKERS, spares=0, worker_timeout_s=60.0),
        lane=LaneConfig(kind=lane, bytes=600_000),  # type: ignore[arg-type]
    )
    pid, created = process_identity(os.getpid())
    with contextlib.ExitStack() as stack, gateway_process(tmp_path, config) as process:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, 0)
        endpoint = RunDirectory(tmp_path / "run").sockets.control_endpoint()

        def connect() -> "zmq.Socket[bytes]":
            peer = context.socket(zmq.DEALER)
            peer.setsockopt(zmq.RECONNECT_IVL, 10)
            peer.connect(endpoint)
            return peer

        def receive(peer: "zmq.Socket[bytes]", kind: type) -> object:
            while peer.poll(20_000):
                message = decode_message(peer.recv())
                if isinstance(message, kind):
                    return message
            raise AssertionError(f"no {kind.__name__}, exit code {process.poll()}")

        def count() -> int:
            return sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())

        supervisor = connect()
        supervisor.send(encode_message(SupervisorHello()))
        ready = receive(supervisor, GatewayReady)
        assert isinstance(ready, GatewayReady)
        workers = [connect() for _ in range(WORKERS)]
        for shard, worker in enumerate(workers):
            hello = Hello(shard=shard, pid=pid, create_time=created)
            worker.send(encode_message(hello))
            receive(worker, Grant)
        assert count() <= descriptors_reserved(config) - 64, "no more than what was measured"
        before = count()
        address = NetAddress.parse(ready.listen)
        for _ in range(CLIENTS + 5):  # five of whom wait in the backlog
            stack.enter_context(socket.create_connection((address.host, address.port), 10))
        wait_until(lambda: count() >= before + CLIENTS, timeout_s=20.0, what="all clients")
        supervisor.send(encode_message(StatusRequest()))
        reply = receive(supervisor, StatusReply)
        assert isinstance(reply, StatusReply)
        assert reply.status.gateway.sessions == CLIENTS
        assert reply.status.counters["accept_errors"] == 0
        # Without a descriptor for it the process would end.
        late = connect()
        late.send(encode_message(StatusRequest()))
        receive(late, StatusReply)
        supervisor.send(encode_message(Drain(timeout_s=0.1)))
        assert process.wait(20) == 0
