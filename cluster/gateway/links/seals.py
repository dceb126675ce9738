"""Seals: what shows that frames come from the peer that has proved itself, as it sent them.

    sealed     u32 bytes of frames, 16 bytes seal, frames

The seal is the keyed BLAKE2b of which one this is, how long the frames are, and the frames. Each
direction of each connection has a key of its own, from the handshake. So frames that somebody on
the way changes, repeats, leaves out, reorders, sends back or makes himself do not fit, and none of
them is taken. Nothing is hidden. What ends a connection is not told by a seal: the positions of
records are there for that.
"""

import hmac
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from cluster.gateway.links.frames import FRAME_BYTES, RECORD_BYTES_MAX
from cluster.gateway.links.link_log import LinkViolation

__all__ = ["SEALED_FILL_BYTES", "SEAL_BYTES", "Opener", "Sealer"]

SEALED_FILL_BYTES = 16_384
"""So many bytes of frames, and the rest of the last one, go under one seal: what is longer begins
to be taken later, and what is shorter costs a digest for less."""

_TAG_BYTES = 16
_HEADER = Struct(f"<I{_TAG_BYTES}s")
SEAL_BYTES = _HEADER.size
_FRAMES_BYTES_MAX = SEALED_FILL_BYTES + FRAME_BYTES + RECORD_BYTES_MAX

_BOUND = Struct("<QI")
"""What is under a seal beside the frames: which one it is in its direction, and their length."""


class Sealer:
    """Seals what one side of a connection sends. For the dispatching thread."""

    __slots__ = ("_count", "_keyed")

    def __init__(self, key: bytes) -> None:
        """Begin with the first one under `key`."""
        self._count = 0
        self._keyed = blake2b(key=key, digest_size=_TAG_BYTES)

    def seal(self, frames: Sequence[bytes]) -> bytes:
        """Return what to send for `frames`: together at most `SEALED_FILL_BYTES` and one more."""
        length = sum(map(len, frames))
        digest = self._keyed.copy()
        digest.update(_BOUND.pack(self._count, length))
        for frame in frames:
            digest.update(frame)
        self._count += 1
        return b"".join((_HEADER.pack(length, digest.digest()), *frames))


class Opener:
    """Opens what the other side has sealed. For the dispatching thread."""

    __slots__ = ("_count", "_keyed")

    def __init__(self, key: bytes) -> None:
        """Begin with the first one under `key`."""
        self._count = 0
        self._keyed = blake2b(key=key, digest_size=_TAG_BYTES)

    def open(self, data: bytes | memoryview) -> tuple[list[bytes], int]:
        """Return the frames of each complete seal in `data`, and how many bytes those are of.

        Raises LinkViolation for a seal that does not fit, and for a length that none has, before
        that has come.
        """
        opened: list[bytes] = []
        offset, end = 0, len(data)
        while end - offset >= SEAL_BYTES:
            length, tag = _HEADER.unpack_from(data, offset)
            if not 0 < length <= _FRAMES_BYTES_MAX:
                raise LinkViolation(f"{length} bytes of frames under one seal")
            first, last = offset + SEAL_BYTES, offset + SEAL_BYTES + length
            if last > end:
                break
            frames = bytes(data[first:last])
            digest = self._keyed.copy()
            digest.update(_BOUND.pack(self._count, length))
            digest.update(frames)
            if not hmac.compare_digest(tag, digest.digest()):
                raise LinkViolation(
                    "a seal does not fit: somebody on the way has changed what it sent"
                )
            self._count += 1
            opened.append(frames)
            offset = last
        return opened, offset
