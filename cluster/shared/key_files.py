"""The key pairs by which a gateway and the workers on other machines know each other: as files.

A pair is two certificates of ZeroMQ (`zmq.auth`): `NAME.key`, which is public, and
`NAME.key_secret`, which stays with its owner. The gateway's directory holds its own pair and the
public key of each worker that may come in; a worker's holds its own pair and `gateway.key`. All
files are for their owner only, and none is ever replaced unless that is asked for. See
docs/decisions/0020-workers-on-other-machines.md.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.shared.private_files import find_open_mode

__all__ = [
    "GATEWAY",
    "WORKER",
    "KeyFileError",
    "KeyPair",
    "KnownWorkers",
    "check_worker_name",
    "make_key_files",
    "read_gateway_keys",
    "read_worker_keys",
]

logger = logging.getLogger("cluster.gateway")

GATEWAY = "gateway"
"""The name of the gateway's pair."""

WORKER = "worker"
"""The name of a worker's pair when no other is asked for."""

WORKERS_MAX = 4_096
"""Public keys that a gateway reads from its directory."""

_PUBLIC = ".key"
_SECRET = ".key_secret"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class KeyFileError(Exception):
    """Keys cannot be made, or used. The message is one line with the remedy."""


class KeyPair(NamedTuple):
    """A long-term key pair for CURVE, in the printable form of ZeroMQ (Z85)."""

    public: bytes
    secret: bytes


def check_worker_name(name: str) -> None:
    """Raise ValueError with what is allowed unless `name` can be that of a worker's pair."""
    if not _NAME.fullmatch(name) or name == GATEWAY:
        raise ValueError(
            f"a name of letters, digits, '.', '_' and '-', at most 63, and not {GATEWAY!r}"
        )


# -- making them -----------------------------------------------------------------------------------


def make_key_files(
    directory: Path, workers: Sequence[str] = (), *, replace: bool = False
) -> list[str]:
    """Make key pairs in `directory`, which need not exist; return the names of the files.

    Without `workers` it is one of the gateway and one of a worker; with them one for each, and the
    gateway's only where there is none. With `replace` those that this call is for take the place
    of files that are there; else each of them is an error, and nothing is made. Raises
    KeyFileError.
    """
    names = [GATEWAY, WORKER]
    if workers:
        names = list(dict.fromkeys(workers))
        if not _paths(directory, GATEWAY)[1].exists():
            names.insert(0, GATEWAY)
    if not replace:
        for path in (path for name in names for path in _paths(directory, name)):
            if os.path.lexists(path):
                raise KeyFileError(
                    f"{path} is there already: keep it, or pass --replace, which locks out who "
                    "uses it until it has a copy of the new one"
                )
    # Imported here: it brings archives and compression, and a gateway only reads keys.
    import tempfile

    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A place of its own, closed to others, so that no file is ever readable on its way.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as scratch:
            return [made for name in names for made in _make_pair(Path(scratch), directory, name)]
    except OSError as error:
        raise KeyFileError(
            f"keys cannot be written into {directory} ({error.strerror}): choose another directory"
        ) from None


def _make_pair(scratch: Path, directory: Path, name: str) -> Iterable[str]:
    import zmq.auth

    for made in zmq.auth.create_certificates(str(scratch), name):
        path = Path(made)
        path.chmod(0o600)
        path.replace(directory / path.name)
        yield path.name


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}{_PUBLIC}", directory / f"{name}{_SECRET}"


# -- reading them ----------------------------------------------------------------------------------


def read_gateway_keys(directory: Path) -> KeyPair:
    """Return the gateway's pair in its directory; raises KeyFileError."""
    return _read_pair(directory, GATEWAY)


def read_worker_keys(directory: Path) -> tuple[bytes, KeyPair]:
    """Return the gateway's public key and the worker's pair in a worker's directory.

    It is the only pair there, or that called `worker`. Raises KeyFileError.
    """
    gateway_key = _read_public(_paths(directory, GATEWAY)[0])
    names = [name for name in _names(directory, _SECRET) if name != GATEWAY]
    if not names:
        raise KeyFileError(
            f"{directory} holds no worker's key (NAME{_SECRET}); make one with "
            f"`cluster keys` where the gateway is, and copy it and {GATEWAY}{_PUBLIC} here"
        )
    if len(names) > 1 and WORKER not in names:
        raise KeyFileError(
            f"{directory} holds the keys of several workers ({', '.join(names)}): leave the one "
            "of this machine"
        )
    return gateway_key, _read_pair(directory, WORKER if WORKER in names else names[0])


class KnownWorkers:
    """The public keys of the workers in a gateway's directory, as it is at the moment.

    A key that is put there lets its worker in, one that is taken away keeps it out from its next
    connection on. While a file there cannot be read, what was known before holds.
    """

    def __init__(self, directory: Path) -> None:
        """Read what is there; raises KeyFileError if that cannot be."""
        self.directory = directory
        self._seen: list[tuple[str, int]] = []
        self._names: Mapping[bytes, str] = {}
        self._refresh()

    def name_of(self, public_key: bytes) -> str | None:
        """Return whose key it is, None for a stranger's."""
        try:
            self._refresh()
        except KeyFileError as error:
            logger.error("the keys of workers stay as they were: %s", error)
        return self._names.get(public_key)

    def _refresh(self) -> None:
        names = [name for name in _names(self.directory, _PUBLIC) if name != GATEWAY]
        if len(names) > WORKERS_MAX:
            raise KeyFileError(f"{self.directory} holds {len(names)} keys; at most {WORKERS_MAX}")
        paths = {name: _paths(self.directory, name)[0] for name in names}
        try:
            seen = [(name, path.stat().st_mtime_ns) for name, path in paths.items()]
        except OSError as error:
            raise _unreadable(self.directory, error) from None
        if seen != self._seen:
            # In this order the name of a key that is there twice is always the same.
            self._names = {_read_public(paths[name]): name for name in reversed(names)}
            self._seen = seen


def _names(directory: Path, suffix: str) -> list[str]:
    try:
        return sorted(
            path.name.removesuffix(suffix)
            for path in directory.iterdir()
            if path.name.endswith(suffix)
        )
    except OSError as error:
        raise _unreadable(directory, error) from None


def _read_public(path: Path) -> bytes:
    return _load(path)[0]


def _read_pair(directory: Path, name: str) -> KeyPair:
    path = _paths(directory, name)[1]
    public, secret = _load(path)
    if secret is None:
        raise KeyFileError(f"{path} holds no secret key: make a new pair with `cluster keys`")
    if reason := find_open_mode(path, path.stat().st_mode):
        raise KeyFileError(f"{path}: {reason}")
    return KeyPair(public, secret)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    import zmq.auth

    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        if not path.exists():
            raise KeyFileError(
                f"{path} is not there: make it with `cluster keys`, or copy it from where it was "
                "made"
            ) from None
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise KeyFileError(f"{path} holds no key of ZeroMQ: {error}") from None
    if len(public) != _Z85_BYTES or (secret is not None and len(secret) != _Z85_BYTES):
        raise KeyFileError(f"{path} holds no key of ZeroMQ: keys have {_Z85_BYTES} characters")
    return public, secret


_Z85_BYTES = 40


def _unreadable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"{path} cannot be read ({error.strerror}): look at its permissions")
