"""Runs another benchmark while no CPU of the machine sleeps, as with `gateway.cpu_latency_us = 0`.

`python -m benchmarks.awake echo_hop --case 1x1` is `python -m benchmarks.echo_hop --case 1x1` so.
All that is compared profits alike; what is left is the servers' own work.
"""

import runpy
import sys
from importlib.util import find_spec

from cluster.shared.cpu_latency import CpuLatencyError, cpu_latency


def main() -> None:
    """Run the benchmark that the command line names."""
    name = f"benchmarks.{sys.argv[1]}" if len(sys.argv) > 1 and sys.argv[1].isidentifier() else ""
    if not name or find_spec(name) is None:
        raise SystemExit("usage: python -m benchmarks.awake BENCHMARK [OPTION...]")
    del sys.argv[1]
    try:
        with cpu_latency(0):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except CpuLatencyError as error:
        raise SystemExit(f"cannot keep the CPUs awake: {error}") from None


if __name__ == "__main__":
    main()
