"""The secret of a cluster, which all nodes know and nobody else."""

from pathlib import Path

from cluster.shared.private_files import PrivateFileError, read_private_file

__all__ = ["SECRET_BYTES_MIN", "read_secret"]

SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 4_096


def read_secret(path: Path) -> bytes:
    """Return what the file at `path` holds, without the white space around it.

    Raises PrivateFileError, also if it is too short or long.
    """
    secret = read_private_file(
        "links.secret_file",
        path,
        SECRET_BYTES_MAX,
        f"make one by head -c 32 /dev/urandom | base64 > {path}, and give each node a copy",
    ).strip()
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise PrivateFileError(
            f"links.secret_file = {path}: {len(secret)} bytes; a secret has {SECRET_BYTES_MIN} to "
            f"{SECRET_BYTES_MAX}"
        )
    return secret
