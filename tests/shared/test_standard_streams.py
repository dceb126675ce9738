"""A process that was started with closed streams has three that lead nowhere."""

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
