"""Connections of load balancers become sessions of the clients that they tell, or nothing."""

import logging

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.proxies import HEADER_TIMEOUT_S, Proxies
from cluster.iocp import Cause as IocpCause
from cluster.iocp import NetAddress
from cluster.iocp.packet_framing import make_packet
from cluster.shared.config import LimitsConfig
from cluster.shared.records import ACCEPT, CLOSED, OPENED, PACKETS, make_record
from tests.gateway.conftest import MakeGateway
from tests.gateway.test_proxy_header import IPV4, IPV6, binary
from tests.gateway.world import GatewayWorld, ScriptedWorker, content
from tests.iocp.peers import Peer

HERE = ("127.0.0.1", "::1")
LINE = b"PROXY TCP4 203.0.113.7 10.0.0.5 56324 443\r\n"
OTHER_LINE = b"PROXY TCP4 203.0.113.8 10.0.0.5 56324 443\r\n"
PACKET = make_packet(1, b"hello")


def arrive(world: GatewayWorld, data: bytes = b"") -> Peer:
    """Return a client that has connected and sent `data`, all of which has been received."""
    peer = Peer(world.core, world.service.listener.local_address)
    before = world.service.current_session_count
    world.run_until(lambda: peer.is_connected, "the connection")
    world.run_until(lambda: world.service.current_session_count > before, "its acceptance")
    say(world, peer, data)
    return peer


def say(world: GatewayWorld, peer: Peer, data: bytes) -> None:
    if data:
        peer.send(data)
    world.run_until(lambda: peer.unsent_bytes == 0)
    world.settle()


def packets(worker: ScriptedWorker) -> list[bytes]:
    worker.read()
    records = [content(record) for record in worker.records if record.kind == PACKETS]
    return [packet for _, several in records for packet in several]


def is_clean(world: GatewayWorld) -> bool:
    """Whether nothing is left of any connection."""
    return (
        not world.service.current_session_count
        and not world.table.sessions
        and not world.limits.deadlines.session_count
    )


def leave(world: GatewayWorld, *peers: Peer) -> None:
    """Break the connections, and wait until nothing is left of them."""
    for peer in peers:
        peer.reset()
    world.run_until(lambda: is_clean(world), "the end of all connections")


@pytest.mark.parametrize(
    "header",
    [LINE, binary(0x21, 0x11, IPV4), binary(0x21, 0x21, IPV6)],
    ids=["line", "binary", "IPv6"],
)
@pytest.mark.parametrize(
    "limits", [LimitsConfig(), LimitsConfig(idle_timeout_s=60)], ids=["plain", "limited"]
)
def test_a_session_has_the_address_that_the_balancer_tells(
    gateway: MakeGateway, header: bytes, limits: LimitsConfig
):
    world = gateway(proxies=HERE, limits=limits)
    worker = world.start_worker()
    peer = arrive(world)
    assert world.count("sessions_opened") == 0
    assert worker.read() == []
    say(world, peer, header)
    world.wait_for(worker, OPENED)
    session = world.newest()
    expected = "[2001:db8::7]:56324" if header[13] == 0x21 else "203.0.113.7:56324"
    assert session.address_text == expected
    assert expected.encode() in worker.records[0].payload
    say(world, peer, PACKET)
    world.wait_for(worker, PACKETS)
    say(world, peer, PACKET + PACKET)
    world.run_until(lambda: len(packets(worker)) == 3, "all packets")
    leave(world, peer)
    assert world.count("proxy_connections_unopened") == world.count("proxy_headers_refused") == 0


