"""At most one process in each role of a run directory, whatever way the last one ended.

The operating system holds the lock and gives it back when its process ends, so there is nothing
stale to clean up. The file names the holder for people and for `status`; it decides nothing.
"""

import errno
import os
import time
from pathlib import Path
from typing import Self

from cluster.shared.private_directory import RunDirectoryError
from cluster.shared.process import (
    ProcessIdentity,
    is_same_process,
    keep_directory,
    lock_file,
    process_identity,
    unlock_file,
)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_RETRY_INTERVAL_S = 0.02

_IDENTITY_WAIT_S = 0.5
"""How long the name of a new holder is waited for, which it writes just after it has the lock."""


class RunDirectoryHeld(RunDirectoryError):
    """Another process has this role in the run directory."""

    def __init__(self, path: Path, role: str, pid: int | None) -> None:
        """Name the run directory `path` and the holder, None for one that cannot be seen."""
        who = f"pid {pid}" if pid is not None else "a process that is not visible from here"
        stop = f"stop pid {pid}" if pid is not None else "stop that process"
        holder = "`cluster up --nodes`" if role == "nodes" else role
        super().__init__(
            f"run directory {path} is in use: its {holder} is {who}: "
            f"pass another --run-dir or {stop}"
        )
        self.path = path
        self.role = role
        self.pid = pid

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str, int | None]]:
        return type(self), (self.path, self.role, self.pid)


class RunDirectoryLock:
    """A role that this process holds until `release`, the end of a `with`, or its own end.

    Forgetting the object does not release the role. As long as it is held systemd-tmpfiles removes
    nothing of the directory. Belongs to one thread at a time.
    """

    def __init__(self, directory: Path, role: str, wait_s: float = 0.0) -> None:
        """Take `role` in the run directory, waiting up to `wait_s` seconds for another to leave.

        Raises `RunDirectoryHeld` if it is not free, `RunDirectoryError` if the file system
        refuses.
        """
        self.role = role
        self._directory = directory
        self._path = lock_path(directory, role)
        self._fd: int | None = self._open(wait_s)
        self._kept = keep_directory(directory)

    def _open(self, wait_s: float) -> int:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._take(fd, wait_s)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            if error.errno in _NO_ROOM:
                did, remedy = "written", "make room there or pass another --run-dir"
            else:
                did, remedy = "locked", "pass a --run-dir on a local file system"
            raise RunDirectoryError(
                f"run directory {self._directory}: {self._path.name} cannot be {did} "
                f"({error.strerror}): {remedy}"
            ) from None
        return fd

    def renew(self) -> bool:
        """Take the role anew if its file, or the directory, was removed; False if it was not.

        Until then another process could have taken it as well. Raises `RunDirectoryHeld` if one
        has, and `RunDirectoryError` as the first time. Does nothing after `release`.
        """
        if self._fd is None or os.name != "posix":  # elsewhere no open file can be removed
            return False
        if self._kept is None or not _is_at(self._kept, self._directory):
            self._let_directory_go()
            self._kept = keep_directory(self._directory)
        if _is_at(self._fd, self._path):
            return False
        fd = self._open(0.0)
        os.close(self._fd)
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the role back. Does nothing the second time."""
        self._let_directory_go()
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.ftruncate(fd, 0)
            unlock_file(fd)
        finally:
            os.close(fd)

    def _let_directory_go(self) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            os.close(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, fd: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while not lock_file(fd):
            late_s = time.monotonic() - deadline
            holder = read_holder(self._path)
            if late_s >= 0 and (holder is not None or late_s >= _IDENTITY_WAIT_S):
                raise RunDirectoryHeld(self._directory, self.role, holder)
            time.sleep(_RETRY_INTERVAL_S)
        _write_identity(fd, process_identity(os.getpid()))


def lock_path(directory: Path, role: str) -> Path:
    """Return the lock file of `role`."""
    return directory / f"{role}.lock"


def read_holder(path: Path) -> int | None:
    """Return the pid that the lock file at `path` names, None if that process has ended.

    Takes no lock, so it is never in the way of one who does.
    """
    try:
        pid_text, created_text = path.read_text("ascii").split()
        pid, created = int(pid_text), float(created_text)
    except (FileNotFoundError, ValueError):
        return None
    return pid if is_same_process(pid, created) else None


def _is_at(fd: int, path: Path) -> bool:
    """Whether `path` still leads to what is open as `fd`, as far as that can be seen."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _write_identity(fd: int, identity: ProcessIdentity) -> None:
    # What a holder that was killed left behind may be longer.
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, f"{identity.pid} {identity.create_time!r}\n".encode("ascii"))
