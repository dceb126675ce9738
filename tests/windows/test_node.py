"""A whole node with the defaults of Windows: completion port, lanes over loopback with CURVE."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_node_serves_bots_tells_its_status_and_is_drained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.windows.node_for_a_moment", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("ready node=1 listen=127.0.0.1:")
    assert line.endswith(" workers=2 driver=iocp lane=zmq")
    assert not (tmp_path / "run" / "endpoint.json").exists()
