"""Addresses: text in, text out, IPv4 and IPv6, and errors that show what was given."""

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp import NetAddress


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7777", "127.0.0.1", 7777),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65_535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("0.0.0.0:80", "0.0.0.0", 80),
    ],
)
def test_an_address_is_read_and_written_the_same_way(text: str, host: str, port: int):
    address = NetAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "7777", "127.0.0.1", "127.0.0.1:", ":7777", "host:port", "::1:7777", "[::1]", "a:-1"],
)
def test_what_is_no_address_is_refused_with_the_text(text: str):
    with pytest.raises(ValueError) as raised:
        NetAddress.parse(text)
    assert repr(text) in str(raised.value)
    assert "HOST:PORT" in str(raised.value)


@pytest.mark.parametrize("port", [-1, 65_536, "7777", None])
def test_a_port_out_of_range_is_refused_with_its_value(port: Any):
    with pytest.raises(ValueError, match=f"port {port!r} is not"):
        NetAddress("127.0.0.1", port)


@given(st.ip_addresses().map(str), st.integers(0, 65_535))
def test_every_numeric_address_survives_its_text(host: str, port: int):
    address = NetAddress(host, port)
    assert NetAddress.parse(str(address)) == address
    assert address.family == (socket.AF_INET6 if ":" in host else socket.AF_INET)


def test_an_address_is_a_value():
    assert NetAddress("::1", 1) == NetAddress("::1", 1)
    assert len({NetAddress("::1", 1), NetAddress("::1", 1), NetAddress("::1", 2)}) == 2
    with pytest.raises(AttributeError):
        NetAddress("::1", 1).port = 2  # type: ignore[misc]


def test_a_name_is_looked_up_and_a_number_stays_as_it_is():
    assert NetAddress("localhost", 5).resolve().host in ("127.0.0.1", "::1")
    assert NetAddress("127.0.0.1", 5).resolve() == NetAddress("127.0.0.1", 5)
    assert NetAddress("::1", 5).resolve() == NetAddress("::1", 5)


def test_socket_addresses_of_both_families_are_understood():
    assert NetAddress.from_sockaddr(("1.2.3.4", 5)) == NetAddress("1.2.3.4", 5)
    assert NetAddress.from_sockaddr(("::1", 5, 0, 0)) == NetAddress("::1", 5)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_cannot_be_one_is_an_os_error(host: str):
    with pytest.raises(OSError, match=f"{host} is no name"):
        NetAddress(host, 1).resolve()


def test_a_link_local_address_keeps_its_interface():
    name = socket.if_indextoname(1)
    address = NetAddress(f"fe80::1%{name}", 80)
    assert address.resolve() == address
    assert address.sockaddr == ("fe80::1", 80, 0, 1)
    assert NetAddress("fe80::1%1", 80).sockaddr == ("fe80::1", 80, 0, 1)
    assert NetAddress.from_sockaddr(("fe80::1", 80, 0, 1)) == address
    with pytest.raises(OSError, match="no interface"):
        _ = NetAddress("fe80::1%nosuch0", 80).sockaddr


def test_a_link_local_address_is_looked_up_by_the_name_of_its_interface_and_by_its_number():
    for interface in ("1", socket.if_indextoname(1)):
        address = NetAddress(f"fe80::1%{interface}", 80)
        assert address.look_up(socket.AF_INET6) == [("fe80::1", 80, 0, 1)]
