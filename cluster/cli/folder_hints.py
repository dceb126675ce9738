"""What is told of a run directory that holds those of several nodes in folders, and the remedy."""

from cluster.shared.dead_letters import read_dead_letters
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.supervisor.node_folders import find_node_folders, is_of_nodes, is_running

__all__ = ["letters_elsewhere_line", "no_letters_line", "nothing_runs_line"]


def nothing_runs_line(run_directory: RunDirectory) -> str:
    """Return what `cluster status` says where no node runs in the directory itself."""
    nothing = f"cluster: nothing runs in {run_directory.path}"
    folders = find_node_folders(run_directory)
    running = [folder for folder in folders if is_running(folder)]
    if running:
        return f"{nothing} itself; nodes run in its folders {_names_and_remedy(running)}"
    return f"{nothing}; nodes have run in its folders {_names(folders)}" if folders else nothing


def letters_elsewhere_line(run_directory: RunDirectory) -> str | None:
    """Return what `cluster dead-letters` says where they are in folders, None if they are not.

    Raises RunDirectoryError.
    """
    having = [folder for folder in _folders_asked_for(run_directory) if _has_letters(folder)]
    if not having:
        return None
    return (
        f"cluster: no dead letters in {run_directory.path} itself, but in its folders "
        f"{_names_and_remedy(having)}"
    )


def no_letters_line(run_directory: RunDirectory) -> str:
    """Return what `cluster dead-letters` says where there are none; raises RunDirectoryError."""
    nothing = f"cluster: no dead letters in {run_directory.path}"
    folders = _folders_asked_for(run_directory)
    return f"{nothing}, nor in its folders of {len(folders)} nodes" if folders else nothing


def _folders_asked_for(run_directory: RunDirectory) -> list[RunDirectory]:
    return find_node_folders(run_directory) if is_of_nodes(run_directory) else []


def _has_letters(folder: RunDirectory) -> bool:
    try:
        return bool(read_dead_letters(folder))
    except RunDirectoryError:
        return False


def _names(folders: list[RunDirectory]) -> str:
    return ", ".join(folder.path.name for folder in folders)


def _names_and_remedy(folders: list[RunDirectory]) -> str:
    return f"{_names(folders)}: pass --run-dir {folders[0].path}"
