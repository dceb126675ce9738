"""Process control with real processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.shared.process import (
    count_memory_kills,
    die_with_parent,
    is_same_process,
    is_stopped,
    lock_file,
    portable,
    process_identity,
    raise_descriptor_limit,
    spawn,
    sync_directory,
    unlock_file,
    user_tag,
)
from tests.support import wait_until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

SLEEP = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = spawn([sys.executable, "-c", SLEEP], os.environ, stdout=subprocess.PIPE)
    with process:
        yield process
        process.kill()


# Locks


def test_a_locked_file_is_refused_until_it_is_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    second = os.open(path, os.O_RDWR)
    try:
        assert lock_file(first)
        assert not lock_file(second)
        unlock_file(first)
        assert lock_file(second)
    finally:
        os.close(first)
        os.close(second)


def test_a_locked_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("holder")
    fd = os.open(path, os.O_RDWR)
    try:
        assert lock_file(fd)
        assert path.read_text() == "holder"
    finally:
        os.close(fd)


# Identity


def test_an_identity_lasts_as_long_as_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process_identity(sleeper.pid)
    assert identity == process_identity(sleeper.pid)
    assert is_same_process(*identity)
    sleeper.kill()
    wait_until(lambda: not is_same_process(*identity), what="the end of the process")


@posix_only
def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process_identity(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_same_process(*identity)
    with pytest.raises(ProcessLookupError):
        process_identity(sleeper.pid)
    with pytest.raises(ProcessLookupError):
        portable.create_time(sleeper.pid)


def test_another_process_with_the_same_pid_is_a_stranger() -> None:
    pid, created = process_identity(os.getpid())
    assert is_same_process(pid, created)
    assert not is_same_process(pid, created + 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no descriptor is needed for it")
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_process_that_cannot_be_looked_up_lives_while_its_pid_is_there(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    identity = process_identity(sleeper.pid)

    def refuse(path: Path) -> bytes:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert is_same_process(*identity)
        sleeper.kill()
        sleeper.wait(10)
        assert not is_same_process(*identity)
        assert not is_same_process(2**70, 1.0)


@pytest.mark.parametrize("pid", [-1, 0, 2**31 - 1, 2**70])
def test_a_pid_that_nobody_has_names_no_process(pid: int) -> None:
    assert not is_same_process(pid, 0.0)
    with pytest.raises(ProcessLookupError):
        process_identity(pid)


def test_a_name_with_spaces_and_parentheses_does_not_confuse_the_identity(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the name of a process can be set on Linux")
    code = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b'a) Z (b c', 0, 0, 0);"
        "print('up', flush=True); time.sleep(60)"
    )
    with spawn([sys.executable, "-c", code], os.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = process_identity(process.pid)
        process.stdout.readline()
        assert psutil.Process(process.pid).name() == "a) Z (b c"
        assert process_identity(process.pid) == before
        process.kill()


def test_the_portable_creation_time_is_that_of_a_living_process() -> None:
    assert 0 < portable.create_time(os.getpid()) <= time.time() + 1
    with pytest.raises(ProcessLookupError):
        portable.create_time(2**31 - 1)


# Spawning


def test_a_spawned_process_has_no_input_and_a_session_of_its_own() -> None:
    code = "import os, sys; print(sys.stdin.read() == '', os.getpid() == os.getsid(0))"
    if sys.platform == "win32":
        code = "import sys; print(sys.stdin.read() == '', True)"
    with spawn([sys.executable, "-c", code], os.environ, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=30)
    assert output.split() == [b"True", b"True"]


def test_a_spawned_process_gets_exactly_the_environment() -> None:
    code = "import os; print(os.environ.get('CLUSTER_TEST'))"
    environment = {**os.environ, "CLUSTER_TEST": "here"}
    argv = [sys.executable, "-c", code]
    with spawn(argv, environment, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=30)
    assert output.split() == [b"here"]


def test_the_output_of_a_spawned_process_stays_out_of_ours() -> None:
    code = (
        "import os, sys; from cluster.shared.process import spawn;"
        "spawn([sys.executable, '-c', 'print(1)'], os.environ).wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    assert (done.stdout, done.stderr.strip()) == (b"", b"1")


def test_a_program_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        spawn([str(tmp_path / "absent")], os.environ)


# The end of a parent

PARENT = """
import os, subprocess, sys, time
from cluster.shared.process import spawn
child = spawn([sys.executable, "-c", sys.argv[1], str(os.getpid())], os.environ,
              stdout=subprocess.PIPE)
