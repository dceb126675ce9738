"""A worker that shows no sign of life says where it hangs, and may be ended by that."""

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

closes, is_ended = (word == "True" for word in sys.argv[1:])
context = zmq.Context()
link = WatchedLink(context.socket(zmq.DEALER), 0, 1.5, is_ended=is_ended)
until = time.monotonic() + 2.0
while time.monotonic() < until:
    link.send(SpareAlive())
    time.sleep(0.05)
print("alive", flush=True)

def hanging_handler():
    if closes:
        link.close()
    time.sleep(60 if is_ended and not closes else 2.0)

hanging_handler()
print("went on", flush=True)
link.close()
"""


def run(*, closes: bool, is_ended: bool) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(closes), str(is_ended)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )


def test_where_nobody_else_would_a_worker_that_hangs_ends_itself_and_says_where() -> None:
    done = run(closes=False, is_ended=True)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "Timeout" in done.stderr
    assert "in hanging_handler" in done.stderr


def test_a_worker_that_somebody_watches_says_where_and_goes_on() -> None:
    done = run(closes=False, is_ended=False)
    assert (done.returncode, done.stdout) == (0, "alive\nwent on\n")
    assert done.stderr.count("in hanging_handler") == 1


@pytest.mark.parametrize("is_ended", [False, True])
def test_whose_link_is_closed_is_not_watched_any_more(is_ended: bool) -> None:
    done = run(closes=True, is_ended=is_ended)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\nwent on\n", "")


def test_a_machine_that_is_out_of_threads_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", refuse)
    with zmq.Context() as context, context.socket(zmq.DEALER) as control:
        control.setsockopt(zmq.LINGER, 0)
        link = WatchedLink(control, 0, 60.0, is_ended=False)
        link.send(SpareAlive())
        link.close()
