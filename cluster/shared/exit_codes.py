"""The exit codes that a supervisor reads, and the processes that it starts end with.

The others, which tell a person or a script how a command has ended, stand where they are given;
docs/configuration.md has all of them.
"""

__all__ = ["CANNOT_START", "LOST_GATEWAY", "TRY_AGAIN", "exit_code_of"]

LOST_GATEWAY = 1
"""Of a worker that lost its gateway, or was fenced; others may mean something else by it."""

CANNOT_START = 2
"""Of a process that found that it cannot start, and has told why."""

TRY_AGAIN = 75
"""Of a worker whose gateway had no memory or no descriptors for it, or whose predecessor on
another machine may still live: it may be started again a moment later. EX_TEMPFAIL of sysexits.h.
"""


def exit_code_of(error: SystemExit) -> int:
    """Return the code with which the interpreter would end for `error`."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1
