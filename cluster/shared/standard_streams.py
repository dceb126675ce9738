"""Standard streams that nobody reads, or that are closed, are no reason to end.

A process that was started without them, for example by `cluster up >&- 2>&-`, would get their
numbers for the next files that it opens, and children would write their logs into those: they are
opened on the null device. A stream whose reader has left, or whose disk is full, refuses what is
written: that is lost, and the process goes on.
"""

import atexit
import contextlib
import os
import sys
from typing import NoReturn

__all__ = ["end_at_once", "keep_exit_code", "open_closed_streams", "tell"]


def open_closed_streams() -> None:
    """Give this process, and those that it starts, all three streams; before it opens a file."""
    for fd in range(3):
        if not _is_open(fd):
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
    # They stay open until the process has ended: whatever fails last may want to tell.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def tell(text: str) -> None:
    """Write whole lines to standard error. Never raises: who cannot be told is not told."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def keep_exit_code() -> None:
    """Have this process end with its own exit code whatever becomes of what it has written.

    The interpreter ends with 120 if it cannot write at last what was refused before, and a parent
    could not tell one end from another.
    """
    atexit.register(_drop_what_is_refused)


def end_at_once(exit_code: int) -> NoReturn:
    """End this process with `exit_code`: what it has printed is written, and nothing else done."""
    _drop_what_is_refused()
    os._exit(exit_code)


def _drop_what_is_refused() -> None:
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, fd)
                os.close(null)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
