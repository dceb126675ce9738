"""Who comes in from other machines, over real sockets, and what becomes of everybody else."""

import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from cluster.gateway.counters import Counters
from cluster.gateway.remote import listener_gate
from cluster.gateway.remote.connection_counts import UNPROVED_MAX
from cluster.gateway.remote.door import CONTROL_BYTES_MAX, PER_SHARD, RemoteDoor, RemoteKeys
from cluster.gateway.remote.remote_control import RemoteControl, RemotePeer
from cluster.iocp import IocpCore, NetAddress, choose_driver
from cluster.shared import remote_endpoints
from cluster.shared.config import Config, LaneConfig, RemoteConfig, WorkersConfig
from cluster.shared.endpoints import Curve, CurveClient
from cluster.shared.key_files import (
    KeyPair,
    KnownWorkers,
    make_key_files,
    read_gateway_keys,
    read_worker_keys,
)
from cluster.shared.lane import START, Commit
from cluster.shared.messages import (
    ControlMessage,
    Drain,
    GatewayAlive,
    Hello,
    StatusRequest,
    WorkerHeartbeat,
    decode_message,
    encode_message,
)
from cluster.shared.records import OPENED
from cluster.shared.remote_endpoints import RemoteClient, lane_address
from cluster.shared.zmq_lane import ZmqWorkerLane
from cluster.shared.zmq_sockets import open_control_socket

HELLO = Hello(shard=1, pid=7, create_time=1.0)
BEAT = WorkerHeartbeat(position_received=0, serial_sent=0)


