"""Finds the application: `MODULE:NAME`, with the current directory first on the path."""

import importlib
import sys
from pathlib import Path

from cluster.worker.app import App

__all__ = ["ApplicationError", "load_application"]

ECHO = "cluster.worker.echo:app"


class ApplicationError(Exception):
    """The application cannot be loaded; the message names it and what to change."""


def load_application(spec: str | None) -> App:
    """Import `spec` and return its App; None is the echo application.

    Raises ApplicationError, whose message is one line. Its cause is what the application's own
    code raised, if that is why.
    """
    here = str(Path.cwd())
    if spec is not None and here not in sys.path[:1]:
        sys.path.insert(0, here)
    spec = spec or ECHO
    module_name, _, name = spec.partition(":")
    if not name:
        raise ApplicationError(f"--app {spec!r} names no application; write MODULE:NAME")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        raise ApplicationError(
            f"cannot import {module_name!r} of --app {spec!r} ({_one_line(error)}); "
            f"looked in {here} first"
        ) from (None if is_missing else error)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ApplicationError(f"--app {spec!r}: module {module_name!r} has no {name!r}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ApplicationError(
            f"--app {spec!r}: {name!r} in module {module_name!r} is {type(found).__name__}, "
            "not a cluster.worker.App"
        )
    if found.has_coroutines:
        # A spare has imported this too; others do without it.
        importlib.import_module("cluster.worker.coroutines")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
