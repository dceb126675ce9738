"""`python -m cluster.worker --shard N --run-dir DIR`: what a supervisor starts.

With `--spare N` in place of `--shard N` the process waits for whichever shard it is given.
"""

import argparse
import sys
from pathlib import Path

from cluster.shared.logs import configure_logging
from cluster.shared.process import die_with_parent
from cluster.shared.run_directory import RunDirectory
from cluster.shared.standard_streams import keep_exit_code
from cluster.shared.tracebacks import tell_tracebacks
from cluster.worker.process import run_worker


def main() -> int:
    """Run a worker, or a spare, of the node whose run directory is DIR."""
    parser = argparse.ArgumentParser(prog="cluster.worker")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--shard", type=int)
    role.add_argument("--spare", type=int)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    keep_exit_code()
    tell_tracebacks()
    if arguments.parent_pid is not None:
        die_with_parent(arguments.parent_pid)
    is_spare = arguments.shard is None
    configure_logging(f"spare-{arguments.spare}" if is_spare else f"worker-{arguments.shard}")
    return run_worker(
        RunDirectory(arguments.run_dir),
        arguments.shard,
        is_supervised=arguments.parent_pid is not None,
        spare_number=arguments.spare or 0,
    )


if __name__ == "__main__":
    sys.exit(main())
