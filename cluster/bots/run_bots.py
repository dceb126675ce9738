"""`cluster bots`: a run with its progress on a terminal, its result, and its exit code."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.bots.load_run import BotsError, BotsSettings, LoadProgress, LoadRun
from cluster.shared.process import raise_descriptor_limit

__all__ = ["run_bots"]

EXIT_CLEAN = 0
EXIT_NOT_CLEAN = 1
EXIT_BAD_ARGUMENTS = 2

DESCRIPTORS_RESERVED = 64
"""Descriptors that are not sessions: standard streams, the driver's own, and room for more."""


def run_bots(settings: BotsSettings, *, as_json: bool) -> int:
    """Run, print the result to stdout, and return the exit code.

    0 when every packet came back on connections that held; 1 when something was lost, differed
    or disconnected, or not all could connect; 2 for an address that does not exist, or more
    sessions than this process may open. For the main thread: SIGINT ends the run early.
    """
    needed = settings.sessions + DESCRIPTORS_RESERVED
    allowed = raise_descriptor_limit(needed)
    if allowed < needed:
        return _fail(
            f"--sessions {settings.sessions} needs {needed} open files, but {allowed} are allowed "
            "here; raise the limit (ulimit -n)",
            EXIT_BAD_ARGUMENTS,
        )
    try:
        run = LoadRun(settings)
    except OSError as error:
        return _fail(f"--connect {settings.address}: {error.strerror}", EXIT_BAD_ARGUMENTS)
    try:
        # In this order: an end by a signal while progress is shown would leave no cursor.
        with _stopped_by_signal(run), _progress_shown() as show:
            report = run.run(show)
    except BotsError as error:
        return _fail(str(error), EXIT_NOT_CLEAN)
    print(report.to_json() if as_json else report.to_text(), flush=True)
    if run.failures:
        causes = ", ".join(f"{number} {cause}" for cause, number in run.failures.items())
        return _fail(
            f"connected {report.sessions} of {settings.sessions} sessions: {causes}",
            EXIT_NOT_CLEAN,
        )
    if report.looks_like_no_echo:
        return _fail(
            f"nothing came back from {settings.address} as it was sent: bots load a server that "
            "answers each packet with the same packet, as `cluster up` does without --app",
            EXIT_NOT_CLEAN,
        )
    return EXIT_CLEAN if report.is_clean else EXIT_NOT_CLEAN


def _fail(message: str, exit_code: int) -> int:
    print(f"cluster: {message}", file=sys.stderr)
    return exit_code


@contextmanager
def _stopped_by_signal(run: LoadRun) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        run.stop()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _progress_shown() -> Iterator[Callable[[LoadProgress], None] | None]:
    """Give a function that shows progress on the terminal, None where stderr is none."""
    if not sys.stderr.isatty():
        yield None
        return
    # Rich takes longer to import than a short run takes to connect.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text("connecting"), console=Console(stderr=True), transient=True) as live:

        def show(progress: LoadProgress) -> None:
            live.update(
                Text(
                    f"{progress.phase.value}: {progress.sessions} sessions, "
                    f"{progress.packets} packets, {progress.packets_per_s:.0f}/s, "
                    f"{progress.disconnected} disconnected"
                )
            )

        yield show
