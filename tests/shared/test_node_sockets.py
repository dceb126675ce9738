"""The sockets of a node: where all its processes find them, however long the path is."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from cluster.shared import private_directory
from cluster.shared.config import Config
from cluster.shared.process import SOCKET_PATH_BYTES_MAX
from cluster.shared.run_directory import RunDirectory
from tests.shared.test_run_directory import message_of, mode_of, posix_only


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    created = RunDirectory(tmp_path / "run")
    created.create()
    return created


@pytest.fixture
def short() -> Iterator[Path]:
    """Not pytest's directory, whose path can be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="run-") as made:
        yield Path(made)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run directory with a path too long for a socket."""
    created = RunDirectory(tmp_path / ("deep" * 20) / ("deeper" * 10))
    created.create()
    yield created
    created.sockets.remove_directory()


def path_of(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("ipc://"))


def test_sockets_are_in_the_run_directory(short: Path) -> None:
    directory = RunDirectory(short / "run")
    directory.create()
    root = directory.path.resolve()
    assert directory.sockets.control_endpoint() == f"ipc://{root}/control.sock"
    assert directory.sockets.lane_endpoint() == f"ipc://{root}/lane.sock"


@posix_only
def test_the_longest_path_that_fits_is_used(short: Path) -> None:
    room = SOCKET_PATH_BYTES_MAX - len("/control.sock") - len(str(short.resolve())) - 1
    exact = RunDirectory(short / ("x" * room))
    longer = RunDirectory(short / ("y" * (room + 1)))
    exact.create()
    longer.create()
    assert path_of(exact.sockets.control_endpoint()).parent == exact.path.resolve()
    assert path_of(longer.sockets.control_endpoint()).parent != longer.path.resolve()
    assert path_of(longer.sockets.lane_endpoint()).parent == longer.path.resolve()
    longer.sockets.remove_directory()


@posix_only
def test_a_long_path_falls_back_to_a_short_private_directory(deep: RunDirectory) -> None:
    control = path_of(deep.sockets.control_endpoint())
    assert len(os.fsencode(control)) <= SOCKET_PATH_BYTES_MAX
    assert mode_of(control.parent) == 0o700
    assert deep.sockets.lane_endpoint() == f"ipc://{control.parent}/lane.sock"


@posix_only
def test_every_process_gets_the_same_short_directory(deep: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(deep.path)
    code = (
        "import sys; from pathlib import Path; from cluster.shared.run_directory import "
        "RunDirectory; print(RunDirectory(Path(sys.argv[1])).sockets.control_endpoint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "link")],
        check=True,
        capture_output=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.decode().strip() == deep.sockets.control_endpoint()


@posix_only
def test_run_directories_do_not_share_a_short_directory(deep: RunDirectory) -> None:
    other = RunDirectory(deep.path.parent / ("other" * 12))
    other.create()
    try:
        assert other.sockets.control_endpoint() != deep.sockets.control_endpoint()
    finally:
        other.sockets.remove_directory()


@posix_only
def test_a_short_directory_that_another_made_first_is_refused(
    deep: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = path_of(deep.sockets.control_endpoint()).parent
    monkeypatch.setattr(private_directory, "is_owned_by_user", lambda status: False)
    message = message_of(deep.sockets.control_endpoint)
    assert message.startswith(f"socket directory {short} is owned by another user")


@posix_only
def test_a_path_that_is_not_utf8_gets_a_short_directory(tmp_path: Path) -> None:
    odd = RunDirectory(tmp_path / os.fsdecode(b"caf\xe9"))
    odd.create()
    odd.sockets.control_endpoint().encode("utf-8")
    odd.sockets.remove_directory()


@posix_only
@pytest.mark.parametrize("kind", ["directory", "deep"])
def test_zeromq_talks_over_the_endpoints(kind: str, request: pytest.FixtureRequest) -> None:
    chosen = request.getfixturevalue(kind)
    assert isinstance(chosen, RunDirectory)
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as pull,
        context.socket(zmq.PUSH) as push,
    ):
        push.linger = pull.linger = 0
        pull.bind(chosen.sockets.control_endpoint())
        push.connect(chosen.sockets.control_endpoint())
        push.send(b"hello")
        assert pull.poll(5_000)
        assert pull.recv() == b"hello"


def bind_and_forget(endpoint: str) -> Path:
    path = path_of(endpoint)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


@posix_only
@pytest.mark.parametrize("kind", ["directory", "deep"])
def test_stale_sockets_are_removed_and_nothing_else(
    kind: str, request: pytest.FixtureRequest
) -> None:
    chosen = request.getfixturevalue(kind)
    assert isinstance(chosen, RunDirectory)
    control = bind_and_forget(chosen.sockets.control_endpoint())
    chosen.write_config(Config())
    other = path_of(chosen.sockets.lane_endpoint())
    other.write_text("not a socket")
    chosen.sockets.remove_stale()
    chosen.sockets.remove_stale()
    assert not control.exists()
    assert other.read_text() == "not a socket"
    assert chosen.read_config() == Config()
    other.unlink()


@posix_only
def test_the_short_directory_goes_at_the_end(deep: RunDirectory) -> None:
    control = bind_and_forget(deep.sockets.control_endpoint())
    deep.sockets.remove_directory()
    assert not control.parent.exists()
    deep.sockets.remove_directory()
    assert bind_and_forget(deep.sockets.control_endpoint()) == control


@posix_only
def test_a_short_directory_with_something_else_in_it_is_told(deep: RunDirectory) -> None:
    short = path_of(deep.sockets.control_endpoint()).parent
    (short / "other").touch()
    assert f"{short.name} cannot be removed (" in message_of(deep.sockets.remove_directory)
    (short / "other").unlink()


@posix_only
def test_a_socket_that_cannot_be_removed_is_told(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    bind_and_forget(directory.sockets.control_endpoint())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert "control.sock cannot be removed (Operation" in message_of(
            directory.sockets.remove_stale
        )
