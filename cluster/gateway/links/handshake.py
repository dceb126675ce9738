"""How two nodes prove to each other that they know the secret of the cluster. No I/O, no clock.

    dialler   → greeting (who I am, whom I want, my life, 32 random bytes)
    answerer  → greeting (the same of its own)
    dialler   → proof    (HMAC of both greetings)
    answerer  → proof    (HMAC of both greetings, in its own role)

Every message has a fixed size, and none is read before the one before it has been found right.
The dialler proves first, so that a stranger who knocks gets nothing that it could work on. Both
greetings are under both proofs: a proof is worth nothing on another connection, in the other
direction, between other nodes, in another life or under another protocol version. What is sent
behind the handshake is sealed with keys that come of the secret and both greetings as well.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import NamedTuple

__all__ = [
    "GREETING_BYTES",
    "LINK_PROTOCOL",
    "PROOF_BYTES",
    "Handshake",
    "LinkIdentity",
    "LinkRefusal",
    "LinkRefusedError",
    "Peer",
    "SealKeys",
]

LINK_PROTOCOL = 3
"""Raised by one with every change that an older node would misread."""

_MAGIC = b"IOCPLINK"
_PREFIX = Struct("<8sH")
_GREETING = Struct("<8sHHH16sQ32s")
"""magic, protocol, node, the node it wants, digest of the cluster's name, life, random bytes"""
GREETING_BYTES = _GREETING.size
_NONCE_BYTES = 32
PROOF_BYTES = hashlib.sha256().digest_size

_DIALLER = b"iocp-cluster link, dialler"
_ANSWERER = b"iocp-cluster link, answerer"
_OF_DIALLER = b"iocp-cluster link, frames of the dialler"
_OF_ANSWERER = b"iocp-cluster link, frames of the answerer"


class LinkRefusal(StrEnum):
    """Why a node was not let in; each is a counter, `links_refused_...`."""

    STRANGER = "stranger"
    """What came is no greeting."""
    PROTOCOL = "protocol"
    """A node of another protocol version."""
    CLUSTER = "cluster"
    """A node of another cluster."""
    NODE = "node"
    """A node that is not in the list, that wants another one, or should wait to be called."""
    PROOF = "proof"
    """Another secret, or a proof that was seen on another connection."""
    TIMEOUT = "timeout"
    """It did not finish in time."""
    CROWDED = "crowded"
    """It had not finished when too many others knocked."""
    GONE = "gone"
    """It left before it had finished."""


