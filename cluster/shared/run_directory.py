"""The run directory of a node: where its processes find each other and what outlives them.

Locks by role, the epoch, the resolved configuration, and small JSON files; `NodeSockets` has the
Unix sockets. It is private to one user, and every file in it appears whole or not.
"""

import errno
import os
import re
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec

from cluster.shared.config import Config, ConfigError, decode_config, encode_config
from cluster.shared.node_sockets import SOCKET_NAMES, NodeSockets
from cluster.shared.private_directory import (
    PrivateDirectory,
    RunDirectoryError,
    temporary_directory,
)
from cluster.shared.process import (
    read_file,
    remove_file,
    replace_file,
    sync_directory,
    user_tag,
)
from cluster.shared.run_directory_lock import (
    RunDirectoryHeld,
    RunDirectoryLock,
    lock_path,
    read_holder,
)

__all__ = [
    "ENDPOINT_FILE",
    "EPOCH_MAX",
    "GATEWAY_GONE_WAIT_S",
    "RunDirectory",
    "RunDirectoryError",
    "RunDirectoryHeld",
    "RunDirectoryLock",
    "default_run_directory",
]

T = TypeVar("T")

EPOCH_MAX = 65_535
"""Epochs are 16 bits of every session id; 0 is none."""

GATEWAY_GONE_WAIT_S = 3.0
"""A gateway whose supervisor was killed is gone within this time; any other one is in the way."""

ENDPOINT_FILE = "endpoint.json"
"""Where the control plane is, when it is not a socket in the directory."""

_EPOCH = "epoch"
_CONFIG = "config.json"
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_OVER_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_OWN_FILES = SOCKET_NAMES | {_EPOCH, _CONFIG, ENDPOINT_FILE, "supervisor.lock", "gateway.lock"}


