"""`python -m cluster.gateway --run-dir DIR`: what a supervisor starts."""

import argparse
import sys
from pathlib import Path

from cluster.gateway.process import run_gateway
from cluster.shared.config import ConfigError
from cluster.shared.exit_codes import CANNOT_START
from cluster.shared.logs import configure_logging, follow_config
from cluster.shared.process import die_with_parent
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.standard_streams import keep_exit_code, tell
from cluster.shared.tracebacks import tell_tracebacks


def main() -> int:
    """Run the gateway of the node whose supervisor wrote the configuration into DIR."""
    parser = argparse.ArgumentParser(prog="cluster.gateway")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    keep_exit_code()
    tell_tracebacks()
    if arguments.parent_pid is not None:
        die_with_parent(arguments.parent_pid)
    configure_logging("gateway")
    directory = RunDirectory(arguments.run_dir)
    try:
        config = directory.read_config()
    except (ConfigError, RunDirectoryError) as error:
        tell(f"cluster gateway: {error}\n")
        return CANNOT_START
    follow_config(config)
    return run_gateway(directory, config)


if __name__ == "__main__":
    sys.exit(main())
