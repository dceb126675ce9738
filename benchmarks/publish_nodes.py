"""What it costs to publish to a group whose members are on three nodes, beside the same on one.

One publish at a time, from one node. CPU is user and system time of all processes of all nodes for
each packet delivered; the time from a publish to each of its deliveries includes the client's. All
nodes share the cores of this machine with the clients.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.group_publish import Result, measure
from benchmarks.servers import build, nodes_up

NODES = (1, 3)
APP = ("--app", "benchmarks.publish_app:app", "--workers", "1")


def main() -> None:
    """Measure both in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=300, help="members, spread evenly")
    parser.add_argument("--packet-bytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        servers = [stack.enter_context(nodes_up(count, *APP)) for count in NODES]
        program = stack.enter_context(build("publish_load"))
        rounds = [
            [measure(program, server, options) for server in servers] for _ in range(options.rounds)
        ]
    for index, server in enumerate(servers):
        print_line(server.name, rounds, index)


def print_line(name: str, rounds: Sequence[Sequence[Result]], index: int) -> None:
    """Print the medians of one cluster, and of its ratios to one node in the same round."""
    rate, cpu, p50, p99 = (
        statistics.median(results[index][key] for results in rounds)
        for key in ("packets_per_s", "cpu_us", "p50_us", "p99_us")
    )
    cpu_ratio, p50_ratio, p99_ratio = (
        statistics.median(results[index][key] / results[0][key] for results in rounds)
        for key in ("cpu_us", "p50_us", "p99_us")
    )
    sys.stdout.write(
        f"{name:<8} {rate:>9,.0f} packets/s {cpu:>6.2f} CPU us/packet {cpu_ratio:>5.2f} x   "
        f"p50 {p50:>6.0f} us {p50_ratio:>5.2f} x   p99 {p99:>6.0f} us {p99_ratio:>5.2f} x\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