class LinkRefusedError(Exception):
    """The peer is not let in; `refusal` is the class of reason, the message says more."""

    def __init__(self, refusal: LinkRefusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class LinkIdentity:
    """What a node tells and proves."""

    node: int
    life: int
    """A random number of 64 bits; another one is another life of that node."""
    cluster: str
    secret: bytes

    @property
    def cluster_digest(self) -> bytes:
        """What stands for the cluster's name in a greeting of fixed size."""
        return hashlib.sha256(b"iocp-cluster name\0" + self.cluster.encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that has proved itself."""

    node: int
    life: int


class SealKeys(NamedTuple):
    """The keys of one connection, each for what one side sends."""

    ours: bytes
    theirs: bytes


class Handshake:
    """One side of one connection's handshake. Feed it what `expected_bytes` asks for.

    `peer` is set once the other side has proved itself; nothing else of it may be believed
    before.
    """

    __slots__ = (
        "_claimed",
        "_identity",
        "_life_for",
        "_ours",
        "_theirs",
        "_wanted",
        "expected_bytes",
        "life",
        "peer",
    )

    def __init__(
        self,
        identity: LinkIdentity,
        wanted: int | None,
        known: frozenset[int] = frozenset(),
        life_for: Callable[[int], int] | None = None,
    ) -> None:
        """Begin as the dialler of the node `wanted`, or, if that is None, as the answerer.

        An answerer lets in the nodes of `known` with a smaller id than its own. `life_for` says
        which life a node is told; by default each is told that of `identity`.
        """
        self._identity = identity
        self._life_for = life_for
        self.life = 0
        """The life that this side has told; 0 before it has."""
        self._wanted = wanted
        self._claimed = known if wanted is None else frozenset({wanted})
        self._ours = b"" if wanted is None else self._greeting(wanted)
        self._theirs = b""
        self.expected_bytes = GREETING_BYTES
        self.peer: Peer | None = None

    @property
    def is_dialler(self) -> bool:
        """Whether this side speaks first."""
        return self._wanted is not None

    @property
    def is_last(self) -> bool:
        """Whether the message that is expected is the peer's last."""
        return bool(self._theirs)

    def begin(self) -> bytes:
        """Return what to send when the connection stands; empty for an answerer."""
        return self._ours

    def seal_keys(self) -> SealKeys:
        """Return the keys for what is sent behind the handshake, once there is a `peer`."""
        assert self.peer is not None
        of_dialler, of_answerer = self._sign(_OF_DIALLER), self._sign(_OF_ANSWERER)
        if self.is_dialler:
            return SealKeys(of_dialler, of_answerer)
        return SealKeys(of_answerer, of_dialler)

    def take(self, message: bytes) -> bytes:
        """Take the next message of the peer, of `expected_bytes`; return what to answer.

        Raises LinkRefusedError; the connection is then to be aborted without a word.
        """
        assert self.peer is None
        assert len(message) == self.expected_bytes
        if not self._theirs:
            return self._take_greeting(message)
        return self._take_proof(message)

    def _greeting(self, wanted: int) -> bytes:
        mine = self._identity
        self.life = mine.life if self._life_for is None else self._life_for(wanted)
        return _GREETING.pack(
            _MAGIC,
            LINK_PROTOCOL,
            mine.node,
            wanted,
            mine.cluster_digest,
            self.life,
            secrets.token_bytes(_NONCE_BYTES),
        )

    def _take_greeting(self, message: bytes) -> bytes:
        magic, protocol = _PREFIX.unpack_from(message)
        if magic != _MAGIC:
            raise LinkRefusedError(LinkRefusal.STRANGER, "it does not speak the links' protocol")
        if protocol != LINK_PROTOCOL:
            raise LinkRefusedError(
                LinkRefusal.PROTOCOL,
                f"it speaks link protocol {protocol}, this node {LINK_PROTOCOL}; run the same "
                "version of iocp-cluster on all nodes",
            )
        _, _, node, wanted, digest, _, _ = _GREETING.unpack(message)
        mine = self._identity
        if digest != mine.cluster_digest:
            raise LinkRefusedError(
                LinkRefusal.CLUSTER,
                f"node {node} belongs to another cluster than {mine.cluster!r}; links.cluster "
                "must be the same everywhere",
            )
        self._check_nodes(node, wanted)
        self._theirs = message
        self.expected_bytes = PROOF_BYTES
        if self.is_dialler:
            return self._sign(_DIALLER)
        self._ours = self._greeting(node)
        return self._ours

    def _check_nodes(self, node: int, wanted: int) -> None:
        mine = self._identity.node
        if wanted != mine:
            raise LinkRefusedError(
                LinkRefusal.NODE, f"node {node} wants node {wanted}, and this is node {mine}"
            )
        if node not in self._claimed:
            raise LinkRefusedError(
                LinkRefusal.NODE,
                f"node {node} is there, and not node {self._wanted}"
                if self.is_dialler
                else f"node {node} is not one that this node knows, by links.nodes or from etcd",
            )
        if not self.is_dialler and node >= mine:
            raise LinkRefusedError(
                LinkRefusal.NODE, f"node {node} has the greater id and should wait to be called"
            )

    def _take_proof(self, message: bytes) -> bytes:
        role = _ANSWERER if self.is_dialler else _DIALLER
        _, _, node, _, _, life, _ = _GREETING.unpack(self._theirs)
        if not hmac.compare_digest(message, self._sign(role)):
            raise LinkRefusedError(
                LinkRefusal.PROOF, f"node {node} does not know the secret of this cluster"
            )
        self.peer = Peer(node, life)
        self.expected_bytes = 0
        return b"" if self.is_dialler else self._sign(_ANSWERER)

    def _sign(self, label: bytes) -> bytes:
        """Return what only those who know the secret can make of both greetings and `label`."""
        first, second = (
            (self._ours, self._theirs) if self.is_dialler else (self._theirs, self._ours)
        )
        return hmac.digest(self._identity.secret, label + b"\0" + first + second, "sha256")
