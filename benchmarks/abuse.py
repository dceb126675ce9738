"""What abuse does to good clients: 50 of them, alone and beside 2,000 that abuse in one way.

These come all at once; the limits are on. Good clients ask each 20 ms and check every answer: they
are to lose nothing, and their 99th percentile, the onset of the abuse included, is compared with
that of the round before, in which they were alone. Ends with 1 if anything was lost. Abusers that
were cut off come back a second later; those that only connect come back at once. They take what
others leave of the cores, since on machines of their own they would take nothing. With `--uvloop`
the same is done to an echo on uvloop, which has neither limits nor a hop: it shows what of all this
is the machine's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.servers import build, cluster_up, uvloop_echo
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status

CONFIG = """
[gateway]
accepts_outstanding_max = 4
send_queue_bytes_max = 131072
send_stall_timeout_s = 2
[limits]
idle_timeout_s = 10
packet_timeout_s = 2
auth_timeout_s = 5
packets_per_s = 100
packets_burst = 50
bytes_per_s = 100000
connections_per_address = 2500
accepts_per_address_per_s = 50
accepts_per_address_burst = 2500
"""

PAUSES_MS = {"drip": 1_000, "connect": 100, "flood": 1_000, "deaf": 1_000, "garbage": 1_000}
"""The ways of abuse, and how soon who was cut off comes back."""

LEAD_S = 0.5
"""Time for the good clients to log in before the abuse begins."""

SETTLE_S = 2.0
"""From the end of the abuse until the next round."""


class Programs(NamedTuple):
    """The two kinds of clients."""

    good: Path
    abusers: Path


@contextmanager
def running(program: Path, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program of clients, until the end of the block at the latest."""
    command = [str(program), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    """Wait for the end of a program that runs for `seconds`, and return what it has printed."""
    output, _ = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def calm_round(programs: Programs, port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the good clients alone and return what they saw."""
    with running(
        programs.good, port, options.good, options.interval_ms, options.seconds
    ) as process:
        return told(process, options.seconds)


def abused_round(
    programs: Programs, port: int, mode: str, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the good clients, and from soon after until they end abusers; return what both saw."""
    with running(programs.good, port, options.good, options.interval_ms, options.seconds) as good:
        time.sleep(LEAD_S)
        with running(
            programs.abusers, port, mode, options.clients, options.seconds, PAUSES_MS[mode]
        ) as abusers:
            return told(good, options.seconds), told(abusers, options.seconds)


def measure(
    programs: Programs, run_dir: Path | None, port: int, mode: str, options: argparse.Namespace
) -> bool:
    """Measure one way of abuse and print a line; return whether nothing was lost.

    `run_dir` is that of the node, None for uvloop.
    """
    before = read_counters(run_dir)
    alone, beside, made = [], [], 0
    for _ in range(options.rounds):
        alone.append(calm_round(programs, port, options))
        seen, counts = abused_round(programs, port, mode, options)
        beside.append(seen)
        made += counts["made"]
        time.sleep(SETTLE_S)
    counters = read_counters(run_dir)
    counters.subtract(before)
    lost: int = sum(each[key] for each in beside for key in ("lost", "differed", "disconnected"))
    p99 = [statistics.median(each["p99_us"] for each in rounds) for rounds in (alone, beside)]
    ratio = statistics.median(
        abused["p99_us"] / calm["p99_us"] for calm, abused in zip(alone, beside, strict=True)
    )
    causes = ", ".join(
        f"{name} {count}"
        for name, count in sorted(counters.items())
        if count > 0 and (name.startswith("closed_") or name == "connections_refused")
    )
    packets = sum(each["packets"] for each in beside)
    name = mode if run_dir else f"{mode}, uvloop"
    sys.stdout.write(
        f"{name:<16} good: {packets} packets, {lost} lost; p99 {p99[0]:.0f} us alone, "
        f"{p99[1]:.0f} us beside, {ratio:.2f} x; {made} connections: {causes}\n"
    )
    sys.stdout.flush()
    return not lost


def read_counters(run_dir: Path | None) -> Counter[str]:
    """Return the counters of the node, or none for uvloop."""
    if run_dir is None:
        return Counter()
    status = read_status(RunDirectory(run_dir))
    if status is None:
        raise SystemExit(f"nothing runs in {run_dir}")
    return Counter(status.counters)


def main() -> None:
    """Measure one way of abuse after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", action="append", choices=list(PAUSES_MS), help="default: all")
    parser.add_argument("--good", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--interval-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true", help="and beside it an echo on uvloop")
    options = parser.parse_args()
    with ExitStack() as stack:
        programs = Programs(
            good=stack.enter_context(build("good_clients")),
            abusers=stack.enter_context(build("abusers")),
        )
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="iocp-bench-"))
        config = Path(directory, "limits.toml")
        config.write_text(CONFIG)
        run_dir = Path(directory, "run")
        server = stack.enter_context(
            cluster_up(
                *("--workers", "1", "--config", str(config), "--run-dir", str(run_dir)),
                *("--app", "benchmarks.limits_app:app"),
            )
        )
        modes = options.mode or list(PAUSES_MS)
        reference = stack.enter_context(uvloop_echo()) if options.uvloop else None
        kept = []
        for mode in modes:
            kept.append(measure(programs, run_dir, server.port, mode, options))
            if reference is not None:
                measure(programs, None, reference.port, mode, options)
    if not all(kept):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
