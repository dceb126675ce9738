"""Process control on POSIX systems, with what Linux does better."""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cluster.shared.process import portable

if TYPE_CHECKING:
    import subprocess

SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103
"""The longest path that a Unix socket can have: `sun_path` less its closing zero."""

_STDERR_FD = 2
_PR_SET_PDEATHSIG = 1
_PARENT_POLL_INTERVAL_S = 0.5


def lock_file(fd: int) -> bool:
    """Lock the file open as `fd` for this process alone; return False if another holds it.

    Does not wait. The lock belongs to the open file: it ends with `unlock_file`, with the last
    descriptor of it, or with the process. Raises `OSError` where the file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_file(fd: int) -> None:
    """Give back what `lock_file` took."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def keep_directory(path: Path) -> int | None:
    """Keep systemd-tmpfiles from the directory at `path` and all below it.

    It passes by what somebody has locked. That lasts until the descriptor that is returned is
    closed, which is the caller's; None where it cannot be had, for example at this moment.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def die_with_parent(parent_pid: int) -> None:
    """End this process, at once and without cleaning up, when its parent `parent_pid` ends.

    For a child right after its start; a parent that has already ended ends it here. On Linux the
    kernel watches the thread that spawned this process, so parents spawn from their main thread.
    Elsewhere it takes up to half a second.
    """
    watched_by_kernel = _kill_at_parent_death()
    # Only now: a parent that ended before this question cannot slip through.
    if os.getppid() != parent_pid:
        os._exit(1)
    if not watched_by_kernel:
        threading.Thread(
            target=_exit_when_orphaned, args=(parent_pid,), name="die-with-parent", daemon=True
        ).start()


def call_in_forks(function: Callable[[], object]) -> None:
    """Have each process that is forked off this one call `function` first. Cannot be taken back.

    What SIGTERM and SIGINT do there begins behind that: the interpreter would forget one that
    comes before.
    """
    masks = threading.local()

    def hold_signals() -> None:
        stops = (signal.SIGTERM, signal.SIGINT)
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)

    def let_signals() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def begin_child() -> None:
        try:
            function()
        finally:
            let_signals()

    os.register_at_fork(
        before=hold_signals, after_in_parent=let_signals, after_in_child=begin_child
    )


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: int | IO[bytes] = _STDERR_FD,
) -> "subprocess.Popen[bytes]":
    """Start a program and return it; the caller owns it and has to wait for it.

    It gets a session of its own, so that Ctrl-C reaches it only through its parent, no input, and
    none of the parent's descriptors. Its standard output goes to the parent's standard error
    unless `stdout` says otherwise: that of the parent belongs to the parent's user. Raises
    `OSError` if the program cannot be started. Call it from the main thread, see
    `die_with_parent`.
    """
    # Imported here: only a supervisor spawns, and the others start faster without.
    import subprocess

    return subprocess.Popen(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        start_new_session=True,
    )


def usable_cpus() -> frozenset[int]:
    """Return the CPUs that this process may choose from; none where the system lets nobody choose.

    Raises `OSError` if that cannot be looked up.
    """
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return portable.usable_cpus()


def keep_to_cpus(cpus: Collection[int]) -> None:
    """Have the calling thread run on `cpus` only, with all that it starts from now on.

    Linux leaves out those that are not this process's to choose. Raises `OSError` or `ValueError`
    if none is left, and where nobody may choose.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    else:
        portable.keep_to_cpus(cpus)


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit of open descriptors towards `wanted`; return what holds now.

    Never lowers it, and never goes above the hard limit. The result is at least `wanted` where
    there is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # macOS has a lower limit of its own and says so here.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(wanted, soft) if soft == resource.RLIM_INFINITY else soft


def count_memory_kills() -> int:
    """Return how many processes the system has killed for want of memory since it began.

    0 where it does not tell: only Linux does.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_bytes().splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill":
                return int(count)
    return 0


def make_room_for_descriptors(count: int) -> None:
    """Have the system make room for `count` descriptors now, where it would do so while they come.

    Linux doubles the table of a process when it is full, and when several threads share it that
    `accept` or `open` waits until every processor has passed a quiet point: 10 to 25 ms. Nothing
    happens where the limit does not allow as many, or no descriptor is free.
    """
    with contextlib.suppress(ValueError, OSError):
        fd = os.open(os.devnull, os.O_RDONLY)
        try:
            os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, count - 1))
        finally:
            os.close(fd)


def create_time(pid: int) -> float:
    """Return when the living process `pid` was created, in seconds on one clock of the machine.

    Raises `ProcessLookupError` if there is none, another OSError while that cannot be looked up; a
    zombie is not living.
    """
    if sys.platform == "linux":
        return _create_time_since_boot(pid)
    else:
        return portable.create_time(pid)


def exists(pid: int) -> bool:
    """Tell whether anything has `pid`, a zombie included. Takes no descriptor."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def replace_file(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`, which others may be reading. Raises `OSError`."""
    source.replace(target)


def read_file(path: Path) -> bytes:
    """Return the content of a file that others may be replacing. Raises `OSError`."""
    return path.read_bytes()


def remove_file(path: Path) -> None:
    """Remove a file, if it is there, that others may be reading. Raises `OSError`."""
    path.unlink(missing_ok=True)


def user_tag() -> str:
    """Return what tells this user from others in the name of a file."""
    return str(os.getuid())


def is_owned_by_user(status: os.stat_result) -> bool:
    """Tell whether the file with `status` belongs to this user."""
    return status.st_uid == os.getuid()


def is_private(status: os.stat_result) -> bool:
    """Tell whether nobody but its owner, and root, may touch the file with `status`."""
    return not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def sync_directory(path: Path) -> None:
    """Make renames within the directory `path` survive a loss of power. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems have nothing to sync for a directory.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def _kill_at_parent_death() -> bool:
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        prctl.restype = ctypes.c_int
        return bool(prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    else:
        return False


def _exit_when_orphaned(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_INTERVAL_S)
    os._exit(1)


def _create_time_since_boot(pid: int) -> float:
    """Read the time since boot at which `pid` was created, from proc_pid_stat(5).

    psutil reports the same moment by the wall clock, and so another one after the clock was set:
    a process that lives would look like a stranger with the same pid.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    fields = line[line.rindex(b")") + 2 :].split()
    state, start_ticks = fields[0], fields[19]
    if state in (b"Z", b"X", b"x"):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(start_ticks) / os.sysconf("SC_CLK_TCK")
