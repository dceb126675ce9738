"""Files that hold a secret: their owner has them, its group may read them, and nobody else."""

import os
import stat
from pathlib import Path

__all__ = ["PrivateFileError", "find_open_mode", "read_private_file"]


class PrivateFileError(Exception):
    """A file cannot be read, or is not private. The message is one line with the remedy."""


def find_open_mode(path: Path, mode: int) -> str | None:
    """Return why a file of `mode` at `path` is not private, with the remedy; None if it is.

    Its group may read it, as containers need that do not run as its owner. Windows has no modes.
    """
    if os.name != "posix" or not mode & (stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO):
        return None
    return f"others may read or write it (mode {stat.S_IMODE(mode):o}); chmod 600 {path}"


def read_private_file(key: str, path: Path, size_max: int, remedy: str = "") -> bytes:
    """Return what the file at `path`, the value of the configuration's `key`, holds.

    At most `size_max` bytes and one more, by which the caller knows that there are too many.
    `remedy` is for a file that cannot be read. Raises PrivateFileError.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(size_max + 1)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        told = f"cannot be read ({why})" + (f"; {remedy}" if remedy else "")
        raise PrivateFileError(f"{key} = {path}: {told}") from None
    if reason := find_open_mode(path, mode):
        raise PrivateFileError(f"{key} = {path}: {reason}")
    return data
