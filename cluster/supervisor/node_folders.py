"""The folders of a run directory that are those of nodes: `cluster up --nodes N` makes them.

Whoever asks about the directory itself has to ask about one of them.
"""

from pathlib import Path

from cluster.shared.run_directory import RunDirectory, RunDirectoryError

__all__ = ["find_node_folders", "is_of_nodes", "is_running", "node_folder"]

_PREFIX = "node-"


def node_folder(directory: Path, node: int) -> Path:
    """Return the run directory of node `node` of those that are started in `directory`."""
    return directory / f"{_PREFIX}{node}"


def find_node_folders(run_directory: RunDirectory) -> list[RunDirectory]:
    """Return the run directories of all nodes that have run in folders of it, by their ids."""
    found = []
    for path in run_directory.path.glob(f"{_PREFIX}*"):
        number = path.name.removeprefix(_PREFIX)
        if number.isascii() and number.isdigit() and path.is_dir():
            found.append((int(number), RunDirectory(path)))
    return [folder for _, folder in sorted(found, key=lambda item: item[0])]


def is_of_nodes(run_directory: RunDirectory) -> bool:
    """Whether it is not that of a node itself: nodes run in its folders, or none has run in it.

    Raises RunDirectoryError.
    """
    return run_directory.holder("nodes") is not None or not run_directory.has_config


def is_running(folder: RunDirectory) -> bool:
    """Whether a node runs there, or a part of one; False where that cannot be found out."""
    try:
        return any(folder.holder(role) is not None for role in ("supervisor", "gateway"))
    except RunDirectoryError:
        return False
