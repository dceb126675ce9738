"""Logs: one format, to standard error, in every process of a node.

Standard output belongs to the ready line, and to the results of `status` and `bots`.
"""

import logging
import os
import sys

__all__ = ["change_role", "configure_logging"]

_handler = logging.StreamHandler(sys.stderr)


def configure_logging(role: str, level: int = logging.INFO) -> None:
    """Send the logs of this process to stderr; called once, at its start.

    `role` is what the process is, for example `worker 1`. The processes of a node share one
    stderr, so each line says by whom it is.
    """
    _handler.setStream(sys.stderr)
    change_role(role)
    root = logging.getLogger()
    root.handlers[:] = [_handler]
    root.setLevel(level)


def change_role(role: str) -> None:
    """Say from now on in each line that this process is `role`; leaves other handlers alone."""
    who = f"{role}[{os.getpid()}]".replace("%", "%%")
    _handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s")
    )
