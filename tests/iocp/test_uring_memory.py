"""What the kernel reads and writes belongs to it until its completion was reaped."""

import ctypes
import gc
import socket
from collections.abc import Iterator

import pytest

from cluster.iocp.iocp_event import ConnectEvent, RecvEvent, SendEvent
from cluster.iocp.net_address import NetAddress
from tests.contract.driver_harness import Owner, pattern
from tests.iocp.uring_port import (
    MakeUringPort,
    UringPort,
    make_uring_ports,
    uring_buffers,
    uring_memory,
    uring_ring,
)

PIECES = [3_000, 70_000, 1_000_000]
"""Sizes that the allocator takes from different places; the last goes back to the system."""


@pytest.fixture
def make_port() -> Iterator[MakeUringPort]:
    yield from make_uring_ports()


@pytest.fixture
def port(make_port: MakeUringPort) -> UringPort:
    return make_port()


def churn() -> list[bytearray]:
    """Use the memory that has become free for something else."""
    gc.collect()
    return [bytearray(b"\xee" * size) for size in PIECES for _ in range(20)]


def submit_pending(
    port: UringPort, source: Owner, kind: type[bytes | bytearray]
) -> tuple[int, int]:
    """Submit a send of which nothing but the driver holds the buffers, and which pends.

    Returns what was sent before it, and how much it is to send.
    """
    sent = port.cancel_a_pending_send(source)
    while True:
        event = SendEvent([kind(pattern(sent + PIECES[0] * n, PIECES[0])) for n in range(3)])
        event.send_buffers.append(kind(pattern(sent + 3 * PIECES[0], PIECES[2])))
        num_bytes = sum(map(len, event.send_buffers))
        port.submit(source, event)
        outcome = port._wait_briefly(event)
        if outcome is None:
            event.send_buffers.clear()
            return sent, num_bytes
        sent += outcome.num_bytes


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_pending_send_keeps_what_nobody_else_refers_to(
    port: UringPort, kind: type[bytes | bytearray]
) -> None:
    client, server = port.pair()
    sent, num_bytes = submit_pending(port, server, kind)
    (send,) = port.expected
    rubbish = churn()
    received = bytearray()
    goal = sent + 1
    while len(received) < goal:
        outcome = port.do(client, RecvEvent())
        assert outcome.data
        received += outcome.data
        if send not in port.expected:
            assert 0 < port.wait(send).num_bytes <= num_bytes
            goal = sent + port.wait(send).num_bytes
        else:
            goal = len(received) + 1
    assert received == pattern(0, goal)
    assert rubbish


def test_the_caller_cannot_resize_what_is_being_sent_before_it_is_done(port: UringPort) -> None:
    client, server = port.pair()
    sent = port.cancel_a_pending_send(server)
    while True:
        data = bytearray(pattern(sent, PIECES[2]))
        send = port.submit(server, SendEvent([data]))
        outcome = port._wait_briefly(send)
        if outcome is None:
            break
        sent += outcome.num_bytes
    with pytest.raises(BufferError):
        data.clear()
    port.driver.cancel(send)
    with pytest.raises(BufferError):
        data.clear()
    port.wait(send)
    data.clear()


def test_buffers_are_let_go_after_the_ring_was_closed(
    make_port: MakeUringPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(cls: type, name: str) -> None:
        method = getattr(cls, name)

        def note(self: object) -> None:
            order.append(f"{cls.__name__}.{name}")
            method(self)

        monkeypatch.setattr(cls, name, note)

    port = make_port()
    _, server = port.pair()
    submit_pending(port, server, bytes)
    noting(uring_ring.Ring, "close")
    noting(uring_memory.Gather, "release")
    noting(uring_buffers.ProvidedBuffers, "close")
    port.driver.close()
    assert order == ["Ring.close", "Gather.release", "ProvidedBuffers.close"]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_has_let_go_when_close_returns(make_port: MakeUringPort, threads: int) -> None:
    """Closing a ring only starts that, and another thread's work may then still be carried out."""
    port = make_port(threads=threads)
    _, server = port.pair()
    submit_pending(port, server, bytes)
    reading, _ = port.pair()
    port.submit(reading, RecvEvent())
    port.turn(0)
    ring = port.uring._ring
    ended: set[int] = set()
    reap = type(ring).reap

    def reaping(self: uring_ring.Ring, limit: int) -> list[uring_ring.Cqe]:
        cqes = reap(self, limit)
        ended.update(number for number, _, flags, _ in cqes if not flags & uring_ring.CQE_MORE)
        return cqes

    numbers = {server.socket.send_id, reading.socket.armed}  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ring), "reap", reaping)
        port.driver.close()
    assert numbers <= ended


@pytest.mark.parametrize("threads", [1, 2])
def test_a_peer_gets_nothing_but_what_was_sent_when_a_driver_closes(
    make_port: MakeUringPort, threads: int
) -> None:
    port = make_port(threads=threads)
    listener = port.listen()
    address = listener.socket.local_address
    with socket.create_connection((address.host, address.port)) as peer:
        server = port.accept(listener)
        submit_pending(port, server, bytes)
        port.driver.close()
        rubbish = churn()
        received = bytearray()
        peer.settimeout(10)
        try:
            while data := peer.recv(1 << 20):
                received += data
        except ConnectionResetError:
            pass
        assert received
        assert received == pattern(0, len(received))
        assert rubbish


def test_an_operation_that_is_done_keeps_no_memory(port: UringPort) -> None:
    client, server = port.pair()
    port.cancel_a_pending_send(server)
    port.cancel(port.submit(client, RecvEvent()))
    listener = port.listen()
    other = port.open_client(listener)
    port.do(other, ConnectEvent(listener.socket.local_address))
    assert not port.uring._operations.in_flight
    assert not port.uring._recvs.by_number


def test_a_gather_can_be_released_twice() -> None:
    data = bytearray(b"data")
    gather = uring_memory.Gather([data])
    gather.release()
    gather.release()
    data.clear()


def test_a_host_that_is_a_name_is_no_socket_address() -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        uring_memory.SocketAddress(NetAddress("localhost", 80))


@pytest.mark.parametrize("scope", ["1", socket.if_indextoname(1)])
def test_an_address_of_the_link_holds_its_interface(scope: str):
    address = uring_memory.SocketAddress(NetAddress(f"fe80::1%{scope}", 80))
    data = ctypes.string_at(address.address, address.size)
    assert data[8:24] == socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert int.from_bytes(data[24:28], "little") == 1
    address.release()
