"""The parts of a front that decide without sockets: turns of nodes, origins, headers, its log."""

import logging

import pytest

from cluster.gateway.proxy_header import read_proxy_header
from cluster.iocp import NetAddress
from cluster.shared.networks import Networks
from cluster.websocket.forwarded import client_of
from cluster.websocket.limited_records import LimitedRecords
from cluster.websocket.node_turns import NodeTurns
from cluster.websocket.origins import Origins, parse_origin
from cluster.websocket.proxy_header import make_proxy_header

A, B, C = (NetAddress("10.0.0.1", port) for port in (1, 2, 3))


def test_nodes_take_turns() -> None:
    turns = NodeTurns([A, B, C])
    assert [turns.take(0.0) for _ in range(4)] == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]


def test_a_node_that_has_refused_comes_last_for_a_while() -> None:
    turns = NodeTurns([A, B, C])
    turns.refused(B, 10.0)
    assert [turns.take(12.0) for _ in range(3)] == [[A, C, B], [C, A, B], [A, C, B]]
    assert turns.take(15.0) == [A, B, C]
    turns.refused(C, 15.0)
    turns.took(C)
    assert turns.take(15.0) == [B, C, A]


def test_where_all_have_refused_all_are_tried() -> None:
    turns = NodeTurns([A, B])
    turns.refused(A, 1.0)
    turns.refused(B, 2.0)
    assert [turns.take(3.0) for _ in range(2)] == [[A, B], [A, B]]


@pytest.mark.parametrize(
    ("listed", "origin", "host", "is_admitted"),
    [
        ((), None, "game.example", True),
        ((), "https://game.example", "game.example", True),
        ((), "https://Game.Example:8443", "game.example:443", True),
        ((), "http://[::1]:8000", "[::1]:8080", True),
        ((), "https://evil.example", "game.example", False),
        ((), "https://game.example.evil.example", "game.example", False),
        ((), "null", "game.example", False),
        ((), "http://[broken", "[broken", False),
        ((), "", "", False),
        ((), "https://game.example", None, False),
        (("https://game.example",), "https://game.example", "other", True),
        (("https://game.example",), None, "other", True),
        (("https://game.example",), "https://game.example:444", "game.example", False),
        (("https://game.example",), "http://game.example", "game.example", False),
        (("*",), "https://evil.example", "game.example", True),
    ],
)
def test_origins(
    listed: tuple[str, ...], origin: str | None, host: str | None, is_admitted: bool
) -> None:
    assert Origins(listed).admit(origin, host) is is_admitted


def test_origins_are_read_as_browsers_write_them() -> None:
    texts = ["HTTPS://Game.example", "http://[::1]:8000", "null", "*", "chrome-extension://abc"]
    assert [parse_origin(text) for text in texts] == [text.lower() for text in texts]
    for text in ("", "game.example", "https://", "https://a/b", "https://a b", "https://u@a"):
        with pytest.raises(ValueError, match="SCHEME://HOST"):
            parse_origin(text)


@pytest.mark.parametrize(
    ("client", "server", "told"),
    [
        ("203.0.113.7:4711", "10.0.0.1:443", "203.0.113.7:4711"),
        ("[2001:db8::7]:4711", "[2001:db8::1]:443", "[2001:db8::7]:4711"),
        ("[fe80::7%lo]:4711", "[fe80::1%lo]:443", "[fe80::7]:4711"),
        ("[::ffff:203.0.113.7]:4711", "[::ffff:10.0.0.1]:443", "203.0.113.7:4711"),
        ("203.0.113.7:4711", "[2001:db8::1]:443", "203.0.113.7:4711"),
    ],
)
def test_what_is_written_is_what_a_gateway_reads(client: str, server: str, told: str) -> None:
    data = make_proxy_header(NetAddress.parse(client), NetAddress.parse(server))
    header = read_proxy_header(data + b"a packet")
    assert header is not None
    assert (header.num_bytes, header.address) == (len(data), NetAddress.parse(told))


PROXY = "10.0.0.1:5"
PROXY_6 = "[fd00::1]:5"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (PROXY, ["203.0.113.7"], "203.0.113.7:0"),
        (PROXY, ["6.6.6.6, 203.0.113.7"], "203.0.113.7:0"),
        (PROXY, ["6.6.6.6, 203.0.113.7 ,10.0.0.3"], "203.0.113.7:0"),
        (PROXY, ["6.6.6.6", "203.0.113.7", "10.0.0.3,10.0.0.2"], "203.0.113.7:0"),
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3:0"),
        (PROXY, ["203.0.113.7:4711"], "203.0.113.7:4711"),
        (PROXY, ["[2001:db8::7]:4711"], "[2001:db8::7]:4711"),
        (PROXY, ["[2001:db8::7]"], "[2001:db8::7]:0"),
        (PROXY_6, ["2001:db8::7"], "[2001:db8::7]:0"),
        (PROXY_6, ["::ffff:203.0.113.7"], "203.0.113.7:0"),
        ("[::ffff:10.0.0.1]:5", ["203.0.113.7"], "203.0.113.7:0"),
        ("203.0.113.8:5", ["203.0.113.7"], "203.0.113.8:5"),
        ("[fe80::1%lo]:5", ["203.0.113.7"], "[fe80::1%lo]:5"),
        (PROXY, [], PROXY),
    ],
)
def test_the_client_is_who_a_trusted_proxy_was_called_by(
    peer: str, forwarded: list[str], client: str
) -> None:
    told = client_of(NetAddress.parse(peer), forwarded, Networks(["10.0.0.0/8", "fd00::/8"]))
    assert told == NetAddress.parse(client)


@pytest.mark.parametrize(
    "hop",
    [
        *("", "unknown", "203.0.113", "203.0.113.7:70000", "203.0.113.7:", "[203.0.113.7", "a:1"),
        *("[::1", "[]:1", "::1]:1", "1:2:3", ":", "fe80::7%lo", "[fe80::7%lo]:1", "\xb2:\xb2"),
    ],
)
def test_of_what_is_no_address_the_proxy_is_the_client(hop: str) -> None:
    proxies = Networks(["10.0.0.0/8"])
    assert client_of(A, [f"203.0.113.7, {hop}"], proxies) == A
    assert client_of(A, [f"203.0.113.7, {hop}, 10.0.0.9"], proxies) == NetAddress("10.0.0.9", 0)


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_of(A, ["203.0.113.7"], Networks()) == A


def test_what_a_library_logs_is_one_line_and_bounded() -> None:
    records = LimitedRecords()

    def record() -> logging.LogRecord:
        error = ValueError("broken")
        about = (ValueError, error, None)
        return logging.LogRecord("library", logging.ERROR, "", 1, "failed\n%s", ("here",), about)

    made = [record() for _ in range(20)]
    passed = [each for each in made if records.filter(each)]
    assert [each.getMessage() for each in passed] == ["failed; here: ValueError('broken')"] * 5
    assert not any(each.exc_info for each in passed)
