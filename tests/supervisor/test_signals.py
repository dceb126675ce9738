"""Signals set a flag and wake whoever polls."""

import itertools
import os
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cluster.shared.stop_requests import SAME_REQUEST_S
from cluster.supervisor.signals import SignalWatch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself is an end")

TIMEOUT_S = 10.0


def wakes(watch: SignalWatch) -> bool:
    return bool(select.select([watch.fileno()], [], [], TIMEOUT_S)[0])


def test_signals_are_counted_and_wake_until_cleared(monkeypatch: pytest.MonkeyPatch):
    now = itertools.count(100.0, 2 * SAME_REQUEST_S)
    monkeypatch.setattr("cluster.supervisor.signals.time", SimpleNamespace(monotonic=now.__next__))
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert wakes(watch)
        assert (watch.stop_count, watch.last_stop_signal) == (1, signal.SIGTERM)
        watch.clear()
        assert not select.select([watch.fileno()], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert wakes(watch)
        assert (watch.stop_count, watch.last_stop_signal) == (2, signal.SIGINT)


def test_signals_that_come_together_are_one():
    with SignalWatch() as watch:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert wakes(watch)
        assert watch.stop_count == 1


def test_a_terminal_that_closes_asks_for_the_end():
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGHUP)
        assert wakes(watch)
        assert (watch.stop_count, watch.last_stop_signal) == (1, signal.SIGHUP)


@pytest.mark.parametrize("first", ["SIGHUP", "SIGINT"])
def test_a_terminal_that_closes_is_no_second_request(first: str, monkeypatch: pytest.MonkeyPatch):
    now = itertools.count(100.0, 2 * SAME_REQUEST_S)
    monkeypatch.setattr("cluster.supervisor.signals.time", SimpleNamespace(monotonic=now.__next__))
    with SignalWatch() as watch:
        os.kill(os.getpid(), getattr(signal, first))
        assert watch.stop_count == 1
        os.kill(os.getpid(), signal.SIGHUP)
        assert (watch.stop_count, watch.last_stop_signal) == (1, getattr(signal, first))
        os.kill(os.getpid(), signal.SIGTERM)
        assert (watch.stop_count, watch.last_stop_signal) == (2, signal.SIGTERM)


def test_who_was_started_to_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.stop_count == 0
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_death_of_a_child_wakes_and_asks_for_no_end():
    with SignalWatch() as watch:
        assert watch.tells_deaths
        with subprocess.Popen([sys.executable, "-c", ""]):
            assert wakes(watch)
        assert watch.stop_count == 0


def test_clearing_what_never_came_does_not_wait():
    with SignalWatch() as watch:
        watch.clear()


def test_the_handlers_of_before_come_back():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    with SignalWatch():
        assert all(signal.getsignal(number) not in before for number in numbers[:2])
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_asks_for_an_end_that_has_come_is_ignored_behind_it():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGCHLD)}
    try:
        with SignalWatch() as watch:
            watch.ignore_what_comes_behind()
            os.kill(os.getpid(), signal.SIGTERM)
            assert watch.stop_count == 1  # until then it is counted
        for number in numbers:
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGCHLD) is before[signal.SIGCHLD]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