class Doorway:
    """A door with everything that comes through it noted, and what knocks at it."""

    def __init__(self, path: Path, host: str = "127.0.0.1") -> None:
        self.keys_dir = path
        make_key_files(path)
        self.gateway_key, self.keys = read_worker_keys(path)
        self.core = IocpCore(driver=choose_driver("readiness"))
        self.counters = Counters()
        self.came: list[tuple[bytes, ControlMessage, RemotePeer | None]] = []
        listen = f"[{host}]:0" if ":" in host else f"{host}:0"
        self.door = RemoteDoor(
            Config(
                remote=RemoteConfig(listen=listen, keys_dir=str(path), shards=[1]),
                workers=WorkersConfig(worker_timeout_s=1.0),
                lane=LaneConfig(max_batch_bytes=128 * 1024),
            ),
            RemoteKeys(read_gateway_keys(path), KnownWorkers(path)),
            self.core,
            self.counters,
            lambda identity, hello, peer: self.came.append((identity, hello, peer)),
            lambda identity, beat: self.came.append((identity, beat, None)),
        )
        self.address = NetAddress.parse(self.door.listen)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []

    def curve(self, keys: KeyPair | None = None, gateway_key: bytes | None = None) -> RemoteClient:
        is_ipv6 = ":" in self.address.host
        return RemoteClient(
            gateway_key or self.gateway_key, keys or self.keys, 1.0, is_ipv6=is_ipv6
        )

    def knock(self, curve: Curve | None) -> "zmq.Socket[bytes]":
        made = open_control_socket(self.context, zmq.DEALER, curve)
        made.connect(f"tcp://{self.address}")
        self.sockets.append(made)
        return made

    def run_until(self, predicate: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 10
        while not predicate():
            assert time.monotonic() < deadline, f"{what}: {self.counters.snapshot()}"
            self.core.dispatch(0.01)
            self.door.control.check()

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def wait_counted(self, name: str, count: int = 1) -> None:
        self.run_until(lambda: self.count(name) >= count, name)

    def close(self) -> None:
        for made in self.sockets:
            made.close(linger=0)
        self.context.term()
        self.door.close(0)
        self.core.close()


@pytest.fixture
def doorway(tmp_path: Path) -> Iterator[Doorway]:
    made = Doorway(tmp_path / "keys")
    yield made
    made.close()


def test_who_has_a_known_key_is_heard_by_its_name_and_answered(doorway: Doorway) -> None:
    worker = doorway.knock(doorway.curve())
    worker.send(encode_message(HELLO))
    worker.send(encode_message(BEAT))
    doorway.run_until(lambda: len(doorway.came) == 2, "hello and heartbeat")
    (identity, hello, peer), (again, beat, _) = doorway.came
    assert (hello, beat, again) == (HELLO, BEAT, identity)
    assert peer == RemotePeer("worker", "127.0.0.1")
    assert str(peer) == "worker at 127.0.0.1"
    assert RemoteControl.has(identity)
    assert doorway.door.control.send(identity, GatewayAlive())
    assert worker.poll(5_000)
    assert decode_message(worker.recv()) == GatewayAlive()
    assert doorway.count("remote_let_in") == 1


def test_over_ipv6_as_well(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    doorway = Doorway(tmp_path / "keys", "::1")
    doorway.knock(doorway.curve()).send(encode_message(HELLO))
    doorway.run_until(lambda: doorway.came, "the hello")
    assert doorway.came[0][2] == RemotePeer("worker", "::1")
    doorway.close()


def test_a_peer_that_has_left_is_known_to_have(doorway: Doorway) -> None:
    worker = doorway.knock(doorway.curve())
    worker.send(encode_message(HELLO))
    doorway.run_until(lambda: doorway.came, "the hello")
    identity = doorway.came[0][0]
    worker.close(linger=0)
    doorway.run_until(lambda: not doorway.door.control.send(identity, GatewayAlive()), "its end")


def test_a_key_that_is_not_known_gets_nothing_until_it_is_put_there(
    doorway: Doorway, tmp_path: Path
) -> None:
    make_key_files(tmp_path / "others", ["oslo"])
    stranger = read_worker_keys(tmp_path / "others")[1]
    doorway.knock(doorway.curve(keys=stranger)).send(encode_message(HELLO))
    doorway.wait_counted("remote_refused_key")
    assert doorway.came == []
    (doorway.keys_dir / "oslo.key").write_bytes((tmp_path / "others" / "oslo.key").read_bytes())
    doorway.knock(doorway.curve(keys=stranger)).send(encode_message(HELLO))
    doorway.run_until(lambda: doorway.came, "the hello")
    assert doorway.came[0][2] == RemotePeer("oslo", "127.0.0.1")


def test_who_speaks_without_curve_or_for_another_gateway_gets_nothing(
    doorway: Doorway, tmp_path: Path
) -> None:
    plain = doorway.knock(None)
    plain.send(encode_message(HELLO))
    # Both sides see that they do not fit; whoever sees it first hangs up.
    names = ("remote_refused_protocol", "remote_refused_gone")
    doorway.run_until(lambda: any(map(doorway.count, names)), "a refusal")
    plain.close(linger=0)
    before = doorway.count("remote_refused_protocol")
    make_key_files(tmp_path / "others")
    other_gateway = read_gateway_keys(tmp_path / "others").public
    doorway.knock(doorway.curve(gateway_key=other_gateway)).send(encode_message(HELLO))
    doorway.wait_counted("remote_refused_protocol", before + 1)
    # The gateway's key alone, which lets in on loopback TCP, is not enough here.
    doorway.knock(CurveClient(doorway.gateway_key)).send(encode_message(HELLO))
    doorway.wait_counted("remote_refused_key")
    assert doorway.came == []
    assert doorway.count("remote_let_in") == 0


def test_who_sends_anything_else_or_nothing_is_closed_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_endpoints, "HANDSHAKE_MS", 200)
    doorway = Doorway(tmp_path / "keys")
    address = (doorway.address.host, doorway.address.port)
    with socket.create_connection(address) as silent, socket.create_connection(address) as noisy:
        noisy.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        for client in (silent, noisy):
            client.settimeout(5)
            with pytest.raises((ConnectionError, StopIteration)):
                while client.recv(4_096):
                    pass
                raise StopIteration
        doorway.wait_counted("remote_refused_gone")
        doorway.wait_counted("remote_connections", 2)
    assert doorway.count("remote_let_in") == 0
    doorway.close()


def test_a_machine_with_a_key_may_ask_for_shards_and_for_nothing_else(doorway: Doorway) -> None:
    worker = doorway.knock(doorway.curve())
    for message in (Drain(timeout_s=1.0), StatusRequest()):
        worker.send(encode_message(message))
    worker.send(b"nonsense")
    worker.send(encode_message(HELLO))
    doorway.run_until(lambda: doorway.came, "the hello")
    assert [message for _, message, _ in doorway.came] == [HELLO]
    assert doorway.door.control.refused == 3


def test_a_message_that_is_too_long_ends_its_connection_alone(doorway: Doorway) -> None:
    flooder, worker = doorway.knock(doorway.curve()), doorway.knock(doorway.curve())
    doorway.wait_counted("remote_let_in", 2)
    flooder.send(bytes(CONTROL_BYTES_MAX + 1))
    doorway.wait_counted("remote_let_in", 3)  # it has lost its connection, and made another
    worker.send(encode_message(HELLO))
    doorway.run_until(lambda: doorway.came, "the hello")
    assert doorway.count("remote_let_in") == 3


def test_a_lane_goes_both_ways_and_takes_what_a_batch_may_hold(doorway: Doorway) -> None:
    lane = doorway.door.hub.open_lane(1 << 20, 128 * 1024)
    lane.grant(1, b"a name")
    lane.append(OPENED, 5, b"10.0.0.1:5")
    endpoint = lane_address(doorway.address, doorway.door.hub.endpoint)
    worker = ZmqWorkerLane(doorway.context, endpoint, b"a name", 1, 1, 1 << 20, doorway.curve())
    refused = ZmqWorkerLane(
        doorway.context, endpoint, b"another", 1, 1, 1 << 20, CurveClient(doorway.gateway_key)
    )
    records = [bytes(128 * 1024)]
    doorway.run_until(lambda: worker.publish(START, records), "the connection")
    doorway.run_until(lambda: not doorway.door.hub.pump(64) and lane.has_received, "the batch")
    batch = lane.receive()
    assert batch is not None
    assert bytes(batch.records) == records[0]
    lane.apply(batch)
    assert lane.flush()
    deadline = time.monotonic() + 5
    while (chunk := worker.receive()) is None:
        assert time.monotonic() < deadline
    assert chunk.first_position == 1
    doorway.wait_counted("remote_refused_key")
    assert not refused.publish(Commit(1, 0), [])
    for end in (worker, refused):
        end.close()


def test_an_address_that_cannot_be_had_is_an_error_of_the_system(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make_key_files(tmp_path)
        core = IocpCore(driver=choose_driver("readiness"))
        with pytest.raises(OSError, match="Address already in use"):
            RemoteDoor(
                Config(remote=RemoteConfig(listen=f"127.0.0.1:{port}", shards=[1])),
                RemoteKeys(read_gateway_keys(tmp_path), KnownWorkers(tmp_path)),
                core,
                Counters(),
                lambda identity, hello, peer: None,
                lambda identity, beat: None,
            )
        core.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut the port")
def test_connections_that_prove_nothing_are_bounded_and_disturb_no_worker(
    doorway: Doorway,
) -> None:
    worker = doorway.knock(doorway.curve())
    worker.send(encode_message(HELLO))
    doorway.run_until(lambda: len(doorway.came) == 1, "hello")
    address = doorway.address.sockaddr
    with ExitStack() as silent:
        for count in range(2, UNPROVED_MAX + PER_SHARD + 1):
            silent.enter_context(socket.create_connection(address[:2]))
            doorway.wait_counted("remote_connections", count)
        doorway.wait_counted("remote_crowded")
        one_more = silent.enter_context(socket.socket())
        one_more.setblocking(False)
        one_more.connect_ex(address)
        worker.send(encode_message(BEAT))
        doorway.run_until(lambda: len(doorway.came) == 2, "the heartbeat")
        assert not select.select([], [one_more], [], 0)[1]
        assert doorway.count("remote_connections") == UNPROVED_MAX + PER_SHARD
    another = doorway.knock(doorway.curve())
    another.send(encode_message(HELLO))
    doorway.run_until(lambda: len(doorway.came) == 3, "the hello of another one")
    assert doorway.count("remote_crowded") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut the port")
def test_a_kernel_that_cannot_shut_the_port_is_told_of_once(
    doorway: Doorway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_gate, "_SO_ATTACH_FILTER", 9_999)
    address = doorway.address.sockaddr
    with ExitStack() as silent:
        for count in range(1, UNPROVED_MAX + PER_SHARD + 10):
            silent.enter_context(socket.create_connection(address[:2]))
            doorway.wait_counted("remote_connections", count)
    assert doorway.count("remote_crowded") == 0
    assert [text for text in caplog.messages if "have no bound here" in text] == caplog.messages
    assert len(caplog.messages) == 1
