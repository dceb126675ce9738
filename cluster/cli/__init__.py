"""The command line: `python -m cluster`, and the console script `cluster`."""

from cluster.cli.commands import app, main

__all__ = ["app", "main"]
