"""Shared buffers and recvs that complete again and again: scarce, paused, cancelled, closed."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import RECV_BYTES_MAX
from cluster.iocp.iocp_event import RecvEvent
from cluster.shared.shm_doorbell import Doorbell
from tests.contract.driver_harness import FILL_BYTES_MAX, WAIT_S, Owner, pattern
from tests.iocp.uring_port import (
    MakeUringPort,
    UringPort,
    make_uring_ports,
    uring_buffers,
    uring_ring,
)

KEPT_MAX = 2 * 64 * uring_buffers.BUFFER_BYTES
"""What one turn brings at most, twice: the cancel may come behind another one."""


@pytest.fixture
def make_port() -> Iterator[MakeUringPort]:
    yield from make_uring_ports()


@pytest.fixture
def port(make_port: MakeUringPort) -> UringPort:
    return make_port()


def plain_pair(port: UringPort, listener: Owner) -> tuple[socket.socket, Owner]:
    """Return a client outside of the driver, and the server's end."""
    address = listener.socket.local_address
    peer = socket.create_connection((address.host, address.port), timeout=10)
    return peer, port.accept(listener)


def receive_all(port: UringPort, owners: list[Owner], num_bytes: int) -> dict[Owner, bytes]:
    """Receive so many bytes at each of `owners`, all at the same time."""
    received = {owner: bytearray() for owner in owners}
    recvs = {owner: port.submit(owner, RecvEvent()) for owner in owners}

    def all_have_come() -> bool:
        for owner, recv in recvs.items():
            if recv not in port.expected and len(received[owner]) < num_bytes:
                assert port._last[recv].data
                received[owner] += port._last[recv].data or b""
                if len(received[owner]) < num_bytes:
                    port.submit(owner, recv)
        return all(len(data) >= num_bytes for data in received.values())

    port.run_until(all_have_come, "everything that was sent")
    return {owner: bytes(data) for owner, data in received.items()}


# -- too few buffers -------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_count", [1, 4])
def test_more_waiting_data_than_buffers_arrives_in_order(
    make_port: MakeUringPort, buffer_count: int
) -> None:
    port = make_port(buffer_count=buffer_count)
    listener = port.listen()
    pairs = [plain_pair(port, listener) for _ in range(40)]
    for number, (peer, _) in enumerate(pairs):
        peer.sendall(pattern(number, 30_000))
    received = receive_all(port, [server for _, server in pairs], 30_000)
    for number, (peer, server) in enumerate(pairs):
        assert received[server] == pattern(number, 30_000)
        peer.close()


def test_more_completions_than_the_queue_holds_arrive_in_order(make_port: MakeUringPort) -> None:
    port = make_port(entries=4, cq_entries=8)
    listener = port.listen()
    pairs = [plain_pair(port, listener) for _ in range(40)]
    servers = [server for _, server in pairs]
    for number, (peer, _) in enumerate(pairs):
        peer.sendall(pattern(number, 50_000))
    received = receive_all(port, servers, 50_000)
    for number, (peer, server) in enumerate(pairs):
        assert received[server] == pattern(number, 50_000)
        peer.close()


def test_more_watches_than_the_queue_holds_complete_without_a_wait(
    make_port: MakeUringPort,
) -> None:
    """In a poll that neither waits nor has anything to submit."""
    port = make_port(entries=4, cq_entries=8)
    readable = [os.eventfd(1) for _ in range(60)]
    try:
        for fd in readable:
            port.watch(Owner(), fd)
        for _ in range(200):
            port.turn(0)
        assert not port.expected
    finally:
        for fd in readable:
            os.close(fd)


@pytest.mark.parametrize("end", ["eof", "reset"])
def test_ends_cost_no_buffer(make_port: MakeUringPort, end: str) -> None:
    port = make_port(buffer_count=4)
    listener = port.listen()
    for _ in range(20):
        peer, server = plain_pair(port, listener)
        recv = port.submit(server, RecvEvent())
        port.turn(0)
        if end == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        assert port.wait(recv).error in (Cause.EOF, Cause.RESET)
        server.close()
    peer, server = plain_pair(port, listener)
    peer.sendall(b"still")
    assert port.recv(server, 5) == b"still"
    peer.close()


def test_a_cancel_that_meets_a_recv_without_a_buffer_ends_it(make_port: MakeUringPort) -> None:
    port = make_port(buffer_count=1)
    listener = port.listen()
    busy, busy_server = plain_pair(port, listener)
    quiet, quiet_server = plain_pair(port, listener)
    taking = port.submit(busy_server, RecvEvent())
    port.turn(0)
    busy.sendall(bytes(3 * uring_buffers.BUFFER_BYTES))
    port.let_kernel_work()  # which takes the one buffer
    recv = port.submit(quiet_server, RecvEvent())
    port.let_kernel_work()  # which finds none
    assert recv in port.expected
    port.driver.cancel(recv)
    assert port.wait(recv).error is Cause.CANCELLED
    assert port.wait(taking).data
    quiet.sendall(b"for the next recv")
    assert port.recv(quiet_server, 17) == b"for the next recv"
    busy.close()
    quiet.close()


# -- sessions that do not read ---------------------------------------------------------------------


