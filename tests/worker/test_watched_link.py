"""A worker that nobody else would end ends itself when it hangs, and says where."""

import faulthandler
import subprocess
import sys

import pytest
import zmq

from cluster.shared.messages import SpareAlive
from cluster.worker.watched_link import WatchedLink
from tests.system.cluster_node import ROOT

PROGRAM = """
import sys, time, zmq
from cluster.shared.messages import SpareAlive
from cluster.worker.watched_link import WatchedLink

closes = sys.argv[1] == "True"
context = zmq.Context()
link = WatchedLink(context.socket(zmq.DEALER), 0, 1.5)
until = time.monotonic() + 2.0
while time.monotonic() < until:
    link.send(SpareAlive())
    time.sleep(0.05)
print("alive", flush=True)

def hanging_handler():
    if closes:
        link.close()
    time.sleep(2.0 if closes else 60)

hanging_handler()
print("went on", flush=True)
link.close()
"""


def run(*, closes: bool) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(closes)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )


def test_a_worker_that_hangs_ends_itself_and_says_where() -> None:
    done = run(closes=False)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "Timeout" in done.stderr
    assert "in hanging_handler" in done.stderr


def test_whose_link_is_closed_is_not_watched_any_more() -> None:
    done = run(closes=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\nwent on\n", "")


def test_a_machine_that_is_out_of_threads_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", refuse)
    with zmq.Context() as context, context.socket(zmq.DEALER) as control:
        control.setsockopt(zmq.LINGER, 0)
        link = WatchedLink(control, 0, 60.0)
        link.send(SpareAlive())
        link.close()
