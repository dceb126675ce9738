"""Finds the application: `MODULE:NAME`, with the current directory first on the path."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from cluster.worker.app import App

__all__ = ["ApplicationError", "load_application"]

ECHO = "cluster.worker.echo:app"

SPECS_MAX = 5
"""Applications of a module that a message names."""

_OF_IMPORTS = {
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
"""Where the frames are from that stand ahead of the application's own in each failed import."""


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
        is_file = is_missing and module_name.endswith(".py")
        raise ApplicationError(
            f"cannot import {module_name!r} of --app {spec!r} ({_one_line(error)})"
            + (f"; looked in {here} first" if isinstance(error, ModuleNotFoundError) else "")
            + (f"; a module is named without .py: {module_name[:-3]}:{name}" if is_file else "")
        ) from (None if is_missing else _without_import_frames(error))
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ApplicationError(
                f"--app {spec!r}: module {module_name!r} has no {name!r}; {_what_there_is(module)}"
            )
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ApplicationError(
            f"--app {spec!r}: {name!r} in module {module_name!r} is {type(found).__name__}, "
            f"not a cluster.worker.App; {_what_there_is(module)}"
        )
    if found.has_coroutines:
        # A spare has imported this too; others do without it.
        importlib.import_module("cluster.worker.coroutines")
    return found


def _what_there_is(module: ModuleType) -> str:
    """Return the applications that `--app` could have named in `module`, or how to make one."""
    specs = [
        f"{module.__name__}:{name}"
        for name, value in vars(module).items()
        if isinstance(value, App)
    ]
    if not specs:
        return "there is no application in it: make one, app = App()"
    return f"write --app {' or '.join(specs[:SPECS_MAX])}"


def _without_import_frames(error: BaseException) -> BaseException:
    """Return `error` with a traceback that begins in the application, not in the import of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OF_IMPORTS:
        trace = trace.tb_next
    return error.with_traceback(trace)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
