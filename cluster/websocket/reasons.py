"""Why a system call failed, in the words of the system."""

import errno
import os

__all__ = ["reason_of"]


def reason_of(error: OSError) -> str:
    """Return what the system says, without what libraries add to it."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error) or "no answer"
