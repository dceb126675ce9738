"""Logs: one format, to standard error, in every process of a node.

Standard output belongs to the ready line, and to the results of `status` and `bots`.
"""

import logging
import os
import sys

__all__ = ["configure_logging"]


def configure_logging(role: str, level: int = logging.INFO) -> None:
    """Send the logs of this process to stderr; called once, at its start.

    `role` is what the process is, for example `worker 1`. The processes of a node share one
    stderr, so each line says by whom it is.
    """
    who = f"{role}[{os.getpid()}]".replace("%", "%%")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
