"""From the start of `cluster up` to its ready line, beside the start of a bare interpreter."""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.servers import cluster_up


def main() -> None:
    """Start a cluster again and again; print the median and the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ready, bare = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        with cluster_up():
            ready.append(time.perf_counter() - began)
    sys.stdout.write(
        f"time to ready: median {statistics.median(ready):.3f} s, worst {max(ready):.3f} s "
        f"(python -c pass: {statistics.median(bare):.3f} s), {rounds} rounds\n"
    )


if __name__ == "__main__":
    main()
