"""`python -m cluster.supervisor --run-dir DIR`: one node of `cluster up --nodes N`."""

import argparse
import sys
from pathlib import Path

from cluster.shared.config import ConfigError
from cluster.shared.exit_codes import CANNOT_START
from cluster.shared.logs import configure_logging, follow_config
from cluster.shared.process import die_with_parent
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.standard_streams import keep_exit_code, tell
from cluster.shared.tracebacks import tell_tracebacks
from cluster.supervisor.supervisor import supervise


def main() -> int:
    """Run the node whose configuration a parent wrote into DIR."""
    parser = argparse.ArgumentParser(prog="cluster.supervisor")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--reload-dir", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    keep_exit_code()
    tell_tracebacks()
    die_with_parent(arguments.parent_pid)
    directory = RunDirectory(arguments.run_dir)
    try:
        config = directory.read_config()
        configure_logging("supervisor")
        follow_config(config)
        return supervise(config, directory, arguments.reload_dir)
    except (ConfigError, RunDirectoryError, OSError) as error:
        tell(f"cluster: {error}\n")
        return CANNOT_START


if __name__ == "__main__":
    sys.exit(main())
