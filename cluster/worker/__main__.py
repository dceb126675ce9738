"""`python -m cluster.worker --shard N --run-dir DIR`: what a supervisor starts."""

import argparse
import sys
from pathlib import Path

from cluster.shared.logs import configure_logging
from cluster.shared.process import die_with_parent
from cluster.shared.run_directory import RunDirectory
from cluster.worker.process import run_worker


def main() -> int:
    """Run the worker of one shard of the node whose run directory is DIR."""
    parser = argparse.ArgumentParser(prog="cluster.worker")
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    if arguments.parent_pid is not None:
        die_with_parent(arguments.parent_pid)
    configure_logging(f"worker-{arguments.shard}")
    directory = RunDirectory(arguments.run_dir)
    is_supervised = arguments.parent_pid is not None
    return run_worker(directory, arguments.shard, is_supervised=is_supervised)


if __name__ == "__main__":
    sys.exit(main())
