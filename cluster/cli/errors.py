"""How the command line tells what is wrong: in one line on stderr, with an exit code."""

import re
import sys
from collections.abc import Callable, Container, Sequence
from functools import wraps
from typing import Any, ParamSpec, cast

import typer
from typer.core import TyperGroup

__all__ = ["EXIT_NOTHING_RUNS", "EXIT_NOT_RELOADED", "EXIT_WRONG", "Commands", "told_in_one_line"]

EXIT_ABORTED = 1
EXIT_NOT_RELOADED = 1
EXIT_WRONG = 2
EXIT_NOTHING_RUNS = 4

P = ParamSpec("P")

_USAGE_ERROR = cast("type[Exception]", typer.BadParameter.__base__)
"""What typer raises for a command line that it does not take; its own click has no public name."""

_APPLICATION = re.compile(r"^Got unexpected extra argument(?:s|\(s\))? \(([\w.]+:[\w.]+)\)$")
"""What other servers take without a flag."""


class Commands(TyperGroup):
    """The commands; a command line that is wrong is told in one line, too."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        arguments = sys.argv[1:] if args is None else list(args)
        try:
            exit_code = super().main(arguments, *more, **{**extra, "standalone_mode": False})
        except _USAGE_ERROR as error:
            typer.echo(_usage_line(error, arguments, self.commands), err=True)
            sys.exit(EXIT_WRONG)
        except typer.Abort:
            sys.exit(EXIT_ABORTED)
        sys.exit(exit_code or 0)


def _usage_line(error: Any, arguments: list[str], commands: Container[str]) -> str:
    """Return what is wrong with the command line, with the value, and where to read more."""
    message: str = error.format_message().strip()
    if "\n" in message:
        return message  # the help, which `cluster` alone is answered with
    message = message.rstrip(".")
    names: Sequence[str] = getattr(getattr(error, "param", None), "opts", ())
    value = _value_given(arguments, names)
    if value is not None and message.startswith("Invalid value"):
        reason = message.partition(": ")[2].removeprefix("Value error, ")
        if repr(value) not in reason:
            reason = f"{value!r}: {reason[:1].lower()}{reason[1:]}"
        message = f"{names[0]}: {reason}"
    # The error does not always know its command: not where an option lacks its value.
    command = next((f" {argument}" for argument in arguments if argument in commands), "")
    if command == " up" and (given := _APPLICATION.search(message)):
        message += f"; write --app {given[1]}"
    return f"cluster: {message}; see cluster{command} --help"


def _value_given(arguments: list[str], names: Sequence[str]) -> str | None:
    """Return the value that was given to an option last, None where there is none."""
    given = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, is_joined, value = argument.partition("=")
        if name in names:
            given = value if is_joined else following
    return given


def told_in_one_line(command: Callable[P, int]) -> Callable[P, None]:
    """Exit with what `command` returns, or with one line and code 2 for an expected error."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from cluster.shared.config import ConfigError
        from cluster.shared.messages import ProtocolError
        from cluster.shared.run_directory import RunDirectoryError
        from cluster.shared.standard_streams import tell

        try:
            exit_code = command(*args, **kwargs)
        except (ConfigError, ProtocolError, RunDirectoryError, OSError) as error:
            tell(f"cluster: {error}\n")
            exit_code = EXIT_WRONG
        raise typer.Exit(exit_code)

    return run