@pytest.mark.parametrize("chunk", [1, 5, 45, 1_000])
def test_header_and_packets_come_in_any_pieces(gateway: MakeGateway, chunk: int):
    world = gateway(proxies=HERE)
    worker = world.start_worker()
    stream = LINE + b"".join(make_packet(2, b"%d" % number) for number in range(20))
    peer = arrive(world)
    for start in range(0, len(stream), chunk):
        peer.send(stream[start : start + chunk])
        world.run_until(lambda: peer.unsent_bytes == 0)
        world.turn(0.002)
    world.run_until(lambda: len(packets(worker)) == 20, "all packets")
    assert [packet[4:] for packet in packets(worker)] == [b"%d" % number for number in range(20)]
    assert world.newest().address_text == "203.0.113.7:56324"


def test_a_balancer_that_only_looks_is_no_session(gateway: MakeGateway):
    world = gateway(proxies=HERE)
    worker = world.start_worker()
    peer = arrive(world, binary(0x20, 0, b""))
    assert not world.table.sessions
    peer.close()
    world.run_until(lambda: is_clean(world), "the end of the connection")
    assert worker.read() == []
    assert world.count("proxy_connections_unopened") == 1


def test_a_balancer_that_says_something_is_a_client_itself(gateway: MakeGateway):
    world = gateway(proxies=HERE)
    worker = world.start_worker()
    peer = arrive(world, binary(0x20, 0, b""))
    say(world, peer, PACKET)
    other = arrive(world, b"PROXY UNKNOWN\r\n")
    world.run_until(lambda: world.count("sessions_opened") == 2, "both sessions")
    assert packets(worker) == [PACKET]
    assert all(s.address_text.startswith("127.0.0.1:") for s in world.table.sessions.values())
    leave(world, peer, other)


def test_others_are_clients_themselves_and_send_no_header(gateway: MakeGateway):
    world = gateway(proxies=["10.0.0.0/8"])
    worker = world.start_worker()
    peer = world.connect()
    say(world, peer, PACKET)
    world.wait_for(worker, PACKETS)
    assert world.newest().address_text.startswith("127.0.0.1:")
    # From anybody else a header is what it looks like: a packet with a size that is too large.
    forger = world.connect()
    say(world, forger, LINE)
    world.settle()
    told = b"".join(bytes(record.payload) for record in worker.read())
    assert b"203.0.113.7:" not in told


def test_what_is_no_header_ends_the_connection_and_is_told(
    gateway: MakeGateway, caplog: pytest.LogCaptureFixture
):
    world = gateway(proxies=HERE)
    worker = world.start_worker()
    good = arrive(world, LINE)
    peer = arrive(world, PACKET)
    world.wait_ended(peer)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("127.0.0.1:")
    assert "is in gateway.proxies, and sent no header of the PROXY protocol: " in line
    assert r"begins with b'\t\x00\x01\x00hello'; have it send one, or take it out of" in line
    for _ in range(6):
        world.wait_ended(arrive(world, b"GET / HTTP/1.1\r\n\r\n"))
    assert len(caplog.records) == 5
    assert world.count("proxy_headers_refused") == 7
    say(world, good, PACKET)
    world.wait_for(worker, PACKETS)
    assert (world.count("sessions_opened"), world.count("sessions_closed")) == (1, 0)
    leave(world, good, peer)
    assert world.count("proxy_connections_unopened") == 0


def test_a_header_that_does_not_come_is_not_awaited_for_ever(timed_gateway: MakeGateway):
    world = timed_gateway(proxies=HERE)
    worker = world.start_worker()
    silent, slow = arrive(world), arrive(world, LINE[:20])
    prompt = arrive(world, LINE)
    world.pass_time(HEADER_TIMEOUT_S - 0.1)
    assert silent.ended is slow.ended is None
    say(world, slow, LINE[20:30])
    world.pass_time(1.2)
    assert silent.ended is slow.ended is IocpCause.RESET
    assert prompt.ended is None
    assert worker.kinds().count(CLOSED) == 0
    leave(world, silent, slow, prompt)
    assert world.count("proxy_connections_unopened") == 2
    assert world.count("sessions_closed") == 1


