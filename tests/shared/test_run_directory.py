"""The run directory: private, one holder a role, and every file in it whole."""

import errno
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.shared import private_directory, run_directory, run_directory_lock
from cluster.shared.config import Config, NodeConfig
from cluster.shared.process import spawn, user_tag
from cluster.shared.run_directory import (
    RunDirectory,
    RunDirectoryError,
    RunDirectoryHeld,
    default_run_directory,
)
from tests.support import wait_until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    created = RunDirectory(tmp_path / "run")
    created.create()
    return created


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(RunDirectoryError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    return message


# Where it is


def test_the_default_is_in_the_runtime_directory_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_run_directory() == tmp_path / "iocp-cluster"


@pytest.mark.parametrize("runtime", ["", "relative", "/does/not/exist"])
def test_without_a_runtime_directory_the_default_carries_the_user(
    monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    name = f"iocp-cluster-{user_tag()}"
    assert default_run_directory() == Path(tempfile.gettempdir(), name)


def test_a_relative_path_stays_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = RunDirectory(Path("run"))
    monkeypatch.chdir("/")
    named.create()
    assert named.path == tmp_path / "run"
    assert named.exists()


# Whether it can be trusted


def test_it_is_created_with_those_above_it_and_only_once(tmp_path: Path) -> None:
    created = RunDirectory(tmp_path / "a" / "b")
    assert not created.exists()
    created.create()
    created.create()
    assert created.exists()


@posix_only
def test_it_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RunDirectory(tmp_path / "run").create()
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "run") == 0o700


@posix_only
@pytest.mark.parametrize("content", [None, "epoch", "supervisor.lock"])
def test_one_of_ours_that_others_may_enter_is_closed_to_them(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o777)
    if content is not None:
        (path / content).touch()
    message = message_of(RunDirectory(path).exists)
    assert message == f"run directory {path} may be entered by others: run chmod 700 {path}"
    RunDirectory(path).create()
    assert mode_of(path) == 0o700
    assert RunDirectory(path).exists()


@posix_only
def test_an_open_directory_with_other_things_in_it_is_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(0o755)
    (path / "thesis.txt").touch()
    message = message_of(RunDirectory(path).create)
    assert f"run directory {path} may be entered by others" in message
    assert f"pass another --run-dir, for example {path / 'cluster'}" in message
    assert "chmod" not in message
    assert mode_of(path) == 0o755


@posix_only
def test_a_directory_that_cannot_be_closed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    assert message_of(RunDirectory(path).create) == (
        f"run directory {path} cannot be closed to others (Operation not permitted): "
        "pass another --run-dir"
    )


@posix_only
def test_a_directory_of_another_user_is_refused(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_directory, "is_owned_by_user", lambda status: False)
    expected = (
        f"run directory {directory.path} is owned by another user, "
        f"uid {os.getuid()}: pass another --run-dir"
    )
    assert message_of(directory.create) == expected
    assert message_of(directory.exists) == expected


@posix_only
@pytest.mark.skipif(sys.platform != "win32" and os.getuid() != 0, reason="needs root to chown")
def test_a_directory_that_really_has_another_owner_is_refused(directory: RunDirectory) -> None:
    os.chown(directory.path, 12345, -1)
    assert "is owned by another user, uid 12345" in message_of(directory.create)


@posix_only
def test_a_symlink_where_anyone_may_write_is_refused(tmp_path: Path) -> None:
    shared, private = tmp_path / "shared", tmp_path / "private"
    private.mkdir(0o700)
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "run").symlink_to(private)
    for call in (RunDirectory(shared / "run").create, RunDirectory(shared / "run").exists):
        message = message_of(call)
        assert f"run directory {shared / 'run'} is a symlink" in message
        assert message.endswith("pass another --run-dir")


