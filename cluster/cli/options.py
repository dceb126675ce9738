"""Options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AppOption",
    "ConfigOption",
    "Driver",
    "DriverOption",
    "Lane",
    "LaneOption",
    "ListenOption",
    "LogLevel",
    "LogLevelOption",
    "NodeIdOption",
    "ReloadDirOption",
    "RequiredRunDir",
    "RunDirOption",
    "WorkersOption",
]


class Driver(StrEnum):
    """Completion drivers to choose from."""

    AUTO = "auto"
    IOCP = "iocp"
    IO_URING = "io_uring"
    READINESS = "readiness"


class Lane(StrEnum):
    """Lanes to choose from."""

    AUTO = "auto"
    SHM = "shm"
    ZMQ = "zmq"


class LogLevel(StrEnum):
    """Levels of the log to choose from."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Read the configuration from FILE; flags beat it."
    ),
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Where clients connect; by default 127.0.0.1:7777. Port 0 takes a free one.",
    ),
]
NodeIdOption = Annotated[
    int | None,
    typer.Option(
        "--node-id", metavar="N", help="The number of the node in its cluster; by default 1."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Number of worker processes; by default 2."),
]
AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:NAME", help="The application; by default an echo."),
]
DriverOption = Annotated[
    Driver | None,
    typer.Option("--driver", help="How sockets are served; auto takes the best there is."),
]
LaneOption = Annotated[
    Lane | None,
    typer.Option(
        "--lane", help="What carries packets between gateway and workers: shared memory or ZeroMQ."
    ),
]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option("--log-level", help="Log lines of this level and above; by default info."),
]
RunDirOption = Annotated[
    str | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="The run directory, by which the processes of a node find each other; by default "
        "this user's in XDG_RUNTIME_DIR, else in the temporary directory.",
    ),
]
ReloadDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--reload-dir",
        metavar="DIR",
        help="With --reload: watch DIR and what is below it; may be repeated. By default the "
        "current directory, and that of the application's module.",
    ),
]
RequiredRunDir = Annotated[
    str,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="The run directory, by which the processes of a node find each other.",
    ),
]
