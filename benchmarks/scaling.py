"""What more nodes and more workers bring: 1, 2 and 3 nodes with 1 and 2 workers each.

Two applications: an echo, and a handler that burns 50 µs of processor time. Sessions are spread
evenly over the nodes, each with one packet outstanding. All nodes are on this machine, together
with the clients: its cores limit what can be reached, and the output says how far. So there are two
efficiencies. That of packets/s is beside the 1 × 1 of the same round times the number of workers;
where the cores are all busy it says nothing about more machines. That of processor time is what a
packet cost in the 1 × 1 beside what it costs here: what it loses is lost on any number of cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import Server, build, nodes_up

APPLICATIONS = {"echo": "benchmarks.scaling_app:echo", "burn": "benchmarks.scaling_app:burn"}
NODES = (1, 2, 3)
WORKERS = (1, 2)
CONFIG = "[workers]\nspares = 0\n"

BUSY = 0.9
"""From this share of the processors' time on, they are what limits."""

Shape = tuple[int, int]
"""Nodes, and workers of each."""


class Result(NamedTuple):
    """What one round measured."""

    packets_per_s: float
    cpu_us: float
    """Processor time of all servers for each packet."""
    busy: float
    """Share of all cores' time that servers and clients took."""


class Row(NamedTuple):
    """The medians of one shape, and of its ratios to 1 × 1 in the same round."""

    application: str
    nodes: int
    workers: int
    packets_per_s: float
    cpu_us: float
    busy: float
    efficiency: float
    cpu_efficiency: float


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def measure(
    program: Path, nodes: Server, sessions: int, packet_bytes: int, seconds: float
) -> Result:
    """Load all nodes at once."""
    count = len(nodes.ports)
    shares = [sessions // count + (index < sessions % count) for index in range(count)]
    began_at, began_cpu, clients_began = time.perf_counter(), nodes.cpu_seconds(), _clients_cpu()
    clients = [
        subprocess.Popen(
            [str(program), *map(str, (port, share, 1, packet_bytes, seconds))],
            stdout=subprocess.PIPE,
        )
        for port, share in zip(nodes.ports, shares, strict=True)
    ]
    results = []
    for client in clients:
        output, _ = client.communicate(timeout=seconds + 60)
        if client.returncode:
            raise SystemExit("the load generator has failed")
        results.append(json.loads(output))
    took_s = time.perf_counter() - began_at
    cpu_s = nodes.cpu_seconds() - began_cpu
    packets = sum(result["packets"] for result in results)
    return Result(
        sum(result["packets"] / result["seconds"] for result in results),
        cpu_s / packets * 1e6,
        (cpu_s + _clients_cpu() - clients_began) / took_s / core_count(),
    )


def _clients_cpu() -> float:
    """Return the processor time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def run_round(
    program: Path, application: str, shapes: Sequence[Shape], options: argparse.Namespace
) -> dict[Shape, Result]:
    """Start a cluster of each shape, one after the other, and load it."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as directory:
        config = Path(directory, "cluster.toml")
        config.write_text(CONFIG)
        for nodes, workers in shapes:
            flags = ("--config", str(config), "--workers", str(workers))
            with nodes_up(nodes, *flags, "--app", APPLICATIONS[application]) as servers:
                measure(program, servers, options.sessions, options.packet_bytes, 0.3)  # warm
                results[nodes, workers] = measure(
                    program, servers, options.sessions, options.packet_bytes, options.seconds
                )
    return results


def summed_up(application: str, shape: Shape, rounds: Sequence[dict[Shape, Result]]) -> Row:
    """Return the medians of one shape."""
    nodes, workers = shape
    ones = [results[1, 1] for results in rounds]
    here = [results[shape] for results in rounds]
    pairs = list(zip(here, ones, strict=True))
    return Row(
        application,
        nodes,
        workers,
        statistics.median(result.packets_per_s for result in here),
        statistics.median(result.cpu_us for result in here),
        statistics.median(result.busy for result in here),
        statistics.median(
            result.packets_per_s / (one.packets_per_s * nodes * workers) for result, one in pairs
        ),
        statistics.median(one.cpu_us / result.cpu_us for result, one in pairs),
    )


def print_row(row: Row) -> None:
    """Print one line."""
    sys.stdout.write(
        f"{row.application}, {row.nodes} x {row.workers}: {row.packets_per_s:>9,.0f} packets/s, "
        f"efficiency {row.efficiency:.2f}; {row.cpu_us:>6.1f} CPU us/packet, "
        f"efficiency {row.cpu_efficiency:.2f}; cores busy {row.busy:.0%}\n"
    )
    sys.stdout.flush()


def print_limit(rows: Sequence[Row]) -> None:
    """Say what the cores of this machine allow."""
    limited = [f"{row.application} {row.nodes} x {row.workers}" for row in rows if row.busy >= BUSY]
    sys.stdout.write(
        f"{core_count()} cores for servers and clients; they were all busy in: "
        f"{', '.join(limited) or 'none'}\n"
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw packets/s and processor time over the number of nodes; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("the plot needs matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same figures make the same file
    from matplotlib import pyplot

    applications = list(dict.fromkeys(row.application for row in rows))
    figure, axes = pyplot.subplots(2, len(applications), figsize=(9, 6), squeeze=False)
    for column, application in enumerate(applications):
        rate, cpu = axes[0][column], axes[1][column]
        own = [row for row in rows if row.application == application]
        for workers in dict.fromkeys(row.workers for row in own):
            line = [row for row in own if row.workers == workers]
            x = [row.nodes for row in line]
            label = f"{workers} worker{'s' * (workers > 1)} each"
            rate.plot(x, [row.packets_per_s / 1e3 for row in line], marker="o", label=label)
            cpu.plot(x, [row.cpu_us for row in line], marker="o", label=label)
        rate.set_title(f"{application}, {core_count()} cores, clients included")
        rate.set_ylabel("1,000 packets/s")
        cpu.set_ylabel("CPU µs for each packet")
        cpu.set_xlabel("nodes")
        for axis in (rate, cpu):
            axis.set_ylim(bottom=0)
            axis.set_xticks(sorted({row.nodes for row in own}))
            axis.grid(alpha=0.3)
        rate.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every shape with both applications, in rounds that are taken in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sessions", type=int, default=192, help="in all")
    parser.add_argument("--packet-bytes", type=int, default=64)
    parser.add_argument("--apps", nargs="*", choices=APPLICATIONS, default=list(APPLICATIONS))
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it, too")
    options = parser.parse_args()
    shapes = [(nodes, workers) for workers in options.workers for nodes in options.nodes]
    if (1, 1) not in shapes:
        shapes.insert(0, (1, 1))
    rows = []
    with build("load_generator") as program:
        for application in options.apps:
            rounds = [
                run_round(program, application, shapes, options) for _ in range(options.rounds)
            ]
            for shape in shapes:
                rows.append(summed_up(application, shape, rounds))
                print_row(rows[-1])
    print_limit(rows)
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
