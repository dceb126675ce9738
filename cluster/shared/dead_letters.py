"""What was set aside because workers died of it: one JSON object a line, in the run directory.

The gateway writes them, anybody may read them; a line counts when its end is there.
"""

import msgspec

from cluster.shared.process import read_file
from cluster.shared.run_directory import RunDirectory, RunDirectoryError

__all__ = ["DEAD_LETTERS", "DeadLetter", "read_dead_letters"]

DEAD_LETTERS = "dead-letters.jsonl"
"""The file in the run directory."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One handler call that was set aside. Those of a session's own events have no packet."""

    time: str
    """When it was set aside: UTC, ISO 8601."""
    node: int
    epoch: int
    shard: int
    session: int
    address: str
    kind: str
    """packet, opened, closed, bound, joined, send_blocked, send_ready, message, undelivered, keys
    or resumed.

    A message is of no session (0); its address is the shard that it is from.
    """
    packet_id: int | None
    sequence: int | None
    payload: bytes | None
    """In the file, base64."""
    deaths: int


def read_dead_letters(run_directory: RunDirectory) -> list[tuple[str, DeadLetter]]:
    """Return the lines of the file and what they say, oldest first; none without a file.

    Lines that are none, which only another program can have written, are left out. Raises
    RunDirectoryError when there is no run directory, or the file cannot be read.
    """
    if not run_directory.exists():
        raise RunDirectoryError(
            f"run directory {run_directory.path} does not exist: pass the node's --run-dir"
        )
    path = run_directory.path / DEAD_LETTERS
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(
            f"{path} cannot be read ({error.strerror}): look at its file system"
        ) from None
    letters: list[tuple[str, DeadLetter]] = []
    for line in data.split(b"\n")[:-1]:
        try:
            letters.append((line.decode(), msgspec.json.decode(line, type=DeadLetter)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return letters
