"""Logs: one format, to standard error, in every process of a node.

Standard output belongs to the ready line, and to the results of `status` and `bots`.
"""

import logging
import os
import sys
from typing import TYPE_CHECKING

from cluster.shared.log_lines import LineFormatter
from cluster.shared.stderr_handler import StderrHandler

if TYPE_CHECKING:
    from cluster.shared.config import Config

__all__ = ["change_role", "configure_logging", "follow_config", "set_log_level"]

_handler = StderrHandler()
_said = {"node": "", "role": ""}
"""What each line says of this process."""


def configure_logging(role: str) -> None:
    """Send the logs of this process to stderr; called once, at its start.

    `role` is what the process is, for example `worker 1`. The processes of a node share one
    stderr, so each line says by whom it is.
    """
    _handler.setStream(sys.stderr)
    change_role(role)
    root = logging.getLogger()
    root.handlers[:] = [_handler]
    root.setLevel(logging.INFO)


def change_role(role: str) -> None:
    """Say from now on in each line that this process is `role`; leaves other handlers alone."""
    _said["role"] = role
    who = f"{_said['node']}{role}[{os.getpid()}]".replace("%", "%%")
    _handler.setFormatter(LineFormatter(f"%(asctime)s %(levelname)s {who} %(name)s: %(message)s"))


def set_log_level(level: str) -> None:
    """Log lines of this level and above: debug, info, warning or error.

    A logger that was given a level of its own keeps it.
    """
    logging.getLogger().setLevel(level.upper())


def follow_config(config: "Config") -> None:
    """Log from its level on, and say in each line which node this is, if it is linked with others.

    Nodes may share one stderr as well (`cluster up --nodes`), or one place where logs are kept. A
    node that is to be given its id says nothing.
    """
    set_log_level(config.node.log_level)
    if config.links.listen is not None and config.node.id:
        _said["node"] = f"node-{config.node.id} "
        change_role(_said["role"])