def default_run_directory() -> Path:
    """Return the run directory of this user when no other is asked for; it need not exist.

    `$XDG_RUNTIME_DIR/iocp-cluster` where there is such a directory, else one under the temporary
    directory with the user's id in its name.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute() and Path(runtime).is_dir():
        return Path(runtime, "iocp-cluster")
    return temporary_directory() / f"iocp-cluster-{user_tag()}"


class RunDirectory:
    """The run directory at `path`, seen from one of its processes.

    Holds no open files, so it need not be closed, and any thread may use it. What cannot be done
    raises `RunDirectoryError`.
    """

    def __init__(self, path: Path) -> None:
        """Name the directory, without touching it; a relative `path` is fixed to an absolute."""
        self.path = path.absolute()
        self.sockets = NodeSockets(self.path)
        """Where the processes of the node meet, if it has Unix sockets."""
        self._directory = PrivateDirectory(self.path, "run directory", _OWN_FILES)

    def create(self) -> None:
        """Make the directory, unless it is there and fit for use: see `PrivateDirectory.make`."""
        self._directory.make()

    def exists(self) -> bool:
        """Tell whether there is one, for those who only look: see `PrivateDirectory.exists`."""
        return self._directory.exists()

    def lock(self, role: str, wait_s: float = 0.0) -> RunDirectoryLock:
        """Take `role`, for example `gateway`; wait up to `wait_s` seconds for its holder to go.

        Raises `RunDirectoryHeld` with the holder's pid if the role is not free by then.
        """
        return RunDirectoryLock(self.path, role, wait_s)

    def holder(self, role: str) -> int | None:
        """Return the pid that holds `role` now, without getting in the way of one who takes it."""
        path = lock_path(self.path, role)
        try:
            return read_holder(path)
        except OSError as error:
            raise RunDirectoryError.of_file(self.path, "read", path.name, error) from None

    def next_epoch(self) -> int:
        """Begin the next life of the gateway and return its number, 1 to 65,535.

        Only for the holder of the gateway's lock. The number survives a loss of power. Without a
        usable record it starts from the clock, so that lives of a directory that was deleted
        are told apart, unless they are a multiple of 18 hours apart to the second. On a disk that
        is full it is written over the last one, which takes no room.
        """
        last = self._read_epoch()
        if last is None:
            epoch = int(time.time()) % EPOCH_MAX + 1
        else:
            epoch = last % EPOCH_MAX + 1
        data = f"{epoch}\n".encode("ascii")
        try:
            self._replace(_EPOCH, data, survives_power_loss=True)
        except RunDirectoryError:
            # What was replaced and not synced is not the last one any more: a loss of power may
            # bring that back, whatever is written over this.
            if last is None or self._read_epoch() != last or not self._write_over(_EPOCH, data):
                raise
        return epoch

    def begin_with(self, config: Config) -> None:
        """Leave the configuration of a node that is about to start, once it has no gateway.

        What an earlier node was writing when it was killed is removed. Raises `RunDirectoryHeld` if
        there is a gateway after `GATEWAY_GONE_WAIT_S` seconds.
        """
        self.lock("gateway", GATEWAY_GONE_WAIT_S).release()
        self._remove_unfinished()
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        """Leave the resolved configuration for the node's other processes."""
        self._replace(_CONFIG, encode_config(config))

    @property
    def has_config(self) -> bool:
        """Whether a gateway has come so far as to leave the resolved configuration."""
        return os.path.lexists(self._file(_CONFIG))  # unlike a Path's it never raises

    def read_config(self) -> Config:
        """Return what `write_config` left."""
        data = self._read(_CONFIG)
        if data is None:
            raise RunDirectoryError(
                f"run directory {self.path} has no {_CONFIG}: start the gateway there first"
            )
        try:
            return decode_config(data)
        except ConfigError as error:
            raise self._damaged(_CONFIG, error) from None

    def write_json(self, name: str, value: object) -> None:
        """Replace the file `name` with `value` as JSON. Readers see the old or the new one."""
        self._replace(name, msgspec.json.encode(value))

    def read_json(self, name: str, kind: type[T]) -> T | None:
        """Return the content of the file `name` as a `kind`, None if there is no such file."""
        data = self._read(name)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(name, error) from None

    def remove(self, name: str) -> None:
        """Remove the file `name`, if there is one."""
        try:
            remove_file(self._file(name))
        except OSError as error:
            raise RunDirectoryError.of_file(self.path, "removed", name, error) from None

    def meeting_points(self) -> set[str]:
        """Return the names of the sockets of this or an earlier gateway, and of the file that
        tells where one is instead."""
        file = {ENDPOINT_FILE} if os.path.lexists(self._file(ENDPOINT_FILE)) else set()
        return self.sockets.present() | file

    def _read_epoch(self) -> int | None:
        text = (self._read(_EPOCH) or b"").strip()
        if text.isdigit() and len(text) <= len(str(EPOCH_MAX)) and 1 <= int(text) <= EPOCH_MAX:
            return int(text)
        return None

    def _read(self, name: str) -> bytes | None:
        try:
            return read_file(self._file(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirectoryError.of_file(self.path, "read", name, error) from None

    def _replace(self, name: str, data: bytes, *, survives_power_loss: bool = False) -> None:
        target = self._file(name)
        try:
            temporary = self.path / f".{name}.{os.urandom(8).hex()}.tmp"  # as in _UNFINISHED
            fd = os.open(temporary, _CREATE_FLAGS, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    if survives_power_loss:
                        file.flush()
                        os.fsync(fd)
                replace_file(temporary, target)
            except BaseException:
                temporary.unlink()
                raise
            if survives_power_loss:
                sync_directory(self.path)
        except OSError as error:
            raise RunDirectoryError.of_file(self.path, "written", name, error) from None

    def _remove_unfinished(self) -> None:
        try:
            for path in self.path.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise RunDirectoryError.of_file(
                self.path, "removed", "what an earlier node has not finished", error
            ) from None

    def _write_over(self, name: str, data: bytes) -> bool:
        """Write `data` over what is in the file; False if that cannot be, and it is as before.

        What a crash in the midst of it leaves may have something of both.
        """
        try:
            fd = os.open(self._file(name), _OVER_FLAGS)
        except OSError:
            return False
        with os.fdopen(fd, "r+b", buffering=0) as file:
            before = file.read()
            try:
                _fill(file, data)
                os.fsync(fd)
            except OSError:
                with suppress(OSError):
                    _fill(file, before)
                return False
        return True

    def _file(self, name: str) -> Path:
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"{name!r} is not the plain name of a file")
        return self.path / name

    def _damaged(self, name: str, error: Exception) -> RunDirectoryError:
        return RunDirectoryError(
            f"run directory {self.path}: {name} is damaged ({error}): "
            "remove it and start the node again"
        )


def _fill(file: FileIO, data: bytes) -> None:
    file.seek(0)
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate()
