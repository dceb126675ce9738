"""Runs of bots against an echo on the library, honest or not."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.bots import latencies as latencies_module
from cluster.bots import load_run
from cluster.bots import run_bots as command
from cluster.bots.latencies import Latencies
from cluster.bots.load_run import BotsError, BotsSettings, LoadPhase, LoadProgress, LoadRun
from cluster.bots.report import BotsReport
from cluster.bots.run_bots import run_bots
from cluster.iocp import NetAddress, PacketSession
from tests.bots.echo_server import Behaviour, echo, echo_server
from tests.support import wait_until

ROOT = Path(__file__).parents[2]


def settings(address: NetAddress, **changes: float) -> BotsSettings:
    values = {"sessions": 3, "depth": 2, "payload_bytes": 60, "seconds": 0.2, **changes}
    return BotsSettings(
        address,
        int(values["sessions"]),
        int(values["depth"]),
        int(values["payload_bytes"]),
        values["seconds"],
    )


def run_against(behaviour: Behaviour, **changes: float) -> BotsReport:
    with echo_server(behaviour) as address:
        return LoadRun(settings(address, **changes)).run()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which nothing comes back, so that none of it can be late."""
    monkeypatch.setattr(load_run, "SETTLE_STALL_S", 0.3)


@contextmanager
def nobody() -> Iterator[NetAddress]:
    """An address that nobody listens at, or is given meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield NetAddress.from_sockaddr(holder.getsockname())


@pytest.mark.parametrize("payload_bytes", [0, 1, 11, 12, 60, 65_531])
def test_an_honest_echo_is_clean_at_every_size(payload_bytes: int):
    report = run_against(echo, payload_bytes=payload_bytes)
    assert report.is_clean
    assert report.sessions == 3
    assert report.packets >= 6
    assert report.packets_per_s == pytest.approx(report.packets / report.seconds, rel=0.01)
    latency = report.latency_us
    assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.p999 <= latency.max


def test_the_depth_is_kept_and_never_exceeded():
    most: dict[PacketSession, int] = {}
    held: dict[PacketSession, list[bytes]] = {}

    def hold_back(session: PacketSession, number: int, packet: bytes) -> None:
        packets = held.setdefault(session, [])
        packets.append(packet)
        most[session] = max(most.get(session, 0), len(packets))
        if len(packets) == 5:
            session.send(b"".join(packets))
            packets.clear()

    report = run_against(hold_back, depth=5)
    assert set(most.values()) == {5}
    assert report.is_clean


def test_echoes_that_never_come_are_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_run, "SETTLE_STALL_S", 2.0)

    def forget_the_second(session: PacketSession, number: int, packet: bytes) -> None:
        if number != 1:
            session.send(packet)

    report = run_against(forget_the_second)
    assert (report.lost, report.differed, report.disconnected) == (3, 0, 0)
    assert not report.is_clean


@pytest.mark.usefixtures("no_patience")
def test_a_mute_server_loses_everything_within_a_bounded_time():
    began = time.monotonic()
    report = run_against(lambda session, number, packet: None)
    assert time.monotonic() - began < 10
    assert (report.packets, report.lost) == (0, 6)
    assert (report.seconds, report.packets_per_s, report.latency_us.max) == (0.0, 0.0, 0)


def test_what_came_while_the_run_was_stopped_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_run, "SETTLE_STALL_S", 0.3)
    may_answer = threading.Event()
    answered: list[int] = []

    def answer_late(session: PacketSession, number: int, packet: bytes) -> None:
        assert may_answer.wait(30)
        session.send(packet)
        answered.append(number)

    def stop_until_all_is_there(progress: LoadProgress) -> None:
        if progress.phase is LoadPhase.SETTLING and not may_answer.is_set():
            may_answer.set()
            wait_until(lambda: len(answered) == 6, what="all answers")
            time.sleep(0.4)  # longer than the patience

    with echo_server(answer_late) as address:
        report = LoadRun(settings(address)).run(stop_until_all_is_there)
    assert (report.packets, report.lost) == (6, 0)


def test_altered_echoes_differ():
    def alter_the_first(session: PacketSession, number: int, packet: bytes) -> None:
        session.send(packet if number else packet[:-1] + b"!")

    report = run_against(alter_the_first)
    assert (report.lost, report.differed, report.disconnected) == (0, 3, 0)


def test_a_session_that_the_server_ends_is_disconnected_and_its_packets_are_lost():
    def leave(session: PacketSession, number: int, packet: bytes) -> None:
        session.abort("tired")

    report = run_against(leave, seconds=30)  # ends early: nobody is left
    assert (report.sessions, report.disconnected, report.lost) == (3, 3, 6)


def test_more_sessions_than_connect_at_once_all_connect(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_run, "CONNECTS_AT_ONCE_MAX", 4)
    report = run_against(echo, sessions=50, depth=1)
    assert report.sessions == 50
    assert report.is_clean


@pytest.mark.parametrize("seconds", [0.0, 0.6])
def test_progress_is_shown_phase_by_phase(seconds: float):
    shown: list[LoadProgress] = []
    with echo_server() as address:
        LoadRun(settings(address, seconds=seconds)).run(shown.append)
    phases = [progress.phase for progress in shown]
    assert phases == sorted(phases, key=list(LoadPhase).index)
    assert {LoadPhase.CONNECTING, LoadPhase.LOADING} <= set(phases)
    assert shown[-1].packets > 0
    assert shown[-1].packets_per_s > 0


def test_a_refused_connection_ends_the_run_at_once():
    with nobody() as address:
        said = re.escape(f"nobody listens at {address} (refused)")
        with pytest.raises(BotsError, match=said):
            LoadRun(settings(address)).run()


def test_connecting_ends_when_nothing_connects_any_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_run, "CONNECT_STALL_S", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:  # fill the backlog, so that further connects hang
                client.setblocking(False)
                client.connect_ex(address)
            with pytest.raises(BotsError, match="timeout"):
                LoadRun(settings(NetAddress(*address), sessions=20)).run()
        finally:
            for client in waiting:
                client.close()


# -- the command -----------------------------------------------------------------------------------


def test_a_clean_run_is_code_0_and_one_line_of_json(capsys: pytest.CaptureFixture[str]):
    with echo_server() as address:
        assert run_bots(settings(address), as_json=True) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert list(report) == [
        "sessions",
        "packets",
        "seconds",
        "packets_per_s",
        "lost",
        "differed",
        "disconnected",
        "latency_us",
    ]
    assert list(report["latency_us"]) == ["p50", "p90", "p99", "p999", "max"]
    assert output.err == ""


@pytest.mark.usefixtures("no_patience")
def test_a_run_with_losses_is_code_1_and_told_in_words(capsys: pytest.CaptureFixture[str]):
    with echo_server(lambda session, number, packet: None) as address:
        assert run_bots(settings(address), as_json=False) == 1
    output = capsys.readouterr()
    assert "lost 6  differed 0  disconnected 0" in output.out
    assert output.err.startswith(f"cluster: nothing came back from {address} as it was sent: bots")
    assert output.err.count("\n") == 1


def test_a_run_without_a_server_is_code_1_and_one_line(capsys: pytest.CaptureFixture[str]):
    with nobody() as address:
        assert run_bots(settings(address), as_json=True) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"cluster: nobody listens at {address} (refused)")
    assert output.err.count("\n") == 1


def test_a_name_that_does_not_exist_is_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def not_found(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", not_found)
    assert run_bots(settings(NetAddress("nowhere.test", 1)), as_json=True) == 2
    expected = "cluster: --connect nowhere.test:1: Name or service not known\n"
    assert capsys.readouterr().err == expected


def test_more_sessions_than_open_files_are_refused_before_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "raise_descriptor_limit", lambda wanted: 100)
    assert run_bots(settings(NetAddress("127.0.0.1", 1), sessions=50), as_json=True) == 2
    assert "--sessions 50 needs 114 open files, but 100 are allowed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself is an end there")
def test_ctrl_c_ends_a_run_early_with_its_result(capsys: pytest.CaptureFixture[str]):
    asked: list[bool] = []

    def interrupt_once(session: PacketSession, number: int, packet: bytes) -> None:
        session.send(packet)
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    with echo_server(interrupt_once) as address:
        assert run_bots(settings(address, seconds=60), as_json=True) == 0
    assert time.monotonic() - began < 30
    assert json.loads(capsys.readouterr().out)["packets"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_is_live_on_a_terminal_and_the_result_stays_on_stdout():
    screen, terminal = os.openpty()
    try:
        with echo_server() as address:
            command_line = ["bots", "--connect", str(address), "--seconds", "60", "--json"]
            with subprocess.Popen(
                [sys.executable, "-m", "cluster", *command_line],
                stdout=subprocess.PIPE,
                stderr=terminal,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            ) as process:
                try:
                    shown = b""
                    while b"loading: 64 sessions" not in shown:
                        assert select.select([screen], [], [], 20)[0], shown
                        shown += os.read(screen, 65_536)
                    process.send_signal(signal.SIGINT)
                    output, _ = process.communicate(timeout=30)
                finally:
                    process.kill()
        assert process.returncode == 0
        assert json.loads(output)["lost"] == 0
    finally:
        os.close(terminal)
        os.close(screen)


def test_many_distinct_latencies_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latencies_module, "_DISTINCT_MAX", 10)
    latencies = Latencies()
    for _ in range(3):
        latencies.pending += [micros * 1_000 for micros in range(1, 101)]
        latencies.fold()
        assert not latencies._counts
    assert latencies.summary().max == 100


def test_latencies_keep_three_digits_and_bound_what_they_hold():
    latencies = Latencies()
    latencies.pending += [micros * 1_000 for micros in range(1, 1_001)]
    latencies.fold()
    latencies.pending += [0, 10**16]
    summary = latencies.summary()
    assert summary.p50 == pytest.approx(500, rel=0.002)
    assert summary.p99 == pytest.approx(990, rel=0.002)
    assert summary.max == pytest.approx(3_600_000_000, rel=0.001)
    assert latencies.pending == []
