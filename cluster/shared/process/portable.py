"""The part of process control that psutil does alike on every system that has no better way."""

from collections.abc import Collection


def create_time(pid: int) -> float:
    """Return when the living process `pid` was created, in seconds since 1970.

    Raises `ProcessLookupError` if there is none; a zombie is not living.
    """
    # Imported here because Linux, where it is not needed, starts 50 ms faster without.
    import psutil

    try:
        process = psutil.Process(pid)
        created = process.create_time()
        ended = process.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        ended = True
    if ended:
        raise ProcessLookupError(f"no process {pid}")
    return created


def is_stopped(pid: int) -> bool:
    """Tell whether the process `pid` is stopped, as by SIGSTOP. False while that is unknown."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, OSError):
        return False


def usable_cpus() -> frozenset[int]:
    """Return the CPUs that this process may choose from; none where the system lets nobody choose.

    Raises `OSError` if that cannot be looked up.
    """
    import psutil

    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        return frozenset()
    try:
        return frozenset(process.cpu_affinity())
    except psutil.Error as error:
        raise OSError(str(error)) from None


def keep_to_cpus(cpus: Collection[int]) -> None:
    """Have this process run on `cpus` only, with what it starts from now on.

    Raises `OSError` or `ValueError` if the system does not let it, also where nobody may choose.
    """
    import psutil

    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        raise OSError("this system lets nobody choose")
    try:
        process.cpu_affinity(sorted(cpus))
    except psutil.Error as error:
        raise OSError(str(error)) from None
