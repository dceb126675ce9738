"""Addresses of gateways that are on other machines."""

import pytest

from cluster.iocp import NetAddress
from cluster.shared.remote_endpoints import address_of, lane_address, parse_gateway


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://10.0.0.1:7900", NetAddress("10.0.0.1", 7900)),
        ("tcp://[::1]:7900", NetAddress("::1", 7900)),
        ("tcp://gateway.internal:1", NetAddress("gateway.internal", 1)),
    ],
)
def test_a_gateway_is_named_by_scheme_host_and_port(text: str, address: NetAddress):
    assert parse_gateway(text) == address


@pytest.mark.parametrize(
    "text", ["10.0.0.1:7900", "ipc://x", "tcp://10.0.0.1", "tcp://10.0.0.1:0", "tcp://:1", "tcp://"]
)
def test_what_names_no_gateway_is_told(text: str):
    with pytest.raises(ValueError, match=r"tcp://HOST:PORT.*tcp://10\.0\.0\.1:7900"):
        parse_gateway(text)


def test_lanes_are_at_the_port_behind_or_at_any_free_one():
    assert address_of(NetAddress("10.0.0.1", 7900)) == "tcp://10.0.0.1:7900"
    assert address_of(NetAddress("::", 7900), 1) == "tcp://[::]:7901"
    assert address_of(NetAddress("10.0.0.1", 0), 1) == "tcp://10.0.0.1:*"


def test_a_worker_reaches_lanes_by_the_host_that_it_knows():
    gateway = NetAddress("192.168.1.9", 7900)
    assert lane_address(gateway, "tcp://0.0.0.0:7901") == "tcp://192.168.1.9:7901"
    with pytest.raises(ValueError):
        lane_address(gateway, "ipc://run/lane.sock")