@posix_only
def test_a_symlink_that_another_user_swaps_in_behind_the_first_look_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, private = tmp_path / "shared", tmp_path / "private"
    private.mkdir(mode=0o700)
    path = shared / "run"
    path.mkdir(parents=True, mode=0o700)
    shared.chmod(0o1777)
    theirs = path.stat().st_ino
    monkeypatch.setattr(
        private_directory, "is_owned_by_user", lambda status: status.st_ino != theirs
    )
    look = Path.stat

    def look_and_swap(looked_at: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        status = look(looked_at, follow_symlinks=follow_symlinks)
        if looked_at == path and not (shared / "away").exists():
            path.rename(shared / "away")
            path.symlink_to(private)
        return status

    monkeypatch.setattr(Path, "stat", look_and_swap)
    for use in (RunDirectory(path).create, RunDirectory(path).exists):
        with pytest.raises(RunDirectoryError, match=r"another user|is a symlink"):
            use()


@posix_only
def test_a_symlink_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "run").symlink_to("target")
    RunDirectory(tmp_path / "run").create()
    assert RunDirectory(tmp_path / "run").exists()


@posix_only
def test_a_symlink_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("absent")
    assert "cannot be examined (No such file" in message_of(RunDirectory(tmp_path / "run").create)


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    message = message_of(RunDirectory(tmp_path / "run").create)
    assert message == f"run directory {tmp_path / 'run'} is not a directory: pass another --run-dir"


def test_a_path_below_a_file_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = message_of(RunDirectory(tmp_path / "file" / "a" / "run").create)
    assert "cannot be created (" in message
    message_of(RunDirectory(tmp_path / "file" / "run").create)


def test_a_name_that_no_file_system_takes_cannot_be_created(tmp_path: Path) -> None:
    assert "cannot be created (" in message_of(RunDirectory(tmp_path / ("x" * 300)).create)
    assert "cannot be created (" in message_of(RunDirectory(tmp_path / "a\0b").create)


