"""Directories that nobody but this user may enter, also under a temporary directory of all.

Whoever owns the directory of a lock file or socket owns the conversation, and in a shared
temporary directory anyone may have been there first. So nothing is used before it is known to be
a directory, ours, and closed to others.
"""

import os
import stat
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster.shared.process import is_owned_by_user, is_private


class RunDirectoryError(Exception):
    """A run directory cannot be used. The message is one line with the value and the remedy."""

    @classmethod
    def of_file(cls, directory: Path, verb: str, name: str, error: OSError) -> Self:
        """Return what is told of the file `name`, which cannot be `verb`, for example `read`."""
        return cls(
            f"run directory {directory}: {name} cannot be {verb} ({error.strerror}): "
            "look at its file system or pass another --run-dir"
        )


@dataclass(frozen=True, slots=True)
class PrivateDirectory:
    """A directory of mode 0700 that belongs to this user, at `path`.

    `purpose` names it in messages. `own_files` are the names of files by which one that was
    filled before is recognised.
    """

    path: Path
    purpose: str
    own_files: AbstractSet[str]

    def make(self) -> None:
        """Create the directory, and those above it, unless it is there and fit for use.

        One of ours that others may enter is closed to them. Raises `RunDirectoryError` if it
        belongs to another user, is a symlink that another may have put there, is no directory,
        or cannot be created or written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except (OSError, ValueError) as error:
            raise self._error(f"cannot be created ({_reason(error)})") from None
        if not is_private(self._trusted_status()):
            self._close_to_others()
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise self._error("is not writable", "make it writable or pass another --run-dir")

    def exists(self) -> bool:
        """Tell whether the directory is there, for those who only look and must not create it.

        Raises `RunDirectoryError` if something is there that this user cannot trust.
        """
        if not os.path.lexists(self.path):
            return False
        if not is_private(self._trusted_status()):
            # As above: what holds nothing of a cluster must not be closed on our word.
            remedy = f"run chmod 700 {self.path}" if self._is_ours() else "pass another --run-dir"
            raise self._error("may be entered by others", remedy)
        return True

    def _is_ours(self) -> bool:
        """Whether it is empty, or has been filled by a cluster."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise self._error(f"cannot be listed ({_reason(error)})") from None
        return not names or bool(names & self.own_files)

    def _trusted_status(self) -> os.stat_result:
        try:
            # What is looked at is what is judged: between two looks another user could put a
            # symlink in the place of a directory of theirs. One of ours they cannot take away.
            status = self.path.lstat()
            if stat.S_ISLNK(status.st_mode):
                if self._others_may_write_beside():
                    raise self._error("is a symlink in a directory where anyone may write")
                status = self.path.stat()
        except OSError as error:
            raise self._error(f"cannot be examined ({_reason(error)})") from None
        if not stat.S_ISDIR(status.st_mode):
            raise self._error("is not a directory")
        if not is_owned_by_user(status):
            raise self._error(f"is owned by another user, uid {status.st_uid}")
        return status

    def _others_may_write_beside(self) -> bool:
        return bool(self.path.parent.stat().st_mode & stat.S_IWOTH)

    def _close_to_others(self) -> None:
        # A slip like `--run-dir /tmp`, as root, must not lock everyone out of it.
        if not self._is_ours():
            raise self._error(
                "may be entered by others and holds files that are not of a cluster",
                f"pass another --run-dir, for example {self.path / 'cluster'}",
            )
        try:
            self.path.chmod(0o700)
        except OSError as error:
            raise self._error(f"cannot be closed to others ({_reason(error)})") from None

    def _error(self, fault: str, remedy: str = "pass another --run-dir") -> RunDirectoryError:
        return RunDirectoryError(f"{self.purpose} {self.path} {fault}: {remedy}")


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def temporary_directory() -> Path:
    """Return the directory of this system for temporary files."""
    # Imported here: it brings archives and compression, and every process of a node would wait.
    import tempfile

    return Path(tempfile.gettempdir())
