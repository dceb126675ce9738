"""What the person or the script that started a node is told: one line when it is ready, and why
it ends.

Everything else that a supervisor has to say goes to the log. Nothing here raises: a node does not
end because nobody reads what it says.
"""

import logging
import sys

from cluster.shared.standard_streams import tell

__all__ = ["print_ready_line", "say"]

logger = logging.getLogger("cluster.supervisor")


def print_ready_line(line: str) -> None:
    """Write all of what the node ever writes to standard output."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        logger.warning("nobody reads the ready line (%s): %s", error, line)


def say(reason: str) -> None:
    """Tell why the node ends, in one line."""
    tell(f"cluster: {reason}\n")
