"""The secret of a cluster, which all nodes know and nobody else."""

import os
import stat
from pathlib import Path

__all__ = ["SECRET_BYTES_MIN", "SecretError", "read_secret"]

SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 4_096


class SecretError(Exception):
    """The secret cannot be used. The message is one line with the remedy."""


def read_secret(path: Path) -> bytes:
    """Return what the file at `path` holds, without the white space around it.

    Its group may read it, as containers need that do not run as its owner. Raises SecretError if
    it cannot be read, is too short or long, or others may read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise SecretError(
            f"links.secret_file = {path}: cannot be read ({reason}); make one by "
            f"head -c 32 /dev/urandom | base64 > {path}, and give each node a copy"
        ) from None
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO):
        raise SecretError(
            f"links.secret_file = {path}: others may read or write it (mode "
            f"{stat.S_IMODE(mode):o}); chmod 600 {path}"
        )
    secret = data.strip()
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise SecretError(
            f"links.secret_file = {path}: {len(secret)} bytes; a secret has {SECRET_BYTES_MIN} to "
            f"{SECRET_BYTES_MAX}"
        )
    return secret
