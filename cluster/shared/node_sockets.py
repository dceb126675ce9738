"""The Unix sockets of a node, where its processes meet: control plane and lanes.

They are in the run directory; where its path is too long for sockets, in a short private directory
of their own, which every process finds by itself.
"""

import os
import stat
from pathlib import Path

from cluster.shared.private_directory import (
    PrivateDirectory,
    RunDirectoryError,
    temporary_directory,
)
from cluster.shared.process import SOCKET_PATH_BYTES_MAX, user_tag

__all__ = ["SOCKET_NAMES", "NodeSockets"]

_CONTROL = "control.sock"
_LANE = "lane.sock"
_SHM = "shm.sock"
SOCKET_NAMES = frozenset({_CONTROL, _LANE, _SHM})


class NodeSockets:
    """Those of the node in a run directory. Any thread may use it.

    What cannot be done raises `RunDirectoryError`.
    """

    def __init__(self, directory: Path) -> None:
        """Name them, without touching anything; `directory` is an absolute path."""
        self._directory = directory

    def control_endpoint(self) -> str:
        """Return the ZeroMQ endpoint of the control plane; every process gets the same one."""
        return f"ipc://{self._place(_CONTROL)}"

    def lane_endpoint(self) -> str:
        """Return the ZeroMQ endpoint of the lanes; every process gets the same one."""
        return f"ipc://{self._place(_LANE)}"

    def lane_path(self) -> str:
        """Return the path of the Unix socket where workers come for lanes in shared memory."""
        return str(self._place(_SHM))

    def present(self) -> set[str]:
        """Return the names of the sockets that are there, of this or an earlier gateway."""
        return {name for name in SOCKET_NAMES if os.path.lexists(self._place(name))}

    def remove_stale(self) -> None:
        """Remove the sockets of an earlier life. Only for the holder of the gateway's lock."""
        for name in SOCKET_NAMES:
            self._remove(self._place(name))

    def remove_directory(self) -> None:
        """Remove the sockets and the short directory for them, if one was needed.

        For the last process of a node, at its end.
        """
        short = self._short_directory()
        if short.path.is_dir() and short.exists():
            self.remove_stale()
            try:
                short.path.rmdir()
            except OSError as error:
                raise RunDirectoryError.of_file(
                    self._directory, "removed", short.path.name, error
                ) from None

    def _place(self, name: str) -> Path:
        """Return where the socket `name` is, in a directory that exists and is private."""
        # Processes may come by different symlinks, and have to meet.
        path = Path(os.path.realpath(self._directory), name)
        if _fits_a_socket(path):
            return path
        short = self._short_directory()
        short.make()
        return short.path / name

    def _short_directory(self) -> PrivateDirectory:
        # Imported here because few need it, and every process of a node would wait for it.
        import hashlib

        # Not by TMPDIR, which differs between processes and may itself be long.
        root = Path("/tmp") if Path("/tmp").is_dir() else temporary_directory()
        identity = os.fsencode(os.path.realpath(self._directory)) + b"\0" + user_tag().encode()
        digest = hashlib.blake2b(identity, digest_size=8).hexdigest()
        return PrivateDirectory(root / f"iocp-{digest}", "socket directory", SOCKET_NAMES)

    def _remove(self, path: Path) -> None:
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunDirectoryError.of_file(self._directory, "removed", path.name, error) from None


def _fits_a_socket(path: Path) -> bool:
    try:
        # ZeroMQ takes endpoints as UTF-8, and not every file name is.
        encoded = str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return len(encoded) <= SOCKET_PATH_BYTES_MAX
