"""How the processes of a node find each other, and who is kept out."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from cluster.shared.endpoints import (
    CurveClient,
    Endpoint,
    IpcEndpoints,
    LoopbackEndpoints,
    choose_endpoints,
)
from cluster.shared.run_directory import ENDPOINT_FILE, RunDirectory, RunDirectoryError
from cluster.shared.zmq_lane import ZmqLaneHub, ZmqWorkerLane
from cluster.shared.zmq_sockets import open_control_socket
from tests.support import wait_until

WAIT_MS = 10_000
SILENCE_MS = 300

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


KINDS = [
    LoopbackEndpoints,
    pytest.param(
        IpcEndpoints, marks=pytest.mark.skipif(not zmq.has("ipc"), reason="ZeroMQ without ipc")
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_who_reads_the_run_directory_reaches_control_plane_and_lanes(
    kind: Callable[[RunDirectory], IpcEndpoints | LoopbackEndpoints],
    context: Context,
    directory: RunDirectory,
) -> None:
    gateway = kind(directory)
    (control_address, curve), (lane_address, lane_curve) = gateway.open()
    router = open_control_socket(context, zmq.ROUTER, curve)
    router.bind(control_address)
    gateway.publish(router.getsockopt_string(zmq.LAST_ENDPOINT))
    hub = ZmqLaneHub(context, lane_address, lane_curve)

    found = kind(RunDirectory(directory.path)).find_control()
    assert found is not None
    dealer = open_control_socket(context, zmq.DEALER, found.curve)
    dealer.connect(found.address)
    dealer.send(b"hello")
    assert router.poll(WAIT_MS)
    identity, message = router.recv_multipart()
    assert message == b"hello"
    router.send_multipart([identity, b"welcome"])
    assert dealer.poll(WAIT_MS)
    assert dealer.recv() == b"welcome"

    lane = hub.open_lane(10_000, 1_000)
    commit = lane.grant(1, b"worker")
    worker = ZmqWorkerLane(context, hub.endpoint, b"worker", 1, 1, 10_000, found.curve)
    wait_until(lambda: worker.publish(commit, []), what="the first batch")
    wait_until(lambda: not hub.pump(8) and lane.has_received, what="its arrival")
    worker.close()
    hub.close()
    router.close(linger=0)
    dealer.close(linger=0)


@pytest.mark.parametrize("knows", ["nothing", "another key"])
def test_strangers_on_loopback_are_not_heard(
    context: Context, directory: RunDirectory, knows: str
) -> None:
    gateway = LoopbackEndpoints(directory)
    (address, curve), _ = gateway.open()
    router = open_control_socket(context, zmq.ROUTER, curve)
    router.bind(address)
    bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
    gateway.publish(bound)
    stranger = CurveClient(zmq.curve_keypair()[0]) if knows == "another key" else None
    dealer = open_control_socket(context, zmq.DEALER, stranger)
    dealer.connect(bound)
    dealer.send(b"let me in")
    assert not router.poll(SILENCE_MS)

    found = gateway.find_control()
    assert found is not None
    friend = open_control_socket(context, zmq.DEALER, found.curve)
    friend.connect(found.address)
    friend.send(b"hello")
    assert router.poll(WAIT_MS)
    assert router.recv_multipart()[1] == b"hello"
    for socket in (dealer, friend, router):
        socket.close(linger=0)


def test_each_life_of_a_gateway_has_its_own_key(directory: RunDirectory) -> None:
    keys = set()
    for _ in range(3):
        gateway = LoopbackEndpoints(directory)
        gateway.open()
        assert gateway.find_control() is None  # its predecessor is forgotten
        gateway.publish("tcp://127.0.0.1:7777")
        keys.add((directory.path / ENDPOINT_FILE).read_text())
    assert len(keys) == 3


def test_a_gateway_on_loopback_is_not_found_before_it_tells_nor_after(
    directory: RunDirectory,
) -> None:
    endpoints = LoopbackEndpoints(directory)
    assert endpoints.find_control() is None
    endpoints.forget()
    endpoints.open()
    endpoints.publish("tcp://127.0.0.1:7777")
    found = endpoints.find_control()
    assert found is not None
    assert found.address == "tcp://127.0.0.1:7777"
    endpoints.forget()
    assert endpoints.find_control() is None


def test_a_damaged_file_is_reported(directory: RunDirectory) -> None:
    (directory.path / ENDPOINT_FILE).write_text('{"control": 1}')
    with pytest.raises(RunDirectoryError, match=ENDPOINT_FILE):
        LoopbackEndpoints(directory).find_control()


def test_the_choice_is_what_zeromq_has(directory: RunDirectory) -> None:
    chosen = choose_endpoints(directory)
    if os.name == "posix":
        assert isinstance(chosen, IpcEndpoints)
        assert chosen.find_control() == Endpoint(directory.sockets.control_endpoint())
    assert isinstance(chosen, IpcEndpoints) == bool(zmq.has("ipc"))
