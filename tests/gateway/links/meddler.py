"""A man in the middle: he passes the handshake on as it is, and then does what he likes."""

from collections.abc import Callable
from struct import unpack_from

from cluster.gateway.links.frames import RECORD, make_frame
from cluster.gateway.links.handshake import GREETING_BYTES, PROOF_BYTES
from cluster.gateway.links.seals import SEAL_BYTES, Sealer

__all__ = ["ATTACKS", "Meddler"]

ATTACKED = 4
"""Which sealed piece of a connection is attacked: the links are up by then."""


class Meddler:
    """Changes what a `Relay` passes on (`Relay.change`), on the first `connections` of it."""

    def __init__(self, attack: "Attack", connections: int) -> None:
        self.attacks = 0
        self._attack = attack
        self._connections = connections
        self._ways: dict[tuple[int, bool], _Way] = {}

    def __call__(self, connection: int, is_of_caller: bool, data: bytes) -> bytes:
        if connection > self._connections:
            return data
        way = self._ways.setdefault((connection, is_of_caller), _Way())
        back = self._ways.setdefault((connection, not is_of_caller), _Way())
        way.data += data
        passed = way.data[: way.handshake_left]
        way.handshake_left -= len(passed)
        way.data = way.data[len(passed) :]
        while (piece := way.take_piece()) is not None:
            if len(way.pieces) < ATTACKED or not is_of_caller:
                passed += piece
            else:
                self.attacks += len(way.pieces) == ATTACKED
                passed += self._attack(way, back, piece)
        return passed


class _Way:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.handshake_left = GREETING_BYTES + PROOF_BYTES
        self.data = b""
        self.pieces: list[bytes] = []
        """Each sealed piece that has come."""

    def take_piece(self) -> bytes | None:
        if self.handshake_left or len(self.data) < SEAL_BYTES:
            return None
        length = SEAL_BYTES + unpack_from("<I", self.data)[0]
        if len(self.data) < length:
            return None
        piece, self.data = self.data[:length], self.data[length:]
        self.pieces.append(piece)
        return piece


Attack = Callable[[_Way, _Way, bytes], bytes]
"""Returns what is passed on instead of a piece, the last one of a way; the other one is back."""


def _only_once(attack: Attack) -> Attack:
    def attack_once(way: _Way, back: _Way, piece: bytes) -> bytes:
        return attack(way, back, piece) if len(way.pieces) == ATTACKED else piece

    return attack_once


def _flip(piece: bytes, at: int) -> bytes:
    return piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]


def _swap(way: _Way, back: _Way, piece: bytes) -> bytes:
    """Pass the piece on behind the next one."""
    if len(way.pieces) == ATTACKED:
        return b""
    return piece + way.pieces[-2] if len(way.pieces) == ATTACKED + 1 else piece


_FORGED = make_frame(RECORD, 1, b"forged")

ATTACKS: dict[str, Attack] = {
    "a bit of a frame": _only_once(lambda way, back, piece: _flip(piece, len(piece) - 1)),
    "a bit of a seal": _only_once(lambda way, back, piece: _flip(piece, 10)),
    "the length": _only_once(lambda way, back, piece: _flip(piece, 0)),
    "repeated": _only_once(lambda way, back, piece: piece + piece),
    "the first one repeated": _only_once(lambda way, back, piece: way.pieces[0] + piece),
    "left out": _only_once(lambda way, back, piece: b""),
    "reordered": _swap,
    "sent back": _only_once(lambda way, back, piece: back.pieces[-1] + piece),
    "cut short": _only_once(lambda way, back, piece: piece[:-1]),
    "no seal": _only_once(lambda way, back, piece: _FORGED + piece),
    "a key of his own": _only_once(
        lambda way, back, piece: Sealer(b"another key").seal([_FORGED]) + piece
    ),
}
