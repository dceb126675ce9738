"""What flags come to beyond their own values: configuration, directories, and what fits together.

Whatever does not fit raises ConfigError. As in the commands, what not all of them need is imported
inside the functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.cli.options import Driver, Lane, LogLevel

if TYPE_CHECKING:
    from cluster.shared.config import Config

__all__ = [
    "check_local_worker",
    "config_flags",
    "find_run_directory",
    "needs_library",
    "parsed_flag",
    "run_directory_of",
    "watched_directories",
]

T = TypeVar("T")


def config_flags(
    listen: str | None,
    workers: int | None,
    app: str | None,
    driver: Driver | None,
    lane: Lane | None,
    run_dir: str | None,
    node_id: int | None,
    log_level: LogLevel | None,
) -> dict[str, object]:
    """Return the flags by the key of the configuration that each one sets."""
    return {
        "node.listen": listen,
        "workers.count": workers,
        "node.app": app,
        "gateway.driver": driver,
        "lane.kind": lane,
        "node.run_dir": run_dir,
        "node.id": node_id,
        "node.log_level": log_level,
    }


def find_run_directory(config: Path | None, run_dir: str | None) -> Path:
    """Return the run directory of a node that was started with these flags."""
    from cluster.shared.config_file import load_config

    return run_directory_of(load_config(config, {"node.run_dir": run_dir}, starts_node=False))


def run_directory_of(config: "Config") -> Path:
    """Return where the processes of the node of `config` meet."""
    from cluster.shared.run_directory import default_run_directory

    return Path(config.node.run_dir) if config.node.run_dir else default_run_directory()


def watched_directories(app: str | None, reload: bool, asked_for: list[Path]) -> list[Path]:
    """Return what `up` is to watch; nothing without --reload."""
    from cluster.shared.config import ConfigError

    if not reload:
        if asked_for:
            raise ConfigError(
                f"--reload-dir: {str(asked_for[0])!r}: pass --reload as well, or leave it out"
            )
        return []
    from cluster.supervisor.reload_directories import choose_reload_directories

    return choose_reload_directories(app, asked_for)


def check_local_worker(
    run_dir: str | None, keys: Path | None, app: str | None, log_level: LogLevel | None
) -> None:
    """Check the flags of a worker whose gateway is on this machine."""
    from cluster.shared.config import ConfigError

    if run_dir is None:
        raise ConfigError("--run-dir: missing: the run directory of the node; or pass --gateway")
    for flag, value in (("--keys", keys), ("--app", app), ("--log-level", log_level)):
        if value is not None:
            raise ConfigError(
                f"{flag}: {str(value)!r}: only with --gateway; the node in {run_dir} says it itself"
            )


def parsed_flag(flag: str, text: str, parse: Callable[[str], T]) -> T:
    """Return what `parse` makes of the value of a flag; its ValueError says what was expected."""
    from cluster.shared.config import ConfigError

    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {text!r}: expected {error}") from None


@contextmanager
def needs_library(what: str, library: str, extra: str) -> Iterator[None]:
    """Tell, if it is missing, that `what` needs `library`, which `extra` installs.

    That is its name, and maybe, behind a comma, which version.
    """
    from cluster.shared.config import ConfigError

    try:
        yield
    except ModuleNotFoundError as error:
        name = library.partition(",")[0].replace("-", "_")
        if (error.name or "").partition(".")[0] != name:
            raise
        raise ConfigError(
            f"{what}: needs the library {library}; run: pip install 'iocp-cluster[{extra}]'"
        ) from None
