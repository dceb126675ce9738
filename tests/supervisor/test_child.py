"""How a child that hangs is killed: once it has told where, and at once if it cannot."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.shared.process import is_stopped, spawn
from cluster.shared.tracebacks import ASK_SIGNAL
from cluster.supervisor.child import Child
from tests.support import wait_until

HANGS = """
import os, time
from cluster.shared.tracebacks import tell_tracebacks
os.dup2(1, 2)
tell_tracebacks()
def hanging_handler():
    print("up", flush=True)
    time.sleep(60)
hanging_handler()
"""

pytestmark = pytest.mark.skipif(ASK_SIGNAL is None, reason="no signal to ask by")


@contextmanager
def hanging() -> Iterator[tuple[Child, "subprocess.Popen[bytes]"]]:
    process = spawn([sys.executable, "-c", HANGS], os.environ, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield Child("worker 0", process), process
        finally:
            process.kill()


def test_a_child_that_hangs_tells_where_before_it_is_killed() -> None:
    with hanging() as (child, process):
        child.kill_once_told()
        due = child.kill_due
        assert due is not None
        assert process.stdout is not None
        told = b""
        while b"in <module>" not in told:
            told += process.stdout.readline()
        assert b"in hanging_handler" in told
        child.kill_if_due(due - 0.01)
        assert child.exit_code() is None
        child.kill_once_told()  # as after a second report of the same
        assert child.kill_due == due
        child.kill_if_due(due)
        wait_until(lambda: child.exit_code() == -signal.SIGKILL, what="the end")
        assert child.kill_due is None


def test_a_child_that_is_stopped_cannot_tell_and_is_killed_at_once() -> None:
    with hanging() as (child, process):
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(child.pid), what="the stop")
        child.kill_once_told()
        assert child.kill_due is None
        wait_until(lambda: child.exit_code() == -signal.SIGKILL, what="the end")


def test_a_child_that_has_ended_meanwhile_is_reaped_as_ever() -> None:
    with hanging() as (child, process):
        child.kill_once_told()
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: child.exit_code() == -signal.SIGTERM, what="the end")
        child.kill_if_due(time.monotonic() + 60)
        assert child.exit_code() == -signal.SIGTERM
