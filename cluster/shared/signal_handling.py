"""Signals that reach their handler, however the process was started.

A process inherits which signals are blocked, and some that start others leave them so. One that
asks for the end would never be seen.
"""

import signal
import sys

__all__ = ["handle_signal"]


def handle_signal(number: int, handler: "signal._HANDLER") -> "signal._HANDLER":
    """Have `handler` called for the signal, which is no longer blocked; return the one before.

    Processes that are started from now on do not have it blocked either. Main thread only.
    """
    previous = signal.signal(number, handler)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
    return previous