assert child.stdout.readline().strip() == b"up"
print(child.pid, flush=True)
time.sleep(60)
"""

CHILD = """
import sys, time
{setup}
from cluster.shared.process import die_with_parent
die_with_parent(int(sys.argv[1]))
print("up", flush=True)
time.sleep(60)
"""

WITHOUT_THE_KERNEL = """
from cluster.shared.process import posix
posix._kill_at_parent_death = lambda: False
"""


def die_without_parent(setup: str) -> None:
    """Kill a parent and wait for its child to follow."""
    argv = [sys.executable, "-c", PARENT, CHILD.format(setup=setup)]
    with spawn(argv, os.environ, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = process_identity(int(parent.stdout.readline()))
        assert is_same_process(*child)
        parent.kill()
        parent.wait(timeout=10)
        try:
            wait_until(lambda: not is_same_process(*child), what="the child's end")
        finally:
            if is_same_process(*child):
                os.kill(child.pid, signal.SIGTERM)


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    die_without_parent(setup="")


@posix_only
def test_a_child_dies_with_its_parent_where_the_kernel_does_not_help() -> None:
    die_without_parent(setup=WITHOUT_THE_KERNEL)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait(timeout=30)
    argv = [sys.executable, "-c", CHILD.format(setup=""), str(gone.pid)]
    with spawn(argv, os.environ, stdout=subprocess.PIPE) as child:
        output, _ = child.communicate(timeout=30)
    assert (child.returncode, output) == (1, b"")


@posix_only
def test_the_test_itself_is_not_ended_by_naming_its_own_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cluster.shared.process import posix

    monkeypatch.setattr(posix, "_kill_at_parent_death", lambda: True)
    die_with_parent(os.getppid())


# Limits


@posix_only
def test_the_descriptor_limit_goes_up_to_what_is_wanted_and_never_down() -> None:
    code = (
        "import resource\n"
        "from cluster.shared.process import raise_descriptor_limit\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "print([raise_descriptor_limit(wanted) for wanted in (10, 128, 100, 1000)])\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    assert done.stdout.decode().splitlines() == ["[64, 128, 128, 256]", "(256, 256)"]


def test_the_descriptor_limit_is_a_number_to_plan_with() -> None:
    assert raise_descriptor_limit(1) >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how large the table is")
def test_room_for_descriptors_is_made_and_takes_none() -> None:
    if psutil.Process().rlimit(psutil.RLIMIT_NOFILE)[1] < 3_000:
        pytest.skip("fewer descriptors are allowed here")
    code = (
        "import os, re, resource\n"
        "from pathlib import Path\n"
        "from cluster.shared.process import make_room_for_descriptors\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))\n"
        "def room():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'FDSize:\\s+(\\d+)', text)[1])\n"
        "opened = os.listdir('/proc/self/fd')\n"
        "before = room()\n"
        "make_room_for_descriptors(3001)\n"
        "make_room_for_descriptors(0)\n"
        "print(before < 2000, room() == before)\n"
        "make_room_for_descriptors(3000)\n"
        "print(room() >= 3000, os.listdir('/proc/self/fd') == opened)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    assert done.stdout.decode().split() == ["True"] * 4


# Directories


def test_what_the_system_has_killed_for_want_of_memory_is_counted() -> None:
    count = count_memory_kills()
    told = Path("/proc/vmstat").read_text() if Path("/proc/vmstat").exists() else ""
    if "oom_kill " in told:
        assert f"oom_kill {count}\n" in told
    else:
        assert count == 0


def test_a_directory_can_be_synced(tmp_path: Path) -> None:
    sync_directory(tmp_path)


def test_the_tag_of_a_user_can_be_part_of_a_file_name() -> None:
    assert user_tag().replace("-", "").replace("_", "").isalnum()


@posix_only
def test_a_process_that_is_stopped_is_known(sleeper: subprocess.Popen[bytes]) -> None:
    assert not is_stopped(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(sleeper.pid), what="the stop")
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: not is_stopped(sleeper.pid), what="the way back")
    sleeper.kill()
    sleeper.wait()
    assert not is_stopped(sleeper.pid)
