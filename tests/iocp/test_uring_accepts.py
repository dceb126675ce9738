"""Accepts that fail: one of them each time, and the pool is filled again. And crowds."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp import IocpCore
from cluster.iocp.driver.queued import ACCEPTS_PER_POLL
from cluster.iocp.iocp_event import AcceptEvent
from cluster.iocp.socket_utils import accept_stream
from tests.contract.driver_harness import WAIT_S, Owner, recv_a_reset
from tests.iocp.uring_port import (
    MakeUringPort,
    UringPort,
    make_uring_ports,
    uring_accepts,
    uring_or_skip,
    uring_ring,
)
from tests.iocp.world import EchoSession, World

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_port() -> Iterator[MakeUringPort]:
    yield from make_uring_ports()


@pytest.fixture
def port(make_port: MakeUringPort) -> UringPort:
    return make_port()


class RefusingAccepts:
    """Lets the next accepts of the driver fail at the system call with these codes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: list[int] = []
        self._accept = accept_stream
        monkeypatch.setattr(uring_accepts, "accept_stream", self)

    def __call__(self, listener: Any) -> Any:
        if self.codes:
            code = self.codes.pop(0)
            raise OSError(code, os.strerror(code))
        return self._accept(listener)


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_a_failed_accept_ends_one_and_the_others_are_served(
    port: UringPort, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    RefusingAccepts(monkeypatch).codes += [code]
    listener = port.listen()
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(3)]
    clients = [port.start_connect(listener)[0] for _ in range(2)]
    port.wait_all()
    assert [accept.raw_error for accept in accepts] == [code, 0, 0]
    served = {accept.address for accept in accepts[1:]}
    assert served == {client.socket.local_address for client in clients}


def test_an_accept_that_finds_nobody_after_all_goes_on_waiting(
    port: UringPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client that woke it is gone."""
    refusing = RefusingAccepts(monkeypatch)
    refusing.codes += [errno.EAGAIN, errno.EINTR]
    listener = port.listen()
    accept = port.submit(listener, AcceptEvent())
    port.start_connect(listener)
    port.wait_all()
    assert refusing.codes == []
    assert accept.error is None


@pytest.fixture
def crowd() -> Iterator[Callable[[Owner, int], list[socket.socket]]]:
    """Connect so many clients to a listener; they wait in its backlog."""
    with ExitStack() as stack:

        def come(listener: Owner, count: int) -> list[socket.socket]:
            address = listener.socket.local_address
            return [
                stack.enter_context(socket.create_connection((address.host, address.port)))
                for _ in range(count)
            ]

        yield come


def test_a_crowd_is_let_in_by_shares_and_others_have_their_turn_in_between(
    port: UringPort, crowd: Callable[[Owner, int], list[socket.socket]]
) -> None:
    _, server = port.pair()
    share = ACCEPTS_PER_POLL
    listener = port.listen(backlog=3 * share)
    for _ in range(3 * share):
        port.submit(listener, AcceptEvent())
    clients = crowd(listener, 3 * share)
    turns: list[int] = []
    while sum(turns) < len(clients):
        event = port.post(server)
        outcomes = port.turn(WAIT_S, 2 * share)
        assert event in [outcome.event for outcome in outcomes]
        turns.append(sum(isinstance(outcome.event, AcceptEvent) for outcome in outcomes))
    assert max(turns) == share
    assert all(outcome.error is None for outcome in listener.outcomes)


def test_clients_that_found_no_accept_are_taken_by_the_next_one(
    port: UringPort, crowd: Callable[[Owner, int], list[socket.socket]]
) -> None:
    listener = port.listen()
    clients = crowd(listener, 6)
    accepts = [AcceptEvent() for _ in range(2)]
    for pause in (0, 1, 3):  # whether it is submitted before or after the driver has looked again
        for accept in accepts:
            port.submit(listener, accept)
        port.wait_all()
        for _ in range(pause):
            assert port.turn(0.01) == []
    assert len(listener.outcomes) == len(clients)
    late = port.submit(listener, AcceptEvent())
    assert port.turn(0.05) == []
    crowd(listener, 1)
    assert port.wait(late).error is None


def test_a_listener_closes_while_more_clients_wait_than_it_takes(
    port: UringPort, crowd: Callable[[Owner, int], list[socket.socket]]
) -> None:
    listener = port.listen()
    accept = port.submit(listener, AcceptEvent())
    clients = crowd(listener, 3)
    port.wait(accept)
    listener.close()
    assert port.turn(0.05) == []
    for client in clients[1:]:
        recv_a_reset(client)


def test_a_poll_that_fails_forgets_no_listener(
    port: UringPort,
    monkeypatch: pytest.MonkeyPatch,
    crowd: Callable[[Owner, int], list[socket.socket]],
) -> None:
    def fail(wait_s: float) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    listener = port.listen()
    count = ACCEPTS_PER_POLL + 1
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(count)]
    crowd(listener, count)
    port.run_until(lambda: len(port.expected) == 1, "the first share")
    with monkeypatch.context() as patch:
        patch.setattr(uring_ring.Ring, "enter", lambda ring, wait_s: fail(wait_s))
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            port.turn(0)
    port.wait_all()
    assert all(accept.error is None for accept in accepts)


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE])
def test_the_pool_of_a_service_never_drains(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    core = IocpCore(driver=uring_or_skip())
    refusing = RefusingAccepts(monkeypatch)
    world = World(core)
    service = world.server(EchoSession, max_session_count=4)
    for number in range(1, 4):
        refusing.codes += [code] * 6
        peer = world.peer(service)
        peer.send(b"hello")
        world.run_until(lambda: peer.received == b"hello")  # noqa: B023
        assert service.listener.accept_errors == 6 * number
        world.run_until(lambda: service.listener.outstanding_accepts == 4 - number)  # noqa: B023
    core.close()


SERVER = """
import os, resource, sys, threading
from cluster.iocp import IocpCore, NetAddress, ServerService, Session
from cluster.iocp.driver import choose_driver

class Echo(Session):
    def on_recv(self, data):
        self.send(data)
        return len(data)

core = IocpCore(driver=choose_driver(sys.argv[1]))
service = ServerService(NetAddress("127.0.0.1", 0), core, Echo, 64)
assert service.start()
core.dispatch(0)
lowest_free = os.dup(0)
os.close(lowest_free)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 5, hard))
print(service.listener.local_address.port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), ended.append(1)), daemon=True).start()
ended = []
while not ended:
    core.dispatch(0.05)
print(service.listener.accept_errors, flush=True)
"""


@pytest.mark.parametrize("driver", ["io_uring", "readiness"])
def test_a_server_with_few_descriptors_serves_all_one_after_another(driver: str) -> None:
    if driver == "io_uring":
        uring_or_skip().close()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, driver],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            port = int(server.stdout.readline())
            clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(20)]
            for number, client in enumerate(clients):
                client.sendall(b"%02d" % number)
            # Five fit at a time; each that goes makes room for one that waits.
            for number, client in enumerate(clients):
                assert client.recv(2) == b"%02d" % number
                client.close()
            server.stdin.close()
            assert int(server.stdout.readline()) > 0
            assert server.wait(10) == 0
        finally:
            server.kill()
