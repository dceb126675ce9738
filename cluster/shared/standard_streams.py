"""Standard streams that are closed are opened on the null device.

A process that was started without them, for example by `cluster up >&- 2>&-`, would get their
numbers for the next files that it opens, and children would write their logs into those.
"""

import os
import sys

__all__ = ["open_closed_streams"]


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


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
