"""The way of the log to standard error, on which nobody waits.

A pipe whose reader stands still takes nothing more once it is full, and who writes waits for as
long as that takes: gateway, workers and supervisor would all stand still with a log collector. So
what is not taken at once is dropped, and how much that was is told as soon as a line is taken
again.

That asks for a write that does not wait on a descriptor that others share, which is there on Linux,
for pipes and sockets. What else there is, such as a terminal or a file, is written to as ever. Some
filesystems (XFS, btrfs) know such a write for their files as well, and refuse nearly every line.
"""

import errno
import io
import logging
import os
import stat
import sys
from typing import TextIO

__all__ = ["StderrHandler"]

_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE})
"""What a descriptor answers for which there is no write that does not wait."""

_PIECE_BYTES = 4_096
"""What a pipe takes whole or not at all (PIPE_BUF on Linux)."""


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, by its descriptor if that can be done without waiting.

    For all threads, as every handler of `logging`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`, which is standard error by default."""
        self._descriptor = -1
        self._rest = b""
        self._dropped = 0
        super().__init__(stream if stream is not None else sys.stderr)
        self._look_at_stream()

    def setStream(self, stream: TextIO) -> TextIO | None:
        """Write to `stream` from now on."""
        before = super().setStream(stream)
        self._look_at_stream()
        return before

    def _look_at_stream(self) -> None:
        self._descriptor, self._rest, self._dropped = -1, b"", 0
        if sys.platform == "linux":
            try:
                descriptor = self.stream.fileno()
                kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
                if kind in (stat.S_IFIFO, stat.S_IFSOCK):
                    self._descriptor = descriptor
            except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
                pass  # nothing that could be waited for, for example under test

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or drop it; raises nothing."""
        if self._descriptor < 0:
            super().emit(record)
            return
        try:
            line = self._encode(record)
            if self._dropped:
                line = self._encode(self._note_of_dropped()) + line
        except Exception:
            self.handleError(record)
            return
        try:
            is_taken = self._write_now(line)
        except OSError as error:
            if error.errno in _NOT_HERE:
                self._descriptor = -1
                super().emit(record)
                return
            is_taken = False  # a reader that has left, for example
        self._dropped = 0 if is_taken else self._dropped + 1

    def _encode(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + self.terminator).encode(errors="backslashreplace")

    def _note_of_dropped(self) -> logging.LogRecord:
        message = "%d lines of the log were dropped: standard error took nothing"
        return logging.LogRecord(
            "cluster.log", logging.WARNING, __file__, 0, message, (self._dropped,), None
        )

    def _write_now(self, line: bytes) -> bool:
        """Write `line` behind the rest of the one before, as far as that is taken at once.

        Whether any of it was: its rest is kept then, so that no line is cut. Raises OSError.
        """
        self._rest = self._rest[self._write_lines(self._rest) :]
        if self._rest:
            return False
        count = self._write_lines(line)
        if count:
            self._rest = line[count:]
        return count > 0

    def _write_lines(self, data: bytes) -> int:
        """Write as much of `data` as is taken at once, and return how many bytes. Raises OSError.

        Other processes may write in between, but only between two lines.
        """
        done = 0
        while done < len(data):
            end = data.rfind(b"\n", done, done + _PIECE_BYTES) + 1 or done + _PIECE_BYTES
            piece = data[done:end]
            try:
                count = _write(self._descriptor, piece)
            except BlockingIOError:
                break
            done += count
            if count < len(piece):
                break
        return done


def _write(descriptor: int, data: bytes) -> int:
    """Write what is taken of `data` without waiting, and return how much. Raises OSError."""
    if sys.platform == "linux":
        return os.pwritev(descriptor, [data], -1, os.RWF_NOWAIT)
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
