"""Where a process is, on its stderr: when it crashes, and when it is asked.

It is told by signal handlers of the interpreter, in the thread that they stop, so a handler that
never returns can be told of, and one that holds the interpreter's lock as well. A process that is
stopped as a whole tells nothing.

Whom one asks is to be ended. The interpreter's handler does not put `errno` back, so a call of C
that failed at just that moment may look as if it had not; and it reads the frames of other threads
while these run.
"""

import faulthandler
import signal
import sys
from contextlib import suppress

__all__ = ["ASK_SIGNAL", "TELL_WITHIN_S", "tell_tracebacks"]

ASK_SIGNAL: int | None = getattr(signal, "SIGURG", None)
"""The signal that asks a process where it is. Hardly anybody uses it, and a process that does not
know of it ignores it. None where it does not exist."""

TELL_WITHIN_S = 0.5
"""Who was asked has written by then, unless it cannot: a signal handler needs its turn on a
processor, and no more."""

_STDERR_FD = 2


def tell_tracebacks() -> None:
    """From now on tell where this process is when it crashes, and at each `ASK_SIGNAL`.

    Main thread only.
    """
    # Without a stderr that is a file there is nowhere to tell, which is no reason not to start.
    with suppress(OSError, ValueError):
        faulthandler.enable(file=_STDERR_FD)
        if sys.platform != "win32" and ASK_SIGNAL is not None:
            faulthandler.register(ASK_SIGNAL, file=_STDERR_FD)
