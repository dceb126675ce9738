"""The note of one incarnation: what its worker has in hand, readable also after it was killed.

A small file in the run directory, made and mapped by the gateway, mapped and written by the
worker. Words of 8 bytes, from the start of the file:

    0   the call in hand: 0 for none; for a record, its position in the upper bits and the
        packet's index in the lower 16; for a resumed session, the top bit and a number that
        differs from call to call
    8   since when, in nanoseconds of `time.monotonic`, which all processes of a machine share
    16  the session, for a resumed one

A reader never misreads a note, though the writer may be killed between any two stores. Each word
is written by `memoryview.cast("Q")[i] = value` only, which is one aligned store, so no word is
ever half written (`struct.pack_into` zeroes its target first). The first word alone is the whole
note of a record: kind, session and packet follow from the position. What it does not hold, time
and session, is written only while it is 0: whoever finds a call in it finds what belongs to it
behind it, because a killed writer's stores are those before the kill, in the order in which the
program made them. And no value is ever written twice in one life, so a reader of a living writer
that finds the same call before and after the other words has read what belongs together. (Only
that last case rests on the order in which another processor sees stores, which x86-64 keeps; on a
weaker one it is `for_s` of `cluster status` that may be wrong.)

The time is that of the chunk or the publish that the call follows, whichever is later: a call that
begins more than a publish's age after it does not happen, and a packet costs one store.
"""

import errno
import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "CALL",
    "INDEX_BITS",
    "INDEX_MASK",
    "NOTE_BYTES",
    "SEVERAL",
    "HandlerCall",
    "NoteReader",
    "NoteWriter",
    "create_note",
    "open_note",
]

NOTE_BYTES = 4096
"""One page: less cannot be mapped."""

CALL = 0
"""The word of the call in hand."""

INDEX_BITS = 16
"""A record counts its packets in 16 bits. That leaves 47 bits for positions: four years of a
million records a second."""

_SINCE, _SESSION = 1, 2
_RESUMED = 1 << 63
INDEX_MASK = (1 << INDEX_BITS) - 1

SEVERAL = INDEX_MASK
"""In the place of the index: all packets of the record are in hand together. No packet has it, as
a record has no more than 65,535."""

_ATTEMPTS = 100
"""Readings of a note that changes all the time; then what is in hand is so only for moments."""


class HandlerCall(NamedTuple):
    """One call of a handler, the same in every life that makes it again.

    Of packet `packet_index` of the record at `position`, or `SEVERAL`, of the whole record if it is
    no record of packets; of `on_resumed` for `session` if `position` is 0.
    """

    position: int
    packet_index: int = 0
    session: int = 0

    @property
    def is_resumption(self) -> bool:
        """Whether it is a call of `on_resumed`."""
        return self.position == 0


class NoteWriter:
    """The worker's end. For the loop's thread.

    For a record it is written by `words[CALL] = position << INDEX_BITS | packet_index`, after
    `begin`, and needs no `clear` before the next.
    """

    __slots__ = ("_resumed_count", "words")

    def __init__(self, buffer: bytearray | mmap.mmap | None = None) -> None:
        """Write to `buffer`, which is of `NOTE_BYTES`; without one, where nobody reads it."""
        self.words = memoryview(bytearray(NOTE_BYTES) if buffer is None else buffer).cast("Q")
        self._resumed_count = 0

    def begin(self) -> None:
        """Nothing is in hand, and what comes next begins about now."""
        self.words[CALL] = 0
        self.words[_SINCE] = time.monotonic_ns()

    def resuming(self, session: int) -> None:
        """`on_resumed` of `session` is in hand from now on."""
        self.begin()
        self.words[_SESSION] = session
        self._resumed_count += 1
        self.words[CALL] = _RESUMED | self._resumed_count

    def doing(self, call: HandlerCall) -> None:
        """`call` is in hand from now on, whichever it is."""
        if call.is_resumption:
            self.resuming(call.session)
        else:
            self.begin()
            self.words[CALL] = call.position << INDEX_BITS | call.packet_index

    def clear(self) -> None:
        """Nothing is in hand."""
        self.words[CALL] = 0


class NoteReader:
    """The gateway's end. To be read at any time, whatever became of the writer."""

    __slots__ = ("_map", "_words")

    def __init__(self, memory: mmap.mmap) -> None:
        """Read `memory`, which is the reader's from now on."""
        self._map = memory
        self._words = memoryview(memory).cast("Q")

    def read(self) -> tuple[HandlerCall, float] | None:
        """Return the call in hand and for how many seconds it has been, None without one."""
        words = self._words
        for _ in range(_ATTEMPTS):
            call = words[CALL]
            if call == 0:
                return None
            since_ns, session = words[_SINCE], words[_SESSION]
            if words[CALL] == call:
                for_s = max(0, time.monotonic_ns() - since_ns) / 1e9
                if call & _RESUMED:
                    return HandlerCall(0, 0, session), for_s
                return HandlerCall(call >> INDEX_BITS, call & INDEX_MASK), for_s
        return None

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._words.release()
        self._map.close()


def create_note(path: Path) -> NoteReader:
    """Make the note at `path`, with all its room, and return the gateway's end of it.

    Raises OSError, and leaves nothing, where there is no room for it.
    """
    with path.open("x+b", buffering=0) as file:
        try:
            # Written and not only reserved: a page that a full disk cannot give would kill the
            # worker that touches it.
            if file.write(bytes(NOTE_BYTES)) != NOTE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            memory = mmap.mmap(file.fileno(), NOTE_BYTES)
        except (OSError, ValueError):
            file.close()
            path.unlink()
            raise
    return NoteReader(memory)


def open_note(path: Path) -> NoteWriter:
    """Return the worker's end of the note at `path`; raises OSError."""
    with path.open("r+b") as file:
        try:
            return NoteWriter(mmap.mmap(file.fileno(), NOTE_BYTES))
        except ValueError as error:
            raise OSError(f"{path} is no note: {error}") from None
