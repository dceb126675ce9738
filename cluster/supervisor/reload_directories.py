"""Which directories `cluster up --reload` watches, and whether it can."""

import importlib.util
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from cluster.shared.config import ConfigError

__all__ = ["choose_reload_directories"]


def choose_reload_directories(app: str | None, asked_for: Sequence[Path]) -> list[Path]:
    """Return the directories to watch for the application `app`, `MODULE:NAME`.

    Those that were `asked_for`; without any the current one, which is the first place where the
    application is looked for, and where it is found, if that is elsewhere: its package, or the
    directory of its module. Directories within others are left out. Nothing is imported.

    Raises ConfigError, in one line, when watchfiles is not installed or there is no such
    directory.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError(
            "--reload: the package watchfiles is not installed; "
            "run: pip install 'iocp-cluster[reload]'"
        )
    for directory in asked_for:
        if not directory.is_dir():
            raise ConfigError(f"--reload-dir: {str(directory)!r}: expected an existing directory")
    found = [directory.resolve() for directory in asked_for]
    if not found:
        found = [Path.cwd().resolve(), *_directories_of(app)]
    outer = [
        directory for directory in found if not any(other in directory.parents for other in found)
    ]
    return list(dict.fromkeys(outer))


def _directories_of(app: str | None) -> list[Path]:
    if app is None:
        return []
    name = app.partition(":")[0].partition(".")[0]
    spec = _find_spec(name) if name else None
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    if spec.has_location and spec.origin is not None:
        return [Path(spec.origin).resolve().parent]
    return []


def _find_spec(name: str) -> ModuleSpec | None:
    """Find a module as a worker would, by a name without dots, for which nothing is imported."""
    here = PathFinder.find_spec(name, [str(Path.cwd())])
    if here is not None:
        return here
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None  # which the worker will tell
