"""Why a worker could not start, left in the run directory for its supervisor to tell.

What keeps one worker from starting mostly keeps all of them, and their user wants to read it
once. So a worker that has a supervisor leaves its words there instead of saying them.
"""

import msgspec

from cluster.shared.run_directory import RunDirectory, RunDirectoryError

__all__ = ["read_start_failure", "write_start_failure"]


class _StartFailure(msgspec.Struct, frozen=True):
    pid: int
    text: str


def write_start_failure(run_directory: RunDirectory, shard: int, pid: int, text: str) -> None:
    """Leave the words of process `pid`, a worker of `shard`; raises RunDirectoryError."""
    run_directory.write_json(_name(shard), _StartFailure(pid, text))


def read_start_failure(run_directory: RunDirectory, shard: int, pid: int) -> str | None:
    """Return the words of process `pid`, None if it left none that can be read."""
    try:
        found = run_directory.read_json(_name(shard), _StartFailure)
    except RunDirectoryError:
        return None
    return found.text if found is not None and found.pid == pid else None


def _name(shard: int) -> str:
    return f"worker-{shard}-failure.json"
