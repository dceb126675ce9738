"""Listeners, accepts and connects: addresses, order, refusals, and clients that vanish."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver import Handle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import AcceptEvent, ConnectEvent, RecvEvent
from cluster.iocp.net_address import NetAddress
from cluster.iocp.socket_utils import hold_port
from tests.contract.driver_harness import Owner, Port

WSAEADDRINUSE, WSAECONNREFUSED, ERROR_CONNECTION_REFUSED = 10048, 10061, 1225


# -- addresses -------------------------------------------------------------------------------------


def test_port_0_takes_a_free_port(port: Port, host: str) -> None:
    first, second = port.listen(host), port.listen(host)
    assert first.socket.local_address.host == host
    assert 0 < first.socket.local_address.port != second.socket.local_address.port > 0


def test_both_ends_know_their_addresses(port: Port, host: str) -> None:
    listener = port.listen(host)
    client, connect = port.start_connect(listener)
    accept = AcceptEvent()
    port.do(listener, accept)
    port.wait(connect)
    assert accept.accepted is not None
    assert accept.address == client.socket.local_address
    assert accept.accepted.local_address == listener.socket.local_address
    assert client.socket.local_address.host == host


def test_an_address_in_use_is_refused(port: Port, host: str) -> None:
    listener = port.listen(host)
    with pytest.raises(OSError) as raised:
        port.listen(host, listener.socket.local_address.port)
    assert raised.value.errno in (errno.EADDRINUSE, WSAEADDRINUSE)


def test_a_closed_listener_gives_its_address_back(port: Port, host: str) -> None:
    listener = port.listen(host)
    address = listener.socket.local_address
    client, server = port.pair(listener=listener)
    listener.close()
    if sys.platform == "win32":
        # Exclusive use, as Windows has it, includes the connections that were accepted.
        client.close()
        server.close()
        client, server = port.pair()
    again = port.listen(host, address.port)  # elsewhere while a connection still has the port
    port.pair(listener=again)
    port.send(client, b"x")
    assert port.recv(server, 1) == b"x"


def test_a_name_can_be_listened_on(port: Port) -> None:
    listener = port.listen("localhost")
    port.pair(listener=listener)


def test_a_closed_handle_says_so(port: Port, listener: Owner) -> None:
    client = port.open_client(listener)
    for owner in (client, listener):
        assert not owner.socket.is_closed
        owner.close()
        assert owner.socket.is_closed
        owner.close()  # again is nothing
        with pytest.raises(MisuseError):
            _ = owner.socket.local_address


# -- accepting -------------------------------------------------------------------------------------


def test_an_accept_may_come_before_its_client(port: Port, host: str) -> None:
    listener = port.listen(host)
    accept = port.submit(listener, AcceptEvent())
    assert port.turn(0) == []
    client, connect = port.start_connect(listener)
    assert port.wait(accept).error is None
    assert port.wait(connect).error is None


def test_a_client_may_come_before_its_accept(port: Port, host: str) -> None:
    listener = port.listen(host)
    client, connect = port.start_connect(listener)
    assert port.wait(connect).error is None
    port.send(client, b"early")
    server = port.accept(listener)
    assert port.recv(server, 5) == b"early"


def test_many_accepts_are_outstanding_and_each_gets_its_own_client(
    port: Port, listener: Owner
) -> None:
    accepts = [AcceptEvent() for _ in range(20)]
    for accept in accepts:
        port.submit(listener, accept)
    clients = [port.start_connect(listener) for _ in range(30)]
    port.run_until(lambda: not port.expected, "all accepts and connects")
    assert all(connect.error is None for _, connect in clients)
    addresses = {accept.address for accept in accepts}
    assert len(addresses) == 20
    assert addresses <= {client.socket.local_address for client, _ in clients}
    for _ in range(10):
        port.accept(listener)  # the rest waited in the backlog


def test_an_accept_event_serves_again(port: Port, listener: Owner) -> None:
    accept = AcceptEvent()
    seen: set[Handle] = set()
    for _ in range(5):
        port.submit(listener, accept)
        assert accept.accepted is None
        client, connect = port.start_connect(listener)
        port.wait_all()
        assert accept.accepted is not None
        assert accept.accepted not in seen
        seen.add(accept.accepted)


def test_a_client_that_vanished_in_the_backlog_does_not_stop_the_listener(
    port: Port, listener: Owner
) -> None:
    for _ in range(5):
        client, connect = port.start_connect(listener)
        port.wait(connect)
        client.socket.reset_on_close()
        client.close()
        accept = AcceptEvent()
        port.submit(listener, accept)
        # A system may hand the dead connection over, report it, or drop it and wait on.
        good_client, connect = port.start_connect(listener)
        port.wait(connect)
        port.wait(accept)
        if accept.accepted is None or accept.address != good_client.socket.local_address:
            if accept.accepted is not None:
                dead = Owner(accept.accepted)
                assert port.do(dead, RecvEvent()).error in (Cause.EOF, Cause.RESET)
            port.accept(listener)


def test_an_accept_that_finds_no_descriptor_left_fails_and_can_be_armed_again(
    port: Port, listener: Owner
) -> None:
    if port.driver.name == "memory":
        pytest.skip("driver memory: takes no descriptors; its faults are tested with the network")
    resource = pytest.importorskip("resource", reason="no limit of descriptors here")
    waiting = [port.start_connect(listener) for _ in range(2)]
    port.wait_all()  # connected, in the backlog
    accepts = [AcceptEvent() for _ in range(3)]
    with no_descriptor_left(resource):
        for accept in accepts:
            port.submit(listener, accept)
        port.run_until(lambda: len(port.expected) < len(accepts), "a failure")
        for accept in accepts:
            if accept not in port.expected:
                assert accept.error is Cause.OS_ERROR
                assert accept.raw_error in (errno.EMFILE, errno.ENFILE)
                assert accept.accepted is None

    served = set()

    def all_are_served() -> bool:
        for accept in accepts:
            if accept not in port.expected:
                served.add(accept.address)
                port.submit(listener, accept)  # as a listener does, good or bad
        return len(served - {None}) == len(waiting)

    port.run_until(all_are_served, "both clients")
    assert served - {None} == {client.socket.local_address for client, _ in waiting}


@contextmanager
def no_descriptor_left(resource: Any) -> Iterator[None]:
    """Let this process open nothing more, meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- connecting ------------------------------------------------------------------------------------