def test_a_directory_that_cannot_be_written_is_refused(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert message_of(directory.create) == (
        f"run directory {directory.path} is not writable: "
        "make it writable or pass another --run-dir"
    )


# Locks

HOLD = """
import sys, time
from pathlib import Path
from cluster.shared.run_directory import RunDirectory
lock = RunDirectory(Path(sys.argv[1])).lock("gateway")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(directory: RunDirectory) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the gateway's role."""
    argv = [sys.executable, "-c", HOLD, str(directory.path)]
    with spawn(argv, os.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"held"
        yield process
        process.kill()


def test_a_role_that_is_held_is_refused_with_the_pid(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    assert directory.holder("gateway") == holder.pid
    with pytest.raises(RunDirectoryHeld) as raised:
        directory.lock("gateway")
    assert str(raised.value) == (
        f"run directory {directory.path} is in use: its gateway is pid {holder.pid}: "
        f"pass another --run-dir or stop pid {holder.pid}"
    )
    assert (raised.value.path, raised.value.role) == (directory.path, "gateway")
    assert raised.value.pid == holder.pid


def test_the_role_of_a_killed_process_is_free(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    holder.kill()
    with directory.lock("gateway", wait_s=10):
        assert directory.holder("gateway") == os.getpid()
    assert directory.holder("gateway") is None


def test_a_killed_holder_is_no_holder(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    holder.kill()
    wait_until(lambda: directory.holder("gateway") is None, what="no holder")
    assert (directory.path / "gateway.lock").read_text() != ""


def test_roles_do_not_exclude_each_other(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    with directory.lock("supervisor"), directory.lock("worker-0"):
        assert directory.holder("supervisor") == os.getpid()
        assert directory.holder("gateway") == holder.pid


def test_a_process_excludes_itself_too_until_it_releases(directory: RunDirectory) -> None:
    lock = directory.lock("supervisor")
    with pytest.raises(RunDirectoryHeld) as raised:
        directory.lock("supervisor")
    assert raised.value.pid == os.getpid()
    lock.release()
    lock.release()
    assert directory.holder("supervisor") is None
    with directory.lock("supervisor"):
        pass


def test_waiting_for_a_role_is_bounded(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    began = time.monotonic()
    with pytest.raises(RunDirectoryHeld):
        directory.lock("gateway", wait_s=0.2)
    assert time.monotonic() - began >= 0.2


def test_a_role_that_is_released_meanwhile_is_taken(directory: RunDirectory) -> None:
    first = directory.lock("gateway")
    release = threading.Timer(0.1, first.release)
    release.start()
    try:
        with directory.lock("gateway", wait_s=10):
            pass
    finally:
        release.join()


def test_a_holder_that_cannot_be_seen_still_holds(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory_lock, "_IDENTITY_WAIT_S", 0.05)
    with directory.lock("gateway"):
        (directory.path / "gateway.lock").write_text("2147483647 1.0\n")
        with pytest.raises(RunDirectoryHeld, match="its gateway is a process that is not") as held:
            directory.lock("gateway")
    assert held.value.pid is None


@pytest.mark.parametrize("content", [b"", b"x", b"1", b"1 2 3", b"a b\n", b"\xff\xff", b"1 nan\n"])
def test_a_damaged_lock_file_names_no_holder_and_can_be_taken(
    directory: RunDirectory, content: bytes
) -> None:
    (directory.path / "gateway.lock").write_bytes(content)
    assert directory.holder("gateway") is None
    with directory.lock("gateway"):
        assert directory.holder("gateway") == os.getpid()


def test_nobody_holds_a_role_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path / "absent").holder("gateway") is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.EOPNOTSUPP, "locked ({}): pass a --run-dir on a local file system"),
        (errno.ENOSPC, "written ({}): make room there or pass another --run-dir"),
    ],
)
def test_a_file_system_that_refuses_locks_or_is_full_is_an_error(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int, told: str
) -> None:
    def refuse(fd: int) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(run_directory_lock, "lock_file", refuse)
    message = message_of(lambda: directory.lock("gateway"))
    told = told.format(os.strerror(code))
    assert message == f"run directory {directory.path}: gateway.lock cannot be {told}"


DIE_WRITING = """
import os, sys
from pathlib import Path
from cluster.shared import run_directory
run_directory.replace_file = lambda *_: os.kill(os.getpid(), 9)
directory = run_directory.RunDirectory(Path(sys.argv[1]))
directory.next_epoch() if sys.argv[2] == "epoch" else directory.write_json(sys.argv[2], 1)
"""


@posix_only
def test_what_a_killed_process_was_writing_is_removed_when_the_next_node_begins(
    directory: RunDirectory,
) -> None:
    (directory.path / ".somebody.else.tmp").touch()
    for name in ("epoch", "supervisor.json", "epoch"):
        argv = [sys.executable, "-c", DIE_WRITING, str(directory.path), name]
        assert spawn(argv, os.environ).wait(30) == -9
    assert len(list(directory.path.iterdir())) == 1 + 3
    directory.begin_with(Config())
    left = {path.name for path in directory.path.iterdir()}
    assert left == {".somebody.else.tmp", "config.json", "gateway.lock"}


def test_of_many_processes_that_start_at_once_one_gets_the_role(directory: RunDirectory) -> None:
    argv = [sys.executable, "-c", HOLD, str(directory.path)]
    contenders = [spawn(argv, os.environ, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        wait_until(
            lambda: sum(process.poll() is None for process in contenders) == 1,
            timeout_s=30,
            what="one holder",
        )
        (winner,) = (process for process in contenders if process.poll() is None)
        wait_until(lambda: directory.holder("gateway") == winner.pid, what="its name")
    finally:
        for process in contenders:
            process.kill()
            process.communicate(timeout=10)


def cleaner_may_enter(path: Path) -> bool:
    """Whether what systemd-tmpfiles asks the system before it removes anything is granted."""
    if sys.platform == "win32":
        return False
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@posix_only
def test_cleaners_pass_by_as_long_as_a_role_is_held(directory: RunDirectory) -> None:
    with directory.lock("supervisor"), directory.lock("gateway"):
        assert not cleaner_may_enter(directory.path)
    assert cleaner_may_enter(directory.path)


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="no systemd-tmpfiles here")
def test_systemd_tmpfiles_removes_nothing_of_a_node_that_runs(tmp_path: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text(f"e {tmp_path / 'tmp'} - - - amAM:10d\n")  # it goes by these times alone
    old = time.time() - 20 * 86_400
    directories = [RunDirectory(tmp_path / "tmp" / name) for name in ("runs", "ended")]
    for directory in directories:
        directory.create()
        directory.write_config(Config())
    runs, ended = directories
    with runs.lock("supervisor"):
        for path in sorted((tmp_path / "tmp").rglob("*"), reverse=True):
            os.utime(path, (old, old))
        subprocess.run(["systemd-tmpfiles", "--clean", str(rules)], check=True, timeout=30)
        assert (runs.has_config, ended.has_config) == (True, False)


@posix_only
@pytest.mark.parametrize("is_directory_removed", [False, True])
def test_a_role_whose_file_was_removed_is_taken_anew(
    directory: RunDirectory, is_directory_removed: bool
) -> None:
    with directory.lock("supervisor") as lock:
        assert not lock.renew()
        if is_directory_removed:
            shutil.rmtree(directory.path)
            directory.create()
        else:
            (directory.path / "supervisor.lock").unlink()
        assert directory.holder("supervisor") is None
        assert lock.renew()
        assert not lock.renew()
        assert directory.holder("supervisor") == os.getpid()
        assert not cleaner_may_enter(directory.path)
        with pytest.raises(RunDirectoryHeld):
            directory.lock("supervisor")
    assert not lock.renew()
    assert cleaner_may_enter(directory.path)
    with directory.lock("supervisor"):
        pass


@posix_only
def test_a_role_that_another_has_taken_meanwhile_is_not_taken_anew(
    directory: RunDirectory, holder: subprocess.Popen[bytes]
) -> None:
    (directory.path / "gateway.lock").unlink()
    with directory.lock("gateway") as lock:
        (directory.path / "gateway.lock").unlink()
        with directory.lock("gateway"), pytest.raises(RunDirectoryHeld):
            lock.renew()
        assert lock.renew()


def test_the_error_of_a_held_directory_survives_being_sent() -> None:
    held = RunDirectoryHeld(Path("/run/x"), "gateway", 5)
    copy = pickle.loads(pickle.dumps(held))
    assert (str(copy), copy.role, copy.pid) == (str(held), "gateway", 5)


# Epochs


def test_epochs_count_up_and_survive_the_process(directory: RunDirectory) -> None:
    first = directory.next_epoch()
    assert 1 <= first <= 65_535
    code = (
        "import sys; from pathlib import Path; from cluster.shared.run_directory import "
        "RunDirectory; print(RunDirectory(Path(sys.argv[1])).next_epoch())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory.path)], check=True, capture_output=True
    )
    assert int(done.stdout) == first % 65_535 + 1


def test_the_epoch_after_the_last_is_one(directory: RunDirectory) -> None:
    (directory.path / "epoch").write_text("65534\n")
    assert [directory.next_epoch() for _ in range(3)] == [65_535, 1, 2]


@pytest.mark.parametrize(
    "content", [None, b"", b"0", b"65536", b"-1", b"x", b"1 2", b"\xff", b"9" * 5_000, b"\0" * 4096]
)
def test_without_a_usable_record_the_epoch_starts_from_the_clock(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr("time.time", lambda: 65_535.0 * 3 + 41.9)
    if content is not None:
        (directory.path / "epoch").write_bytes(content)
    assert [directory.next_epoch(), directory.next_epoch()] == [42, 43]


@pytest.mark.parametrize("last", ["9", "65535"])
def test_on_a_full_disk_the_epoch_is_written_over_the_last_one(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    def is_full(_source: object, _target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_directory, "replace_file", is_full)
    with pytest.raises(RunDirectoryError, match="epoch cannot be written"):
        directory.next_epoch()  # there is none
    (directory.path / "epoch").write_text(f"{last}\n")
    epoch = int(last) % 65_535 + 1
    assert [directory.next_epoch(), directory.next_epoch()] == [epoch, epoch + 1]
    assert (directory.path / "epoch").read_text() == f"{epoch + 1}\n"
    assert [path.name for path in directory.path.iterdir()] == ["epoch"]


def test_an_epoch_that_a_loss_of_power_may_undo_is_not_begun(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (directory.path / "epoch").write_text("9\n")
    monkeypatch.setattr(run_directory, "sync_directory", fails)
    with pytest.raises(RunDirectoryError, match="epoch cannot be written"):
        directory.next_epoch()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
@pytest.mark.parametrize("bytes_max", [0, 1, 2])
def test_an_epoch_that_can_be_written_in_part_only_is_not_begun(
    directory: RunDirectory, bytes_max: int
) -> None:
    (directory.path / "epoch").write_text("9\n")
    code = (
        "import resource, sys; from pathlib import Path; from cluster.shared.run_directory import "
        "RunDirectory; limit = int(sys.argv[2]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); "
        "RunDirectory(Path(sys.argv[1])).next_epoch()"
    )
    command = [sys.executable, "-B", "-c", code, str(directory.path), str(bytes_max)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "epoch cannot be written" in done.stderr
    assert (directory.path / "epoch").read_text() == "9\n"


@pytest.mark.parametrize("seconds", [0.0, 65_534.0, 65_535.0, 1_700_000_000.5])
def test_no_clock_gives_epoch_zero(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr("time.time", lambda: seconds)
    assert 1 <= directory.next_epoch() <= 65_535


# Files


class Note(msgspec.Struct):
    text: str


def test_the_configuration_is_handed_over(directory: RunDirectory) -> None:
    config = Config(node=NodeConfig(id=9, app="shop:app"))
    directory.write_config(config)
    assert RunDirectory(directory.path).read_config() == config


def test_a_missing_configuration_is_told_with_the_remedy(directory: RunDirectory) -> None:
    assert message_of(directory.read_config) == (
        f"run directory {directory.path} has no config.json: start the gateway there first"
    )


def test_a_damaged_file_is_told_with_its_name(directory: RunDirectory) -> None:
    (directory.path / "config.json").write_text("{")
    (directory.path / "note.json").write_text('{"text": 5}')
    assert "config.json is damaged" in message_of(directory.read_config)
    assert "note.json is damaged" in message_of(lambda: directory.read_json("note.json", Note))


def test_a_file_comes_back_as_it_was_written(directory: RunDirectory) -> None:
    assert directory.read_json("note.json", Note) is None
    directory.write_json("note.json", Note("one"))
    directory.write_json("note.json", Note("two"))
    assert directory.read_json("note.json", Note) == Note("two")
    assert [path.name for path in directory.path.iterdir()] == ["note.json"]


@posix_only
def test_files_are_private(directory: RunDirectory) -> None:
    directory.write_json("note.json", Note("secret"))
    with directory.lock("gateway"):
        assert mode_of(directory.path / "note.json") == 0o600
        assert mode_of(directory.path / "gateway.lock") == 0o600


def test_a_reader_never_sees_half_a_file(directory: RunDirectory) -> None:
    directory.write_json("note.json", Note("x"))
    done = threading.Event()

    def write() -> None:
        for length in range(300):
            directory.write_json("note.json", Note("x" * length * 50))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            note = directory.read_json("note.json", Note)
            assert note is not None
            assert set(note.text) <= {"x"}
    finally:
        writer.join()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "/etc/passwd"])
def test_a_name_that_is_a_path_is_misuse(directory: RunDirectory, name: str) -> None:
    with pytest.raises(ValueError, match="not the plain name of a file"):
        directory.write_json(name, 1)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    first = directory.next_epoch()
    monkeypatch.setattr("os.fsync", refuse)
    assert message_of(directory.next_epoch) == (
        f"run directory {directory.path}: epoch cannot be written (No space left on device): "
        "look at its file system or pass another --run-dir"
    )
    assert [path.name for path in directory.path.iterdir()] == ["epoch"]
    assert (directory.path / "epoch").read_text() == f"{first}\n"


def test_a_file_that_cannot_be_read_is_an_error(directory: RunDirectory) -> None:
    (directory.path / "note.json").mkdir()
    assert "note.json cannot be" in message_of(lambda: directory.read_json("note.json", Note))
    (directory.path / "gateway.lock").mkdir()
    assert "gateway.lock cannot be" in message_of(lambda: directory.holder("gateway"))
    assert "gateway.lock cannot be" in message_of(lambda: directory.lock("gateway"))


def test_who_runs_several_nodes_is_named_by_its_command(tmp_path: Path):
    held = str(RunDirectoryHeld(tmp_path, "nodes", 17))
    assert f"{tmp_path} is in use: its `cluster up --nodes` is pid 17: pass another" in held
