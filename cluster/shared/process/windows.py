"""Process control on Windows."""

import ctypes
import errno
import getpass
import msvcrt
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import wintypes
from pathlib import Path
from typing import IO, TypeVar

from cluster.shared.process.portable import keep_to_cpus as keep_to_cpus
from cluster.shared.process.portable import usable_cpus as usable_cpus

T = TypeVar("T")

SOCKET_PATH_BYTES_MAX = 107
"""The longest path that a Unix socket can have: `sun_path` less its closing zero."""

_STDERR_FD = 2
_SYNCHRONIZE = 0x0010_0000
_QUERY_LIMITED_INFORMATION = 0x1000
_WAIT_TIMEOUT = 258
_INFINITE = 0xFFFF_FFFF
_FILETIMES_PER_S = 10_000_000

_SHARING_WAIT_S = 1.0
"""A file of the run directory is read, or replaced, within milliseconds."""

_LOCKED_OFFSET = 0x3FFF_FFFF
"""Where the locked byte is: Windows lets nobody read it, and the content must stay readable."""

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.OpenProcess.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD]
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.WaitForSingleObject.argtypes = [wintypes.HANDLE, wintypes.DWORD]
_kernel32.WaitForSingleObject.restype = wintypes.DWORD
_kernel32.CloseHandle.argtypes = [wintypes.HANDLE]
_kernel32.GetProcessTimes.argtypes = [
    wintypes.HANDLE,
    *[ctypes.POINTER(wintypes.FILETIME)] * 4,
]


def lock_file(fd: int) -> bool:
    """Lock the file open as `fd` for this process alone; return False if another holds it.

    Does not wait. The lock ends with `unlock_file`, with `fd`, or with the process. Moves the
    position of `fd`. Raises `OSError` where the file system has no locks.
    """
    os.lseek(fd, _LOCKED_OFFSET, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def unlock_file(fd: int) -> None:
    """Give back what `lock_file` took. Moves the position of `fd`."""
    os.lseek(fd, _LOCKED_OFFSET, os.SEEK_SET)
    msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)


def keep_directory(path: Path) -> int | None:
    """Return None: no cleaner here could be told anything."""
    return None


def die_with_parent(parent_pid: int) -> None:
    """End this process, at once and without cleaning up, when the process `parent_pid` ends.

    For a child right after its start; a parent that has already ended ends it here.
    """
    parent = _kernel32.OpenProcess(_SYNCHRONIZE, False, parent_pid)
    if not parent:
        os._exit(1)
    threading.Thread(
        target=_exit_after, args=(parent,), name="die-with-parent", daemon=True
    ).start()


def call_in_forks(function: Callable[[], object]) -> None:
    """Do nothing: Windows does not fork."""


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: int | IO[bytes] = _STDERR_FD,
) -> subprocess.Popen[bytes]:
    """Start a program and return it; the caller owns it and has to wait for it.

    It gets a process group of its own, so that Ctrl-C reaches it only through its parent, no
    input, and none of the parent's handles. Its standard output goes to the parent's standard
    error unless `stdout` says otherwise: that of the parent belongs to the parent's user. Raises
    `OSError` if the program cannot be started.

    The interpreter of a virtual environment only starts the real one, so the real one is started
    here, and told of the environment: the pid is that of the program, and killing it ends it.
    """
    program, *arguments = argv
    environment = dict(env)
    base = getattr(sys, "_base_executable", sys.executable)
    if program == sys.executable and base != sys.executable:
        program = base
        environment["__PYVENV_LAUNCHER__"] = sys.executable
    return subprocess.Popen(
        [program, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
    )


def raise_descriptor_limit(wanted: int) -> int:
    """Return `wanted`: Windows has no limit of sockets for a process."""
    return wanted


def count_memory_kills() -> int:
    """Return 0: this system kills nobody for want of memory."""
    return 0


def make_room_for_descriptors(count: int) -> None:
    """Nothing: sockets are handles here, and a process has room for millions of these."""


def create_time(pid: int) -> float:
    """Return when the living process `pid` was created, in seconds since 1601.

    Raises `ProcessLookupError` if there is none, or none of this user.
    """
    process = _kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION | _SYNCHRONIZE, False, pid)
    if not process:
        raise ProcessLookupError(f"no process {pid}")
    try:
        created, *others = (wintypes.FILETIME() for _ in range(4))
        has_ended = _kernel32.WaitForSingleObject(process, 0) != _WAIT_TIMEOUT
        if has_ended or not _kernel32.GetProcessTimes(process, created, *others):
            raise ProcessLookupError(f"process {pid} has ended")
    finally:
        _kernel32.CloseHandle(process)
    return (created.dwHighDateTime << 32 | created.dwLowDateTime) / _FILETIMES_PER_S


def exists(pid: int) -> bool:
    """Tell whether a process of this user has `pid`."""
    try:
        create_time(pid)
    except ProcessLookupError:
        return False
    return True


def replace_file(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`, which others may be reading. Raises `OSError`."""
    _while_shared(lambda: source.replace(target))


def read_file(path: Path) -> bytes:
    """Return the content of a file that others may be replacing. Raises `OSError`."""
    return _while_shared(path.read_bytes)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there, that others may be reading. Raises `OSError`."""
    _while_shared(lambda: path.unlink(missing_ok=True))


def user_tag() -> str:
    """Return what tells this user from others in the name of a file."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", getpass.getuser())


def is_owned_by_user(status: os.stat_result) -> bool:
    """Tell True: `status` knows no owners here, and the temporary directory is the user's own."""
    return True


def is_private(status: os.stat_result) -> bool:
    """Tell True: `status` knows no access rights here, and directories inherit theirs."""
    return True


def sync_directory(path: Path) -> None:
    """Do nothing: Windows cannot open a directory, and its file system logs renames itself."""


def _while_shared(action: Callable[[], T]) -> T:
    """Do `action` again while another process has the file open: Windows refuses it so long."""
    deadline = time.monotonic() + _SHARING_WAIT_S
    while True:
        try:
            return action()
        except PermissionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _exit_after(process: int) -> None:
    _kernel32.WaitForSingleObject(process, _INFINITE)
    os._exit(1)
