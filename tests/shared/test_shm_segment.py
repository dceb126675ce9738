"""Segments: sealed, with all their memory from the start, and one memory for both ends."""

import fcntl
import mmap
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cluster.shared.lane_choice import choose_lane

if sys.platform != "linux" or choose_lane("auto") != "shm":
    pytest.skip("there is no lane in shared memory here", allow_module_level=True)

from cluster.shared.shm_segment import Segment
from tests.shared.shm_ends import CAPACITY

ROOT = Path(__file__).parents[2]


def test_a_segment_is_sealed_against_taking_its_memory_away():
    with closing(Segment.create(CAPACITY)) as segment:
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 1 << 30)
        with pytest.raises(PermissionError):
            fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert not os.get_inheritable(segment.fd)


def test_a_segment_has_all_its_memory_from_the_start():
    with closing(Segment.create(1 << 20)) as segment:
        status = os.fstat(segment.fd)
        assert status.st_blocks * 512 >= status.st_size > 2 << 20


def test_missing_memory_is_an_error_when_the_segment_is_made():
    """In a process of its own, whose files may not grow to the size of a segment."""
    source = (
        "import resource, sys\n"
        "from cluster.shared.shm_segment import Segment\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "before = __import__('os').listdir('/proc/self/fd')\n"
        "try:\n"
        "    Segment.create(4 << 20)\n"
        "except OSError as error:\n"
        "    assert __import__('os').listdir('/proc/self/fd') == before\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 7


def test_a_segment_is_mapped_whole_or_not_at_all():
    fd = os.memfd_create("short")
    os.ftruncate(fd, mmap.PAGESIZE)
    with pytest.raises(ValueError, match="mmap length"):
        Segment(fd, CAPACITY)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_what_both_ends_see_is_one_memory():
    with closing(Segment.create(CAPACITY)) as mine:
        theirs = Segment(os.dup(mine.fd), CAPACITY)
        mine.inbound[5] = 1
        theirs.outbound[7] = 2
        assert (theirs.inbound[5], mine.outbound[7]) == (1, 2)
        theirs.close()
        theirs.close()
        assert mine.inbound[5] == 1
