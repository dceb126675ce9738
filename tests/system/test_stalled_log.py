"""A log that nobody reads, in a pipe that is full, holds up no process of a node."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.cluster_node import READY_LINE, cluster_command, cluster_environment
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a write that does not wait")

TELLS_MUCH = """
import logging
from cluster.worker import App

app = App()

@app.on_packet(1)
def tell(session, payload):
    logging.getLogger("app").warning("%s", "x" * 10_000)
    session.send(1, payload)
"""


def test_a_reader_of_the_log_that_stands_still_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "tells_much.py").write_text(TELLS_MUCH)
    options = ("--listen", "127.0.0.1:0", "--run-dir", str(tmp_path / "run"), "--workers", "1")
    process = subprocess.Popen(
        cluster_command("up", *options, "--app", "tells_much:app"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=cluster_environment(),
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            ready = READY_LINE.fullmatch(process.stdout.readline())
            assert ready is not None
            with PacketClient(int(ready["port"])) as client:
                for number in range(100):  # 1 MB, and a pipe holds 64 KiB
                    assert client.ask(1, b"%d" % number) == (1, b"%d" % number)
                # From now on somebody reads.
                os.set_blocking(process.stderr.fileno(), False)
                first = os.read(process.stderr.fileno(), 1 << 20)
                assert client.ask(1, b"read") == (1, b"read")
                then = os.read(process.stderr.fileno(), 1 << 20).decode()
            assert len(first) < 100 * 10_000
            assert re.search(
                r"\d+ lines of the log were dropped: standard error took nothing", then
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