@contextmanager
def closed_to_all(port: Port, listener: Owner) -> Iterator[NetAddress]:
    """Close `listener` and give its address, at which nobody listens meanwhile: not even another
    test of this machine, to which the system may give a port that is free."""
    address = listener.socket.local_address
    listener.close()
    with nullcontext() if port.driver.name == "memory" else hold_port(address):
        yield address


def test_a_connect_to_nobody_is_refused(port: Port, host: str) -> None:
    with closed_to_all(port, port.listen(host)) as address:
        client = Owner(port.driver.open_socket(address))
        outcome = port.do(client, ConnectEvent(address))
    assert outcome.error is Cause.REFUSED
    assert outcome.raw_error in (errno.ECONNREFUSED, WSAECONNREFUSED, ERROR_CONNECTION_REFUSED)
    client.close()


def test_a_refused_connect_does_not_hurt_the_next(port: Port, listener: Owner) -> None:
    with closed_to_all(port, port.listen()) as address:
        for _ in range(3):
            client = Owner(port.driver.open_socket(address))
            assert port.do(client, ConnectEvent(address)).error is Cause.REFUSED
            client.close()
            port.pair(listener=listener)


def test_connecting_again_does_no_harm(port: Port, listener: Owner) -> None:
    client, server = port.pair(listener=listener)
    outcome = port.do(client, ConnectEvent(listener.socket.local_address))
    assert outcome.error in (None, Cause.OS_ERROR)  # Linux fails the second time only
    port.send(client, b"x")
    assert port.recv(server, 1) == b"x"


# -- closing a listener ----------------------------------------------------------------------------


def test_a_listener_closes_when_its_accepts_were_cancelled(port: Port, listener: Owner) -> None:
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(5)]
    with pytest.raises(MisuseError):
        listener.close()
    for accept in accepts:
        port.driver.cancel(accept)
    port.wait_all()
    assert {accept.error for accept in accepts} == {Cause.CANCELLED}
    with closed_to_all(port, listener) as address:
        client = Owner(port.driver.open_socket(address))
        assert port.do(client, ConnectEvent(address)).error is Cause.REFUSED


def test_clients_that_were_never_accepted_see_the_listener_close(
    port: Port, listener: Owner
) -> None:
    client, connect = port.start_connect(listener)
    port.wait(connect)
    recv = port.submit(client, RecvEvent())
    port.turn(0)
    listener.close()
    assert port.wait(recv).error in (Cause.RESET, Cause.EOF)


def test_sessions_outlive_their_listener(port: Port, listener: Owner) -> None:
    client, server = port.pair(listener=listener)
    listener.close()
    port.send(client, b"x")
    assert port.recv(server, 1) == b"x"


def test_open_socket_needs_no_listener(port: Port) -> None:
    handle = port.driver.open_socket(NetAddress("127.0.0.1", 9))
    assert handle.local_address.port > 0
    handle.close()
