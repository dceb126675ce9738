"""Framed echo on several servers in turn: what `echo_hop` and `library_echo` have in common.

Rounds are taken in turn, and begin with another server each time, so that a machine that changes
its speed changes it for all. CPU is
user and system time of all server processes for each packet, the figure that survives noise. It
is compared with the first server of the same round, and the median of those ratios is shown.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.servers import Server, build

__all__ = ["Case", "Round", "asked_for", "compare_all", "make_parser", "print_lines", "take_rounds"]

Case = tuple[int, int]
"""Sessions, and how many packets each of them keeps outstanding."""

Result = dict[str, float]
Round = list[Result]
"""What each of the servers did once."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every comparison."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--packet-bytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--case", action="append", metavar="SESSIONSxDEPTH")
    return parser


def compare_all(
    servers: Sequence[Server],
    cases: Sequence[Case],
    options: argparse.Namespace,
    payload: bytes | None = None,
) -> None:
    """Measure `servers` in each of `cases`, or in those of the command line, and print.

    Packets hold `payload`, if one is given, else as many bytes as the command line says. Whatever a
    server answers has to have the size of what it was asked.
    """
    with build("load_generator") as program:
        for case in asked_for(options) or cases:
            rounds = take_rounds(program, servers, case, options, payload)
            print_lines(case, [server.name for server in servers], rounds)


def asked_for(options: argparse.Namespace) -> list[Case]:
    """Return the cases of the command line, if it has any."""
    given = (case.split("x") for case in options.case or ())
    return [(int(sessions), int(depth)) for sessions, depth in given]


def take_rounds(
    program: Path,
    servers: Sequence[Server],
    case: Case,
    options: argparse.Namespace,
    payload: bytes | None = None,
) -> list[Round]:
    """Measure `servers` in turn, as often as the command line says; `program` loads them."""
    rounds: list[Round] = []
    for number in range(options.rounds):
        # Whoever comes first in a round has another machine than who comes last, by up to a tenth.
        order = [(number + step) % len(servers) for step in range(len(servers))]
        results = {
            index: _measure(program, servers[index], *case, options, payload) for index in order
        }
        rounds.append([results[index] for index in range(len(servers))])
    return rounds


def print_lines(case: Case, names: Sequence[str], rounds: Sequence[Round]) -> None:
    """Print what each of the servers with these `names` did in `case`."""
    sessions, depth = case
    for index, name in enumerate(names):
        _print_line(f"{sessions:5} x {depth:<3} {name}", rounds, index)


def _measure(
    program: Path,
    server: Server,
    sessions: int,
    depth: int,
    options: argparse.Namespace,
    payload: bytes | None,
) -> Result:
    """Load `server` once; the round trips are 0 at a depth above 1."""
    began = server.cpu_seconds()
    packet_bytes = options.packet_bytes if payload is None else 4 + len(payload)
    arguments = [server.port, sessions, depth, packet_bytes, options.seconds]
    if payload is not None:
        arguments.append(payload.hex())
    output = subprocess.run(
        [str(program), *map(str, arguments)],
        check=True,
        capture_output=True,
        timeout=options.seconds + 60,
    ).stdout
    result: Result = json.loads(output)
    cpu = server.cpu_seconds() - began
    return {
        "packets_per_s": result["packets"] / result["seconds"],
        "cpu_us": cpu / result["packets"] * 1e6,
        "p50_us": result.get("p50_us", 0.0),
        "p99_us": result.get("p99_us", 0.0),
    }


def _print_line(name: str, rounds: Sequence[Round], index: int) -> None:
    rate, cpu, p50, p99 = (
        statistics.median(results[index][key] for results in rounds)
        for key in ("packets_per_s", "cpu_us", "p50_us", "p99_us")
    )
    ratio = statistics.median(results[index]["cpu_us"] / results[0]["cpu_us"] for results in rounds)
    line = f"{name:<40} {rate:>11,.0f} packets/s {cpu:>7.2f} CPU us/packet {ratio:>5.2f} x"
    if p50:
        line += f"   p50 {p50:>6.0f} us   p99 {p99:>6.0f} us"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
