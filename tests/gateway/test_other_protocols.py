"""A client that speaks HTTP, TLS or the PROXY protocol is counted, and told of once."""

import logging

import pytest

from cluster.gateway.other_protocols import name_protocol
from cluster.iocp.packet_framing import make_packet
from tests.gateway.conftest import MakeGateway
from tests.gateway.test_proxies import say
from tests.gateway.test_proxy_header import IPV4, binary

HTTP = b"GET /health HTTP/1.1\r\nHost: game.example\r\n\r\n"
TLS = bytes.fromhex("16030100f5010000f10303") + bytes(40)
PROXY = b"PROXY TCP4 203.0.113.7 10.0.0.5 56324 443\r\n"
COUNTER = "sessions_of_other_protocols"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (HTTP, "HTTP"),
        (b"OPTIONS * HTTP/1.0\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (TLS, "TLS"),
        (PROXY, "the PROXY protocol"),
        (binary(0x21, 0x11, IPV4), "the PROXY protocol"),
        (b"GET what you want", None),
        (TLS[:5], None),
        (make_packet(1, HTTP), None),
        (b"", None),
    ],
)
def test_a_protocol_is_known_by_its_first_bytes(data: bytes, name: str | None):
    assert name_protocol(data) == name


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "clients of this address send packets" in line]


@pytest.mark.parametrize(
    ("data", "remedy"),
    [(HTTP, "cluster websocket"), (TLS, "load balancer"), (PROXY, "gateway.proxies")],
)
def test_the_operator_is_told_once_what_such_clients_need(
    timed_gateway: MakeGateway, caplog: pytest.LogCaptureFixture, data: bytes, remedy: str
):
    caplog.set_level(logging.WARNING)
    world = timed_gateway()
    peers = [world.connect() for _ in range(3)]
    for peer in peers:
        say(world, peer, data)
    assert world.count(COUNTER) == len(peers)
    (line,) = told(caplog)
    assert remedy in line
    assert peers[0].ended is None  # it may be a packet: nothing but its time ends it


def test_it_is_told_also_where_the_size_alone_ends_the_session(
    timed_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
):
    world = timed_gateway(max_packet_bytes=4_096)
    peer = world.connect()
    say(world, peer, HTTP)
    world.wait_ended(peer)
    assert world.count("closed_bad_size") == 1
    assert world.count(COUNTER) == len(told(caplog)) == 1


def test_a_client_that_has_sent_a_packet_speaks_packets(timed_gateway: MakeGateway):
    world = timed_gateway()
    packet = make_packet(1, b"hello")
    for first, second in ((packet + HTTP, b""), (packet, HTTP), (packet[:3], packet[3:] + HTTP)):
        peer = world.connect()
        say(world, peer, first)
        say(world, peer, second)
    assert world.count(COUNTER) == 0
