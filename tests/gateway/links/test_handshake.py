"""The handshake of two nodes: who gets in, who does not, and that nothing old is worth anything."""

import hashlib
import hmac
import struct

import pytest

from cluster.gateway.links.handshake import (
    GREETING_BYTES,
    LINK_PROTOCOL,
    PROOF_BYTES,
    Handshake,
    LinkIdentity,
    LinkRefusal,
    LinkRefusedError,
    Peer,
)

SECRET = b"a secret of the cluster, 32 bytes"


def identity(node: int, *, cluster: str = "game", secret: bytes = SECRET) -> LinkIdentity:
    return LinkIdentity(node, 1000 + node, cluster, secret)


def pair(
    dialler: LinkIdentity | None = None, answerer: LinkIdentity | None = None
) -> tuple[Handshake, Handshake]:
    answerer = answerer or identity(2)
    known = frozenset({1, 2, 3})
    return Handshake(dialler or identity(1), 2), Handshake(answerer, None, known)


def refusal(handshake: Handshake, message: bytes) -> LinkRefusal:
    with pytest.raises(LinkRefusedError) as refused:
        handshake.take(message)
    assert handshake.peer is None
    assert str(refused.value)
    return refused.value.refusal


def test_two_nodes_with_the_same_secret_know_each_other():
    dialler, answerer = pair()
    assert answerer.begin() == b""
    greeting = dialler.begin()
    assert len(greeting) == GREETING_BYTES == answerer.expected_bytes
    proof = dialler.take(answerer.take(greeting))
    assert len(proof) == PROOF_BYTES == answerer.expected_bytes
    assert answerer.peer is None
    last = answerer.take(proof)
    assert answerer.peer == Peer(1, 1001)
    assert dialler.peer is None
    assert dialler.is_last
    assert dialler.take(last) == b""
    assert dialler.peer == Peer(2, 1002)


@pytest.mark.parametrize("side", ["dialler", "answerer"])
def test_another_secret_is_refused_by_whoever_sees_its_proof(side: str):
    stranger = identity(1 if side == "dialler" else 2, secret=b"x" * 32)
    dialler, answerer = pair(**{side: stranger})
    proof = dialler.take(answerer.take(dialler.begin()))
    if side == "dialler":
        assert refusal(answerer, proof) is LinkRefusal.PROOF
    else:
        # It cannot check the proof, so it answers with one of its own making.
        assert refusal(dialler, bytes(PROOF_BYTES)) is LinkRefusal.PROOF


def test_a_proof_is_worth_nothing_on_another_connection():
    dialler, answerer = pair()
    greeting = dialler.begin()
    proof = dialler.take(answerer.take(greeting))
    answerer.take(proof)
    assert answerer.peer is not None
    second = Handshake(identity(2), None, frozenset({1}))
    second.take(greeting)
    assert refusal(second, proof) is LinkRefusal.PROOF


def test_a_proof_cannot_be_sent_back():
    """A stranger that plays the answerer returns the dialler's own proof."""
    dialler, answerer = pair()
    proof = dialler.take(answerer.take(dialler.begin()))
    assert refusal(dialler, proof) is LinkRefusal.PROOF


def test_a_greeting_cannot_be_sent_back():
    dialler, _ = pair()
    assert refusal(dialler, dialler.begin()) is LinkRefusal.NODE


@pytest.mark.parametrize("offset", [8, 20, 30, 40, 60, GREETING_BYTES - 1])
def test_whatever_is_changed_on_the_way_is_noticed(offset: int):
    dialler, answerer = pair()
    greeting = bytearray(dialler.begin())
    greeting[offset] ^= 1
    try:
        reply = answerer.take(bytes(greeting))
    except LinkRefusedError:
        return
    proof = dialler.take(reply)
    assert refusal(answerer, proof) is LinkRefusal.PROOF


@pytest.mark.parametrize(
    ("dialler", "wanted", "expected"),
    [
        (identity(1, cluster="shop"), 2, LinkRefusal.CLUSTER),
        (identity(1), 3, LinkRefusal.NODE),
        (identity(0), 2, LinkRefusal.NODE),  # not in the list
        (identity(3), 2, LinkRefusal.NODE),  # should wait to be called
        (identity(2), 2, LinkRefusal.NODE),  # itself
    ],
)
def test_a_node_that_does_not_belong_here_is_refused(
    dialler: LinkIdentity, wanted: int, expected: LinkRefusal
):
    answerer = Handshake(identity(2), None, frozenset({1, 2, 3}))
    assert refusal(answerer, Handshake(dialler, wanted).begin()) is expected


def test_a_caller_that_is_not_known_yet_is_refused_without_blame_for_a_list():
    """With etcd there is no list: a node that has just begun does not know its callers."""
    answerer = Handshake(identity(2), None, frozenset())
    with pytest.raises(LinkRefusedError, match=r"node 1 is not one .* from etcd"):
        answerer.take(Handshake(identity(1), 2).begin())


def test_another_node_than_the_one_that_was_called_is_refused():
    """Its address is now that of another one, which knows the secret as well."""
    dialler, _ = pair()
    other = Handshake(identity(3), 1).begin()
    assert refusal(dialler, other) is LinkRefusal.NODE


def test_greetings_and_proofs_are_what_nodes_of_the_same_protocol_expect():
    """Whatever changes here is a change that an older node would misread: LINK_PROTOCOL says so."""
    dialler, answerer = pair()
    greeting = dialler.begin()
    reply = answerer.take(greeting)
    cluster = hashlib.sha256(b"iocp-cluster name\0game").digest()[:16]
    for said, node, wanted in [(greeting, 1, 2), (reply, 2, 1)]:
        head, life = struct.pack("<8sHHH", b"IOCPLINK", 3, node, wanted), 1000 + node
        assert said[:-32] == head + cluster + struct.pack("<Q", life)
    proof = dialler.take(reply)
    last = answerer.take(proof)
    dialler.take(last)
    for said, side, name in [(proof, dialler, b"dialler"), (last, answerer, b"answerer")]:
        for made, label in [(said, b""), (side.seal_keys().ours, b"frames of the ")]:
            signed = b"iocp-cluster link, " + label + name + b"\0" + greeting + reply
            assert made == hmac.digest(SECRET, signed, "sha256")


def test_both_sides_have_the_same_two_keys_for_one_connection_only():
    keys: list[bytes] = []
    for _ in range(2):
        dialler, answerer = pair()
        proof = dialler.take(answerer.take(dialler.begin()))
        dialler.take(answerer.take(proof))
        assert dialler.seal_keys() == answerer.seal_keys()[::-1]
        keys += dialler.seal_keys()
    assert len(set(keys)) == 4


def test_strangers_and_other_versions_are_told_apart():
    dialler, _ = pair()
    greeting = dialler.begin()
    for message, expected in [
        (bytes(GREETING_BYTES), LinkRefusal.STRANGER),
        (b"GET / HTTP/1.1\r\n".ljust(GREETING_BYTES), LinkRefusal.STRANGER),
        (greeting[:8] + (LINK_PROTOCOL + 1).to_bytes(2, "little") + greeting[10:], "protocol"),
    ]:
        answerer = Handshake(identity(2), None, frozenset({1}))
        assert refusal(answerer, message) == expected


def test_no_two_greetings_are_alike():
    assert len({pair()[0].begin() for _ in range(100)}) == 100
