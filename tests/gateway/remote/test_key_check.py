"""What ZeroMQ is answered when it asks whose key it is."""

import pytest
from zmq.utils import z85

from cluster.gateway.remote.key_check import answer
from cluster.shared.remote_endpoints import ZAP_DOMAIN

KEY = bytes(range(32))
KNOWN = {z85.encode(KEY): "berlin"}


def request(*credentials: bytes, domain: bytes = ZAP_DOMAIN, mechanism: bytes = b"CURVE"):
    return [b"1.0", b"7", domain, b"10.0.0.2", b"", mechanism, *credentials]


def test_a_known_key_is_let_in_under_its_name():
    assert answer(request(KEY), KNOWN.get) == [b"1.0", b"7", b"200", b"OK", b"berlin", b""]


@pytest.mark.parametrize(
    "asked",
    [
        request(bytes(32)),
        request(),
        request(KEY, KEY),
        request(KEY, domain=b""),
        request(mechanism=b"NULL"),
        request(b"berlin", b"password", mechanism=b"PLAIN"),
        request(KEY, mechanism=b"NULL"),
    ],
)
def test_whoever_else_asks_is_not(asked: list[bytes]):
    version, sequence, status, _, name, _ = answer(asked, KNOWN.get)
    assert (version, sequence, status, name) == (b"1.0", b"7", b"400", b"")
