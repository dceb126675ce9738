"""Why a worker could not start, left in the run directory for its supervisor to tell.

What keeps one worker from starting mostly keeps all of them, and their user wants to read it
once. So a worker that has a supervisor leaves its words there instead of saying them.
"""

import contextlib

import msgspec

from cluster.shared.run_directory import RunDirectory, RunDirectoryError

__all__ = ["StartFailure", "read_start_failure", "write_start_failure"]


class StartFailure(msgspec.Struct, frozen=True):
    """The words of process `pid`.

    `traceback` is what the application raised, if it did. `line` says what cannot be, and how to
    remedy it; `summary`, shorter, what was raised and in which line of which file.
    """

    pid: int
    line: str
    traceback: str = ""
    summary: str = ""

    @property
    def text(self) -> str:
        """Everything, as a person reads it, with a newline at the end."""
        return f"{self.traceback}{self.line}\n"


def write_start_failure(run_directory: RunDirectory, role: str, failure: StartFailure) -> None:
    """Leave the words of a process that was started as `role`; raises RunDirectoryError.

    `role` is `worker-` or `spare-` and a number: of two processes of one role at most one lives.
    """
    run_directory.write_json(_name(role), failure)


def read_start_failure(run_directory: RunDirectory, role: str, pid: int) -> StartFailure | None:
    """Return the words of process `pid`, None if it left none that can be read.

    They are there once: a spare's name is not used again, so its file would stay.
    """
    try:
        found = run_directory.read_json(_name(role), StartFailure)
    except RunDirectoryError:
        return None
    if found is None or found.pid != pid:
        return None
    with contextlib.suppress(RunDirectoryError):  # it may stay
        run_directory.remove(_name(role))
    return found


def _name(role: str) -> str:
    return f"{role}-failure.json"
