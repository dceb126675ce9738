"""A process tells where it is: when it crashes, and when it is asked."""

import signal
import subprocess
import sys

import pytest

from cluster.shared.tracebacks import ASK_SIGNAL
from tests.system.cluster_node import ROOT

pytestmark = pytest.mark.skipif(ASK_SIGNAL is None, reason="no signal to ask by")

BEGIN = """
import ctypes, os, sys, threading, time
from cluster.shared.tracebacks import tell_tracebacks
tell_tracebacks()
def say_ready():
    print("ready", flush=True)
"""

PROGRAMS = {
    "sleeps": """
def hanging_handler():
    say_ready()
    time.sleep(60)
hanging_handler()
""",
    "computes": """
def hanging_handler():
    say_ready()
    while True:
        pass
hanging_handler()
""",
    "keeps the interpreter's lock": """
def hanging_handler():
    say_ready()
    while True:  # a signal ends a sleep
        ctypes.PyDLL(None).sleep(60)
hanging_handler()
""",
    "waits for another thread": """
lock = threading.Lock()
def holder():
    with lock:
        main = threading.main_thread().ident
        while sys._current_frames()[main].f_code.co_name != "hanging_handler":
            time.sleep(0.001)
        say_ready()
        time.sleep(60)
def hanging_handler():
    lock.acquire()
thread = threading.Thread(target=holder, daemon=True)
thread.start()
while not lock.locked():
    time.sleep(0.001)
hanging_handler()
""",
}


def begin(program: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_process_that_hangs_is_asked_where_and_lives_on(how: str) -> None:
    assert ASK_SIGNAL is not None
    with begin(PROGRAMS[how]) as process:
        assert process.stderr is not None
        try:
            process.send_signal(ASK_SIGNAL)
            told = ""
            while "in <module>" not in told:
                told += process.stderr.readline()
            assert "in hanging_handler" in told
            assert process.poll() is None
        finally:
            process.kill()


def test_a_process_that_crashes_tells_where() -> None:
    with begin(
        "def crashing_handler():\n    say_ready()\n    ctypes.string_at(0)\ncrashing_handler()"
    ) as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGSEGV
    assert "in crashing_handler" in told


def test_a_process_without_a_stderr_starts() -> None:
    program = BEGIN.replace("import ctypes, os", "import os; os.close(2)\nimport ctypes, os")
    done = subprocess.run(
        [sys.executable, "-c", program + "say_ready()"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ready\n")
