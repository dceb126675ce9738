"""Why a system does not let us have a ring, in words."""

import errno

from cluster.iocp.errors import DriverUnavailableError

__all__ = ["check_kernel", "describe_refusal"]

KERNEL_MIN = (6, 1)
"""What is used here came with 6.0 and 6.1: multishot recvs, and task work that waits for us."""

_HINTS = {
    errno.EPERM: "; kernel.io_uring_disabled or a seccomp filter forbids it",
    errno.ENOSYS: "; a seccomp filter or the kernel's build leaves it out",
    errno.ENOMEM: "; the limit of locked memory is too low",
    errno.EMFILE: "; the limit of open files is reached",
}


def check_kernel(release: str) -> None:
    """Raise DriverUnavailableError for a kernel, named as by `uname -r`, that is too old."""
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0]
    if major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) < KERNEL_MIN:
        raise DriverUnavailableError(f"driver 'io_uring' needs Linux 6.1, and this is {release}")


def describe_refusal(error: OSError) -> str:
    """Return what to tell a user of a system call that was refused."""
    code = error.errno or 0
    name = errno.errorcode.get(code, "?")
    return (
        f"driver 'io_uring' is refused by this system: {error.strerror} ({name})"
        f"{_HINTS.get(code, '')}"
    )
