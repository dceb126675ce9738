"""The end of a process that the application has forked off its worker.

It has the worker's memory, lane and sockets in common with it, and the worker's loop below it on
its stack. So it may run what the application wrote for it, and never come back from there: what
the loop does next, it would do a second time. Nothing is given back here, because that is the
worker's too.
"""

import contextlib
import logging
import os
import sys
from typing import NoReturn

__all__ = ["end_forked_off"]

logger = logging.getLogger("cluster.worker")


def end_forked_off(error: BaseException | None) -> NoReturn:
    """End this process, which was forked off a worker and has left the application's code.

    By SystemExit it has said with which code; by any other `error`, or by none, it is a mistake.
    """
    code = 1
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            logger.error("a process that the application forked off has ended: %s", error.code)
    else:
        logger.error(
            "a process that the application forked off has come back to the code of its worker, "
            "and is ended: it has to end itself (os._exit), as those of multiprocessing do",
            exc_info=error,
        )
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)
