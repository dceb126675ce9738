"""Why a worker could not start, left in the run directory for its supervisor to tell.

What keeps one worker from starting mostly keeps all of them, and their user wants to read it
once. So a worker that has a supervisor leaves its words there instead of saying them.
"""

import contextlib

import msgspec

from cluster.shared.run_directory import RunDirectory, RunDirectoryError

__all__ = ["read_start_failure", "write_start_failure"]


class _StartFailure(msgspec.Struct, frozen=True):
    pid: int
    text: str


def write_start_failure(run_directory: RunDirectory, role: str, pid: int, text: str) -> None:
    """Leave the words of process `pid`, started as `role`; raises RunDirectoryError.

    `role` is `worker-` or `spare-` and a number: of two processes of one role at most one lives.
    """
    run_directory.write_json(_name(role), _StartFailure(pid, text))


def read_start_failure(run_directory: RunDirectory, role: str, pid: int) -> str | None:
    """Return the words of process `pid`, None if it left none that can be read.

    They are there once: a spare's name is not used again, so its file would stay.
    """
    try:
        found = run_directory.read_json(_name(role), _StartFailure)
    except RunDirectoryError:
        return None
    if found is None or found.pid != pid:
        return None
    with contextlib.suppress(RunDirectoryError):  # it may stay
        run_directory.remove(_name(role))
    return found.text


def _name(role: str) -> str:
    return f"{role}-failure.json"
