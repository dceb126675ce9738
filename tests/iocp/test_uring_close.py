"""Closing what the kernel still refers to: nothing goes on behind a handle that was closed."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from cluster.iocp import IocpCore, MisuseError
from cluster.iocp.iocp_event import AcceptEvent, EventType, IocpEvent, RecvEvent, SendEvent
from cluster.iocp.net_address import NetAddress
from tests.contract.driver_harness import Owner, resource_count
from tests.iocp.uring_port import MakeUringPort, UringPort, make_uring_ports, small, uring_or_skip

PROMPTLY_S = 2.0


@pytest.fixture
def make_port() -> Iterator[MakeUringPort]:
    yield from make_uring_ports()


@pytest.fixture(params=[1, 2], ids=["unshared", "shared"])
def port(request: pytest.FixtureRequest, make_port: MakeUringPort) -> UringPort:
    return make_port(threads=request.param)


def peer_of_an_armed(port: UringPort, listener: Owner) -> tuple[socket.socket, Owner]:
    """Return a client, and a server's end on which the kernel goes on to receive."""
    address = listener.socket.local_address
    peer = socket.create_connection((address.host, address.port), timeout=PROMPTLY_S)
    server = port.accept(listener)
    peer.sendall(b"x")
    assert port.recv(server, 1) == b"x"
    assert server.socket.armed  # type: ignore[attr-defined]
    return peer, server


def test_a_second_thread_is_told_that_it_may_not_dispatch() -> None:
    core = IocpCore(driver=uring_or_skip(1))
    core.dispatch(0)
    raised: list[BaseException] = []

    def dispatch() -> None:
        try:
            core.dispatch(0.001)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=dispatch)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [MisuseError]
    assert "make it by IocpCore(threads=...)" in str(raised[0])
    assert core.dispatch(0) == 0
    core.close()


def close(port: UringPort, owner: Owner) -> None:
    """Close a handle. Those of a shared ring are closed by the thread that polls next."""
    owner.close()
    if port.driver.threads > 1:
        port.turn(0)


@pytest.mark.parametrize("busy_count", [0, 150])
def test_a_peer_sees_the_end_before_the_next_poll(port: UringPort, busy_count: int) -> None:
    """Also when the kernel has much to do, of which it does a part with each call."""
    listener = port.listen()
    peer, server = peer_of_an_armed(port, listener)
    busy = [peer_of_an_armed(port, listener) for _ in range(busy_count)]
    for other, _ in busy:
        other.sendall(b"data")
    descriptors = resource_count()
    close(port, server)
    assert peer.recv(1) == b""
    assert resource_count() == descriptors - 1
    peer.close()
    for other, _ in busy:
        other.close()


def test_a_peer_sees_a_reset_before_the_next_poll(port: UringPort) -> None:
    peer, server = peer_of_an_armed(port, port.listen())
    server.socket.reset_on_close()
    close(port, server)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    peer.close()


@pytest.mark.parametrize("busy_count", [0, 150])
def test_the_port_of_a_closed_listener_can_be_taken_at_once(
    port: UringPort, busy_count: int
) -> None:
    other_listener = port.listen()
    busy = [peer_of_an_armed(port, other_listener) for _ in range(busy_count)]
    listener = port.listen()
    address = listener.socket.local_address
    accept = port.submit(listener, AcceptEvent())
    port.turn(0)
    port.cancel(accept)
    assert listener.socket.armed  # type: ignore[attr-defined]
    for other, _ in busy:
        other.sendall(b"data")
    close(port, listener)
    port.listen(port=address.port).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), timeout=PROMPTLY_S)
    for other, _ in busy:
        other.close()


def test_a_handle_that_another_thread_closes_is_closed_by_the_next_poll(port: UringPort) -> None:
    peer, server = peer_of_an_armed(port, port.listen())
    descriptors = resource_count()
    thread = threading.Thread(target=server.close)
    thread.start()
    thread.join()
    assert server.socket.is_closed
    port.turn(0)
    assert peer.recv(1) == b""
    assert resource_count() == descriptors - 1
    peer.close()


def test_a_thread_that_never_polled_closes_a_driver_with_what_it_closed_before(
    port: UringPort,
) -> None:
    """The ring of the polling thread is not for others, and the sockets must close all the same."""
    peers = [peer_of_an_armed(port, port.listen()) for _ in range(3)]
    descriptors = resource_count()
    errors: list[BaseException] = []

    def close_all() -> None:
        try:
            for _, server in peers[:2]:
                server.close()
            port.driver.close()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=close_all)
    thread.start()
    thread.join()
    assert errors == []
    for peer, _ in peers:
        assert peer.recv(1) == b""
        peer.close()
    # Six of the connections, three of the listeners, and the ring, its two maps, the wake-up.
    assert descriptors - resource_count() >= 3 + 3 + 3 + 2


def test_what_never_began_does_not_begin_when_the_driver_closes() -> None:
    """More than one call submits, and on a ring that was never started."""
    with small(entries=16):
        driver = uring_or_skip()
    descriptors = resource_count()
    readable: list[int] = []
    try:
        readable.extend(os.eventfd(1) for _ in range(40))
        watches = []
        for fd in readable:
            watches.append(IocpEvent(EventType.WATCH, Owner()))
            driver.watch(fd, watches[-1])
        driver.close()
        assert not any(event.in_flight or event.owner for event in watches)
    finally:
        for fd in readable:
            os.close(fd)
    assert resource_count() < descriptors


def test_a_send_that_never_began_is_not_sent_when_the_driver_closes(port: UringPort) -> None:
    client, _ = port.pair()
    listener = port.listen()
    peer, server = peer_of_an_armed(port, listener)
    thread = threading.Thread(target=port.submit, args=(server, SendEvent([b"too late"])))
    thread.start()
    thread.join()
    port.driver.close()
    assert peer.recv(1) == b""
    peer.close()


def test_an_address_of_a_closed_driver_can_be_taken_at_once(make_port: MakeUringPort) -> None:
    for threads in (1, 2):
        port = make_port(threads=threads)
        listener = port.listen()
        address = listener.socket.local_address
        port.submit(listener, AcceptEvent())
        peer, server = peer_of_an_armed(port, port.listen())
        port.submit(server, RecvEvent())
        port.turn(0)
        port.driver.close()
        sock = socket.create_server((address.host, address.port))
        assert NetAddress.from_sockaddr(sock.getsockname()) == address
        sock.close()
        assert peer.recv(1) == b""
        peer.close()
