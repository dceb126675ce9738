"""Headers of load balancers: what is one, what is a part of one, and what can be none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.proxy_header import (
    HEADER_BYTES_MAX,
    ProxyHeader,
    ProxyHeaderError,
    read_proxy_header,
)
from cluster.iocp import NetAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
IPV4 = bytes([203, 0, 113, 7, 10, 0, 0, 5]) + b"\xdc\x04\x01\xbb"
IPV6 = bytes.fromhex("20010db8" + "00" * 11 + "07" + "fd" + "00" * 14 + "05") + b"\xdc\x04\x01\xbb"
MAPPED = b"".join(bytes(10) + b"\xff\xff" + IPV4[at : at + 4] for at in (0, 4)) + IPV4[8:]
CLIENT_4, CLIENT_6 = NetAddress("203.0.113.7", 56324), NetAddress("2001:db8::7", 56324)


def binary(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


HEADERS = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.5 56324 443\r\n", CLIENT_4),
    (b"PROXY TCP6 2001:DB8::7 fd00::5 56324 443\r\n", CLIENT_6),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", None),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f:f ::1 65535 65535\r\n", None),
    (binary(0x21, 0x11, IPV4), CLIENT_4),
    (binary(0x21, 0x21, IPV6), CLIENT_6),
    # Clients of IPv4, of a balancer whose socket is for both.
    (b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:10.0.0.5 56324 443\r\n", CLIENT_4),
    (binary(0x21, 0x21, MAPPED), CLIENT_4),
    # Extensions: an authority, and a checksum.
    (binary(0x21, 0x11, IPV4 + b"\x02\0\x05games" + b"\x03\0\x04abcd"), CLIENT_4),
    (binary(0x21, 0x11, IPV4 + bytes(HEADER_BYTES_MAX - 16 - 12)), CLIENT_4),
    # A check of the balancer's own, whatever else it says; and families that we have no use for.
    (binary(0x20, 0x00, b""), None),
    (binary(0x20, 0x11, IPV4), None),
    (binary(0x20, 0x11, b""), None),
    (binary(0x20, 0xFF, b""), None),
    (binary(0x21, 0x00, b"anything"), None),
    (binary(0x21, 0x12, IPV4), None),
    (binary(0x21, 0x31, bytes(216)), None),
]


@pytest.mark.parametrize(("header", "address"), HEADERS)
def test_a_header_is_read_and_nothing_behind_it(header: bytes, address: NetAddress | None):
    if b"255.255" in header:
        address = NetAddress("255.255.255.255", 65_535)
    expected = ProxyHeader(len(header), address, header[12:13] == b"\x20")
    assert read_proxy_header(header) == expected
    assert read_proxy_header(memoryview(header + b"\r\nPROXY ")) == expected


@pytest.mark.parametrize("header", [header for header, _ in HEADERS])
def test_a_part_of_a_header_is_waited_for(header: bytes):
    assert all(read_proxy_header(header[:end]) is None for end in range(len(header)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x0a\0\x01\0hello!", r"the connection begins with b'\n\x00\x01\x00hello!'"),
        (b"GET / HTTP/1.1\r\nHost: games.example\r\n", "begins with b'GET / HTTP/1.1"),
        (b"PROXX", "begins with b'PROXX'"),
        (SIGNATURE[:-1] + b"\r", "begins with"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "the line is b'PROXY TCP4 1.2.3.4 1.2.3'..."),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.400 1.2.3.4 1 2\r\n", "the line is"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n", "the line is"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "the line is"),
        (b"PROXY TCP6 fe80::1%eth0 fe80::1 1 2\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "the line is"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "the line is"),
        (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "the line is"),
        (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "the line is"),
        (b"PROXY TCP4 \xff 1.2.3.4 1 2\r\n", "the line is"),
        (b"PROXY \r\n", "the line is b'PROXY '"),
        (b"PROXY UNKNOWN " + b"x" * 93, "no end of the line in 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "no end of the line in 107 bytes"),
        (binary(0x11, 0x11, IPV4), "version and command are 0x11, not 0x20 or 0x21"),
        (binary(0x22, 0x11, IPV4), "version and command are 0x22"),
        (binary(0x21, 0x41, IPV4), "family and protocol are 0x41, which is undefined"),
        (binary(0x21, 0x13, IPV4)[:16], "family and protocol are 0x13"),
        (binary(0x21, 0x11, IPV4[:-1]), "family 0x11 in 11 bytes, not 12"),
        (binary(0x21, 0x21, IPV4), "family 0x21 in 12 bytes, not 36"),
        (binary(0x21, 0x11, bytes(4_081))[:16], "it has 4097 bytes, more than 4096"),
        (binary(0x20, 0x00, bytes(65_535))[:16], "it has 65551 bytes, more than 4096"),
    ],
)
def test_what_is_no_header_is_told_with_what_it_is(data: bytes, told: str):
    with pytest.raises(ProxyHeaderError) as raised:
        read_proxy_header(data)
    assert told in str(raised.value)


def test_the_longest_line_is_read():
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert read_proxy_header(line) == ProxyHeader(107, None)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]),
    st.binary(max_size=300),
)
def test_whatever_comes_is_a_header_a_part_of_one_or_none(front: bytes, rest: bytes):
    data = front + rest
    try:
        header = read_proxy_header(data)
    except ProxyHeaderError:
        return
    if header is None:
        assert len(data) < HEADER_BYTES_MAX
    else:
        assert read_proxy_header(data[: header.num_bytes]) == header


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_both_versions_say_the_same(host: object, port: int):
    family, code = (b"TCP4", 0x11) if "." in str(host) and ":" not in str(host) else (b"TCP6", 0x21)
    packed = host.packed  # type: ignore[attr-defined]
    text = str(host).encode()
    line = b"PROXY %b %b %b %d 1\r\n" % (family, text, text, port)
    body = packed + packed + port.to_bytes(2, "big") + b"\0\x01"
    first, second = read_proxy_header(line), read_proxy_header(binary(0x21, code, body))
    assert first is not None
    assert second is not None
    own = getattr(host, "ipv4_mapped", None) or host
    assert first.address == second.address == NetAddress(str(own), port)
