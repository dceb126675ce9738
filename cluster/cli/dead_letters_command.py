"""The command `cluster dead-letters`. As in the others, what it needs is imported inside."""

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import EXIT_NOTHING_RUNS, EXIT_WRONG, told_in_one_line
from cluster.cli.flags import find_run_directory
from cluster.cli.options import ConfigOption, RunDirOption

if TYPE_CHECKING:
    from cluster.shared.dead_letters import DeadLetter

__all__ = ["dead_letters"]


@told_in_one_line
def dead_letters(
    config: ConfigOption = None,
    run_dir: RunDirOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the lines of the file as they are.")
    ] = False,
    payload: Annotated[
        int | None,
        typer.Option("--payload", metavar="N", min=1, help="Write the payload of line N, raw."),
    ] = None,
) -> int:
    """List packets and other calls of the node in DIR that killed workers, oldest first.

    Exit code 2 if only the folders of DIR have some, as `cluster up --nodes` makes them; 4 if no
    node has run in DIR.
    """
    from cluster.shared.dead_letters import read_dead_letters
    from cluster.shared.run_directory import RunDirectory

    run_directory = RunDirectory(find_run_directory(config, run_dir))
    if not run_directory.exists():
        typer.echo(
            f"cluster: no node has run in {run_directory.path}: pass the node's --run-dir", err=True
        )
        return EXIT_NOTHING_RUNS
    letters = read_dead_letters(run_directory)
    if not letters:
        from cluster.cli.folder_hints import letters_elsewhere_line

        elsewhere = letters_elsewhere_line(run_directory)
        if elsewhere is not None:
            typer.echo(elsewhere, err=True)
            return EXIT_WRONG
    if payload is not None:
        return _write_payload([letter for _, letter in letters], payload)
    for number, (line, letter) in enumerate(letters, start=1):
        typer.echo(line if as_json else _line_of(number, letter))
    if not letters and not as_json:
        from cluster.cli.folder_hints import no_letters_line

        typer.echo(no_letters_line(run_directory), err=True)
    return 0


def _line_of(number: int, letter: "DeadLetter") -> str:
    """Return what is shown of `letter`, the `number`-th from the oldest."""
    what = letter.kind
    if letter.sequence is None and letter.payload is not None:
        what = f"{letter.kind} ({len(letter.payload)} bytes)"
    elif letter.payload is not None:
        what = f"packet {letter.sequence} (id {letter.packet_id}, {len(letter.payload)} bytes)"
    return (
        f"{number} {letter.time} shard {letter.shard} session {letter.session:#x} "
        f"{letter.address} {what}: {letter.deaths} deaths"
    )


def _write_payload(letters: "list[DeadLetter]", number: int) -> int:
    found = letters[number - 1].payload if number <= len(letters) else None
    if found is None:
        has = "it is of no packet"
        if number > len(letters):
            has = f"lines are 1 to {len(letters)}" if letters else "there are none"
        typer.echo(f"cluster: --payload {number}: {has}; see cluster dead-letters", err=True)
        return EXIT_WRONG
    typer.echo(found, nl=False)
    return 0
