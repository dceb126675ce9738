"""Process control on Windows."""

import ctypes
import errno
import getpass
import msvcrt
import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from ctypes import wintypes
from pathlib import Path
from typing import IO

from cluster.shared.process.portable import create_time as create_time

SOCKET_PATH_BYTES_MAX = 107
"""The longest path that a Unix socket can have: `sun_path` less its closing zero."""

_STDERR_FD = 2
_SYNCHRONIZE = 0x0010_0000
_INFINITE = 0xFFFF_FFFF

_LOCKED_OFFSET = 0x3FFF_FFFF
"""Where the locked byte is: Windows lets nobody read it, and the content must stay readable."""

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.OpenProcess.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD]
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.WaitForSingleObject.argtypes = [wintypes.HANDLE, wintypes.DWORD]
_kernel32.WaitForSingleObject.restype = wintypes.DWORD


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


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stdout: int | IO[bytes] = _STDERR_FD,
) -> subprocess.Popen[bytes]:
    """Start a program and return it; the caller owns it and has to wait for it.

    It gets a process group of its own, so that Ctrl-C reaches it only through its parent, no
    input, and none of the parent's handles. Its standard output goes to the parent's standard
    error unless `stdout` says otherwise: that of the parent belongs to the parent's user. Raises
    `OSError` if the program cannot be started.
    """
    return subprocess.Popen(
        list(argv),
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
    )


def raise_descriptor_limit(wanted: int) -> int:
    """Return `wanted`: Windows has no limit of sockets for a process."""
    return wanted


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


def _exit_after(process: int) -> None:
    _kernel32.WaitForSingleObject(process, _INFINITE)
    os._exit(1)
