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


ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read the configuration from FILE.")
]
ListenOption = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Where clients connect; port 0: any free."),
]
NodeIdOption = Annotated[
    int | None, typer.Option("--node-id", metavar="N", help="The node's number in its cluster.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Number of worker processes.")
]
AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:NAME", help="The application; without it, an echo."),
]
DriverOption = Annotated[Driver | None, typer.Option("--driver", help="The completion driver.")]
LaneOption = Annotated[Lane | None, typer.Option("--lane", help="What connects the processes.")]
RunDirOption = Annotated[
    str | None,
    typer.Option("--run-dir", metavar="DIR", help="Where the processes of the node meet."),
]
ReloadDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--reload-dir",
        metavar="DIR",
        help="With --reload: watch DIR and what is below it, and nothing else; may be repeated. "
        "Without: the current directory, and where the application's module is.",
    ),
]
RequiredRunDir = Annotated[
    str, typer.Option("--run-dir", metavar="DIR", help="Where the processes of the node meet.")
]
