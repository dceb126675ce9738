"""What the hop costs: framed echo through gateway and worker, beside uvloop without a hop.

Rounds are taken in turn, so that a machine that changes its speed changes it for both. CPU is
user and system time of all server processes for each packet, the figure that survives noise.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.servers import Server, build_load_generator, cluster_up, uvloop_echo

CASES = ((64, 1), (1000, 1), (64, 32), (1, 1))


def measure(
    program: Path, server: Server, sessions: int, depth: int, packet_bytes: int, seconds: float
) -> dict[str, float]:
    """Load `server` once; return packets/s, CPU µs for each packet, and p50 in µs at depth 1."""
    began = server.cpu_seconds()
    arguments = (server.port, sessions, depth, packet_bytes, seconds)
    output = subprocess.run(
        [str(program), *map(str, arguments)], check=True, capture_output=True, timeout=seconds + 60
    ).stdout
    result: dict[str, float] = json.loads(output)
    cpu = server.cpu_seconds() - began
    return {
        "packets_per_s": result["packets"] / result["seconds"],
        "cpu_us": cpu / result["packets"] * 1e6,
        "p50_us": result.get("p50_us", 0.0),
    }


def compare(
    program: Path, servers: Sequence[Server], sessions: int, depth: int, options: argparse.Namespace
) -> None:
    """Measure all servers in turn and print the medians."""
    rounds: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for _ in range(options.rounds):
        for server in servers:
            rounds[server.name].append(
                measure(program, server, sessions, depth, options.packet_bytes, options.seconds)
            )
    base = 0.0
    for name, results in rounds.items():
        cpu, rate, p50 = (
            statistics.median(result[key] for result in results)
            for key in ("cpu_us", "packets_per_s", "p50_us")
        )
        base = base or cpu
        sys.stdout.write(
            f"{sessions:5} x {depth:<3} {name:<20} {rate:>12,.0f} packets/s "
            f"{cpu:>8.2f} CPU us/packet {cpu / base:>6.2f} x   p50 {p50:>7.0f} us\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packet-bytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--case", action="append", metavar="SESSIONSxDEPTH")
    options = parser.parse_args()
    cases = [tuple(map(int, case.split("x"))) for case in options.case or ()] or CASES
    with (
        build_load_generator() as program,
        uvloop_echo() as uvloop,
        cluster_up("--workers", "1", name="cluster, 1 worker") as one,
        cluster_up("--workers", "2", name="cluster, 2 workers") as two,
    ):
        for sessions, depth in cases:
            compare(program, (uvloop, one, two), sessions, depth, options)


if __name__ == "__main__":
    main()
