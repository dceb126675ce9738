"""Appends to the file of dead letters, which is bounded: the oldest lines make room.

A line is written in one go behind the last complete one, so that what a crash has left of a line
is gone with the next. Nothing waits for the disk: lines survive the death of every process, not
the loss of power. Runs on the gateway's thread, where it takes well under a millisecond, and a few
tens of them when room is made.
"""

import logging
import os
from io import FileIO
from pathlib import Path

import msgspec

from cluster.gateway.counters import Counters
from cluster.shared.dead_letters import DEAD_LETTERS, DeadLetter
from cluster.shared.process import replace_file

__all__ = ["DeadLetterFile"]

logger = logging.getLogger("cluster.gateway")

BYTES_MAX = 16 << 20
"""Of the file. Some hundred of the largest packets, tens of thousands of small ones: more than a
person will look at, and nothing to a disk, or to a run directory in memory."""

KEPT = 0.75
"""Part of the bound that is kept when room is made, so that it is not made for each line."""

_MODE = 0o600
"""Of a new file, also where it is copied to: the packets of clients may hold passwords."""


class DeadLetterFile:
    """The dead letters of one run directory, which this process has locked."""

    __slots__ = ("_bytes_max", "_counters", "_path")

    def __init__(self, directory: Path, counters: Counters, bytes_max: int = BYTES_MAX) -> None:
        """Write to the file in `directory`, at most `bytes_max` bytes of it."""
        self._path = directory / DEAD_LETTERS
        self._counters = counters
        self._bytes_max = bytes_max

    def append(self, letter: DeadLetter) -> None:
        """Add `letter`; if it cannot be written, log and count that (`dead_letters_unwritten`)."""
        line = msgspec.json.encode(letter) + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self._counters.add("dead_letters_unwritten")
            logger.error(
                "the dead letter of session %#x cannot be written to %s (%s); it was: %s",
                letter.session,
                self._path,
                error.strerror or error,
                msgspec.json.encode(msgspec.structs.replace(letter, payload=None)).decode(),
            )

    def _append(self, line: bytes) -> None:
        self._path.touch(_MODE)
        with self._path.open("a+b", buffering=0) as file:
            end = _end_of_lines(file)
            file.truncate(end)  # without what a crash has left of a line
            if end + len(line) <= self._bytes_max:
                if file.write(line) != len(line):
                    file.truncate(end)
                    raise OSError("only a part of it could be written")
                return
            file.seek(0)
            lines = file.read(end).splitlines(keepends=True)
        self._rewrite(lines, line)

    def _rewrite(self, lines: list[bytes], line: bytes) -> None:
        """Put `line` behind the newest of `lines`, in a new file."""
        room = int(self._bytes_max * KEPT) - len(line)
        first = len(lines)
        while first > 0 and room >= len(lines[first - 1]):
            first -= 1
            room -= len(lines[first])
        temporary = self._path.with_name(f".{DEAD_LETTERS}.tmp")
        try:
            temporary.touch(_MODE)
            temporary.write_bytes(b"".join(lines[first:]) + line)
            replace_file(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if first:
            self._counters.add("dead_letters_dropped", first)


_TAIL_BYTES = 1 << 17
"""More than the longest line has."""


def _end_of_lines(file: FileIO) -> int:
    """Return where the last complete line of the file ends."""
    start = file.seek(0, os.SEEK_END)
    while start > 0:
        start = max(0, start - _TAIL_BYTES)
        file.seek(start)
        found = file.read(_TAIL_BYTES).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0
