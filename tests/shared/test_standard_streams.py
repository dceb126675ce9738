"""A process that was started with closed streams has three that lead nowhere; one whose streams
refuse what is written goes on, and ends as it means to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors in a fork")

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, subprocess, sys
from cluster.shared.standard_streams import open_closed_streams

open_closed_streams()
report = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
assert report > 2, report
assert sys.stdin.read() == ""
print("to nobody")
print("to nobody", file=sys.stderr, flush=True)
child = [sys.executable, "-c", "import sys; sys.stdout.write('x'); sys.stderr.write('y')"]
os.write(report, b"%d" % subprocess.run(child, stdout=2).returncode)
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams_lead_nowhere_also_for_children(tmp_path: Path, closed: tuple[int, ...]):
    def close_streams() -> None:
        for fd in closed:
            os.close(fd)

    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(report)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=close_streams,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert (done.returncode, report.read_bytes()) == (0, b"0"), done
    assert (done.stdout == b"") == (1 in closed)
    assert (done.stderr == b"") == (2 in closed)


REFUSED = """
import sys
from cluster.shared.standard_streams import keep_exit_code, tell
from cluster.supervisor.console import print_ready_line, say

keep_exit_code()
for _ in range(200):
    tell("a line that is longer than nothing, and does not fit\\n")
    say("why")
print_ready_line("ready")
print("what the interpreter writes at its end")
raise SystemExit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("exit_code", [0, 75])
@pytest.mark.parametrize("is_pipe", [False, True])
def test_streams_that_refuse_what_is_written_raise_nothing_and_leave_the_exit_code(
    exit_code: int, is_pipe: bool
):
    if is_pipe:
        reader, writer = os.pipe()
        os.close(reader)
    elif Path("/dev/full").exists():
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        pytest.skip("no device here that is always full")
    try:
        done = subprocess.run(
            [sys.executable, "-c", REFUSED, str(exit_code)],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            timeout=30,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == exit_code