def send_until_refused(port: UringPort, peer: socket.socket) -> int:
    """Send until nothing has been taken for some turns; return how much was."""
    peer.settimeout(0)
    sent = refused = 0
    while refused < 30:
        assert sent < FILL_BYTES_MAX, "the peer is never held back"
        try:
            sent += peer.send(pattern(sent, 1 << 18))
            refused = 0
        except BlockingIOError:
            refused += 1
        port.turn(0.002)
    return sent


def kept_bytes(owner: Owner) -> int:
    handle: Any = owner.socket
    return sum(len(data) for data in handle.kept or ())


def test_a_session_that_does_not_read_holds_its_peer_back_and_loses_nothing(
    port: UringPort,
) -> None:
    listener = port.listen()
    peer, server = plain_pair(port, listener)
    peer.sendall(b"x")
    assert port.recv(server, 1) == b"x"  # and the kernel goes on to receive
    sent = send_until_refused(port, peer)
    assert 0 < kept_bytes(server) <= KEPT_MAX
    received = bytearray()
    for goal in (sent // 3, sent // 2, sent):  # it goes on, and pauses again
        while len(received) < goal:
            outcome = port.do(server, RecvEvent())
            assert outcome.data
            assert outcome.num_bytes <= RECV_BYTES_MAX
            received += outcome.data
        for _ in range(5):
            port.turn(0)
        assert kept_bytes(server) <= KEPT_MAX
    assert received == pattern(0, sent)
    peer.close()


def test_a_session_that_does_not_read_costs_later_polls_nothing(port: UringPort) -> None:
    listener = port.listen()
    peer, server = plain_pair(port, listener)
    peer.sendall(b"x")
    assert port.recv(server, 1) == b"x"
    peer.sendall(b"kept")
    port.run_until(lambda: kept_bytes(server) == 4, "what nobody reads")
    port.run_until(lambda: not server.socket.armed, "the end of the recv")  # type: ignore[attr-defined]
    assert port.uring._recvs.unclaimed == []
    port.turn(0)
    assert port.uring._recvs.unclaimed == []
    assert port.recv(server, 4) == b"kept"
    peer.sendall(b"more")
    assert port.recv(server, 4) == b"more"
    peer.close()


def test_sessions_that_do_not_read_hold_no_shared_buffer(make_port: MakeUringPort) -> None:
    port = make_port(buffer_count=4)
    listener = port.listen()
    paused = [plain_pair(port, listener) for _ in range(8)]
    for peer, server in paused:
        peer.sendall(b"x")
        assert port.recv(server, 1) == b"x"
        send_until_refused(port, peer)
    client, server = plain_pair(port, listener)
    for number in range(20):
        client.sendall(pattern(number, 20_000))
        assert port.recv(server, 20_000) == pattern(number, 20_000)
    for peer, _ in paused:
        peer.close()
    client.close()


# -- handles that were closed ----------------------------------------------------------------------


def test_a_closed_handle_is_forgotten_though_its_data_comes_later(
    make_port: MakeUringPort,
) -> None:
    """Its buffer comes back, and whoever has its descriptor now gets nothing of it."""
    port = make_port(buffer_count=4)
    listener = port.listen()
    for _ in range(20):
        peer, server = plain_pair(port, listener)
        peer.sendall(b"x")
        assert port.recv(server, 1) == b"x"
        peer.sendall(b"for nobody")
        port.let_kernel_work()
        server.close()
        peer.close()
        other, other_server = plain_pair(port, listener)
        other.sendall(b"mine")
        assert port.recv(other_server, 4) == b"mine"
        other_server.close()
        other.close()
    port.turn(0)
    assert not port.uring._recvs.by_number
    assert not port.uring._recvs.unclaimed


def test_a_handle_that_another_thread_closes_while_its_data_comes_is_forgotten(
    port: UringPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = port.listen()
    peer, server = plain_pair(port, listener)
    peer.sendall(b"x")
    assert port.recv(server, 1) == b"x"
    peer.sendall(b"for nobody")
    enter = uring_ring.Ring.enter

    def enter_and_close(ring: uring_ring.Ring, wait_s: float) -> None:
        enter(ring, wait_s)
        if not server.socket.is_closed:
            thread = threading.Thread(target=server.close)
            thread.start()
            thread.join()

    with monkeypatch.context() as patch:
        patch.setattr(uring_ring.Ring, "enter", enter_and_close)
        port.turn()
    port.turn(0)
    assert not port.uring._recvs.by_number
    assert not port.uring._recvs.unclaimed
    assert not port.uring._closing
    assert peer.recv(1) == b""
    peer.close()


# -- waking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["another process", "a thread"])
def test_whoever_fills_the_wake_up_descriptor_stops_nobody_else(port: UringPort, by: str) -> None:
    """Other processes have it; what they write must not be what keeps the next one from waking."""
    descriptor = port.driver.wake_descriptor
    assert descriptor is not None
    os.eventfd_write(descriptor, 1)
    owner = Owner()
    for _ in range(3):
        os.eventfd_read(descriptor)
        os.eventfd_write(descriptor, 2**64 - 2)
        with pytest.raises(BlockingIOError):
            os.eventfd_write(descriptor, 1)
        port.turn(0)
        wake = partial(port.post, owner) if by == "a thread" else Doorbell(descriptor).ring
        waker = threading.Timer(0.02, wake)
        began = time.monotonic()
        waker.start()
        delivered = port.turn(WAIT_S)
        assert time.monotonic() - began < WAIT_S
        waker.join()
        assert len(delivered or port.turn(0)) == (by == "a thread")
