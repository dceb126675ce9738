"""Sockets made ready: non-blocking, with the options that design and platform ask for."""

import errno
import socket

import pytest

from cluster.iocp import NetAddress
from cluster.iocp.socket_utils import (
    bind_any_address,
    open_listening_socket,
    open_stream_socket,
    set_linger_reset,
    set_no_delay,
)
from tests.contract.driver_harness import recv_a_reset


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listening_socket_listens_on_its_address(host: str):
    try:
        sock = open_listening_socket(NetAddress(host, 0), 16)
    except OSError as error:
        if host == "127.0.0.1" or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip(f"no IPv6 on this machine: {error}")
    with sock:
        assert sock.getsockname()[0] == host
        assert not sock.getblocking()
        with socket.create_connection(sock.getsockname()[:2], timeout=10):
            pass


def test_an_ipv6_listener_does_not_take_the_ipv4_port():
    try:
        sock = open_listening_socket(NetAddress("::", 0), 16)
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_port_in_use_is_refused_and_no_socket_stays_open():
    with open_listening_socket(NetAddress("127.0.0.1", 0), 16) as sock:
        with pytest.raises(OSError) as raised:
            open_listening_socket(NetAddress.from_sockaddr(sock.getsockname()), 16)
        assert raised.value.errno in (errno.EADDRINUSE, errno.EACCES)


def test_a_port_is_free_again_while_its_old_connections_close():
    with open_listening_socket(NetAddress("127.0.0.1", 0), 16) as sock:
        address = NetAddress.from_sockaddr(sock.getsockname())
        client = socket.create_connection((address.host, address.port), timeout=10)
        sock.setblocking(True)
        server, _ = sock.accept()
    # The side that closes first is the one that TIME_WAIT stays with.
    server.close()
    assert client.recv(1) == b""
    client.close()
    open_listening_socket(address, 16).close()


def test_a_stream_socket_is_bound_and_sends_at_once():
    with open_stream_socket(NetAddress("127.0.0.1", 9)) as sock:
        assert not sock.getblocking()
        assert sock.getsockname()[1] != 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_options_can_be_set_one_by_one():
    with socket.socket() as sock:
        bind_any_address(sock)
        assert sock.getsockname()[0] == "0.0.0.0"
        set_no_delay(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_linger_reset_turns_a_close_into_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=10)
        server, _ = listener.accept()
        set_linger_reset(server)
        server.close()
        with client:
            recv_a_reset(client)


def test_linger_reset_of_a_socket_that_another_thread_has_closed_does_nothing():
    sock = socket.socket()
    sock.close()
    set_linger_reset(sock)