@pytest.mark.parametrize("data", [b"", LINE[:20]], ids=["nothing", "a part"])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_that_ends_before_its_header_leaves_nothing(
    gateway: MakeGateway, caplog: pytest.LogCaptureFixture, data: bytes, is_reset: bool
):
    world = gateway(proxies=HERE)
    world.start_worker()
    peer = arrive(world, data)
    if is_reset:
        peer.reset()
    else:
        peer.close()
    world.run_until(lambda: is_clean(world), "the end of the connection")
    assert world.count("proxy_connections_unopened") == 1
    assert world.count("sessions_opened") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_connections_of_an_address_are_counted_by_the_clients(gateway: MakeGateway):
    world = gateway(proxies=HERE, limits=LimitsConfig(connections_per_address=2))
    worker = world.start_worker()
    first = [arrive(world, LINE) for _ in range(2)]
    others = [arrive(world, OTHER_LINE) for _ in range(2)]
    waiting = [arrive(world) for _ in range(3)]
    assert world.count("sessions_opened") == 4
    third = arrive(world, LINE + PACKET)
    world.wait_ended(third)
    assert world.count("rate_limited_connections_per_address") == 1
    assert packets(worker) == []
    first[0].reset()
    world.run_until(lambda: world.count("sessions_closed") == 1, "the end of a session")
    again = arrive(world, LINE)
    world.run_until(lambda: world.count("sessions_opened") == 5, "another session")
    leave(world, *first[1:], *others, *waiting, third, again)
    assert world.limits._admission is not None
    assert world.limits._admission.address_count == 0
    assert world.count("connections_refused") == 1


def test_packets_behind_a_header_wait_for_the_login(gateway: MakeGateway):
    world = gateway(proxies=HERE, limits=LimitsConfig(auth_timeout_s=5))
    worker = world.start_worker(public_ids=[1])
    game = make_packet(2, b"move")
    peer = arrive(world, LINE + PACKET + game)
    world.wait_for(worker, PACKETS)
    world.settle()
    assert packets(worker) == [PACKET]
    assert worker.commit(make_record(ACCEPT, world.newest().id, b""))
    world.run_until(lambda: packets(worker) == [PACKET, game], "what waited")
    leave(world, peer)


def test_a_session_object_awaits_its_header_again(memory_gateway: MakeGateway):
    world = memory_gateway(proxies=HERE)
    world.echoing = [world.start_worker()]  # what is not committed keeps its session
    for line, port in ((LINE, 7), (OTHER_LINE, 8)) * 15:
        peer = arrive(world)
        assert not world.table.sessions
        say(world, peer, line)
        assert world.newest().address_text == f"203.0.113.{port}:56324"
        leave(world, peer)
        world.run_until(lambda: world.shards[0].is_idle, "the last commit")
    assert world.sessions_made < 15


@pytest.mark.parametrize(
    ("host", "is_proxy"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:10.1.2.3", True),
        ("192.168.1.5", True),
        ("192.168.1.6", False),
        ("fd00::1", True),
        ("fe80::1%eth0", False),
    ],
)
def test_balancers_are_known_by_their_networks(host: str, is_proxy: bool):
    proxies = Proxies(["10.0.0.0/8", "192.168.1.5", "fd00::/8"], Counters(), lambda: 0.0)
    assert bool(proxies)
    assert (NetAddress(host, 1) in proxies) is is_proxy
    nobody = Proxies([], Counters(), lambda: 0.0)
    assert not nobody
    assert NetAddress(host, 1) not in nobody
    assert None not in proxies


def test_a_network_of_mapped_addresses_is_that_of_ipv4():
    proxies = Proxies(["::ffff:10.0.0.0/104", "::ffff:192.168.1.5"], Counters(), lambda: 0.0)
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "192.168.1.5"):
        assert NetAddress(host, 1) in proxies
    for host in ("11.1.2.3", "::ffff:192.168.1.6", "::a01:203"):
        assert NetAddress(host, 1) not in proxies
