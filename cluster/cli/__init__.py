"""The command line: `python -m cluster`, and the console script `cluster`.

Ctrl-C is answered before anything else is imported: that takes longer than a person needs for it.
"""

import os
import signal
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit.

    Ctrl-C ends it quietly, with 130, until the command takes the signal itself. Where it was
    ignored, as behind the & of a script, it still is.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    from cluster.cli.commands import main as run

    run()


def _interrupted(number: int, _frame: FrameType | None) -> None:
    # No exception: it would come up in whatever runs, an import or the end of a thread perhaps,
    # and be told or swallowed there. Nothing is held that the system does not take back.
    os._exit(128 + number)
