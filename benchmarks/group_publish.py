"""What a publish costs: one packet to a group of 1,000, beside a loop of uvloop transport writes.

One publish at a time, so that nothing is joined to anything. CPU is user and system time of all
server processes for each packet delivered, without what connecting and joining took.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.servers import LIBRARY_DRIVERS, Server, build, cluster_up, uvloop_publish

Result = dict[str, float]

APP = ("--app", "benchmarks.publish_app:app")


def main() -> None:
    """Measure the servers in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--packet-bytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        servers = [stack.enter_context(uvloop_publish())]
        for driver in LIBRARY_DRIVERS:
            for workers in ("1", "2"):
                name = f"publish, {driver}, {workers} worker{'s' if workers > '1' else ''}"
                flags = (*APP, "--workers", workers, "--driver", driver)
                servers.append(stack.enter_context(cluster_up(*flags, name=name)))
        program = stack.enter_context(build("publish_load"))
        rounds = [
            [measure(program, server, options) for server in servers] for _ in range(options.rounds)
        ]
    for index, server in enumerate(servers):
        print_line(server.name, rounds, index)


def measure(program: Path, server: Server, options: argparse.Namespace) -> Result:
    """Have a group of `server` publish for a while."""
    ports = ",".join(map(str, server.ports))
    arguments = (ports, options.sessions, options.packet_bytes, options.seconds)
    process = subprocess.Popen(
        [str(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"{options.sessions} clients could not join at {server.name}")
            began = server.cpu_seconds()
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"packets of {server.name} were not delivered")
            cpu = server.cpu_seconds() - began
        finally:
            process.stdin.close()
            process.kill()
    result: Result = json.loads(line)
    return {
        "cpu_us": cpu / result["packets"] * 1e6,
        "packets_per_s": result["packets"] / result["seconds"],
        "publish_ms": result["seconds"] / result["published"] * 1e3,
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
    }


def print_line(name: str, rounds: Sequence[Sequence[Result]], index: int) -> None:
    """Print the medians of one server, and of its ratios to the first one of the same round."""
    rate, cpu, time = (
        statistics.median(results[index][key] for results in rounds)
        for key in ("packets_per_s", "cpu_us", "publish_ms")
    )
    ratios = sorted(results[index]["cpu_us"] / results[0]["cpu_us"] for results in rounds)
    sys.stdout.write(
        f"{name:<34} {rate:>9,.0f} packets/s {time:>6.2f} ms a publish {cpu:>6.2f} CPU us/packet "
        f"{statistics.median(ratios):>5.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
