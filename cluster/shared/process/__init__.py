"""Process control: locks, spawning, identity and limits, with one promise on every system.

This is the only place where process control asks for the platform. A pid alone names nobody,
because pids are used again: a process is its pid and the time of its creation.
"""

import sys
from typing import NamedTuple

from cluster.shared.process.portable import is_stopped

if sys.platform == "win32":
    from cluster.shared.process.windows import (
        SOCKET_PATH_BYTES_MAX,
        call_in_forks,
        count_memory_kills,
        create_time,
        die_with_parent,
        exists,
        is_owned_by_user,
        is_private,
        keep_directory,
        keep_to_cpus,
        lock_file,
        make_room_for_descriptors,
        raise_descriptor_limit,
        read_file,
        remove_file,
        replace_file,
        spawn,
        sync_directory,
        unlock_file,
        usable_cpus,
        user_tag,
    )
else:
    from cluster.shared.process.posix import (
        SOCKET_PATH_BYTES_MAX,
        call_in_forks,
        count_memory_kills,
        create_time,
        die_with_parent,
        exists,
        is_owned_by_user,
        is_private,
        keep_directory,
        keep_to_cpus,
        lock_file,
        make_room_for_descriptors,
        raise_descriptor_limit,
        read_file,
        remove_file,
        replace_file,
        spawn,
        sync_directory,
        unlock_file,
        usable_cpus,
        user_tag,
    )

__all__ = [
    "SOCKET_PATH_BYTES_MAX",
    "ProcessIdentity",
    "call_in_forks",
    "count_memory_kills",
    "create_time",
    "die_with_parent",
    "is_owned_by_user",
    "is_private",
    "is_same_process",
    "is_stopped",
    "keep_directory",
    "keep_to_cpus",
    "lock_file",
    "make_room_for_descriptors",
    "process_identity",
    "raise_descriptor_limit",
    "read_file",
    "remove_file",
    "replace_file",
    "spawn",
    "sync_directory",
    "unlock_file",
    "usable_cpus",
    "user_tag",
]


class ProcessIdentity(NamedTuple):
    """One life of one process of this machine, as long as the machine runs."""

    pid: int
    create_time: float
    """Seconds on a clock that only `process_identity` reads: for comparison, not for display."""


def process_identity(pid: int) -> ProcessIdentity:
    """Return the identity of the living process `pid`.

    Raises `ProcessLookupError` if there is none. One that has ended but was not yet waited for
    is not living.
    """
    return ProcessIdentity(pid, create_time(pid))


def is_same_process(pid: int, created: float) -> bool:
    """Tell whether the process that had this identity still lives.

    While that cannot be looked up, for want of descriptors or memory, whoever has its pid counts.
    """
    try:
        return create_time(pid) == created
    except ProcessLookupError:
        return False
    except OSError:
        return exists(pid)
