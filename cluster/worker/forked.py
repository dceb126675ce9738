"""The end of a process that the application has forked off its worker.

It has the worker's memory, lane and sockets in common with it, and the worker's loop below it on
its stack. So it may run what the application wrote for it, and never come back from there: what
the loop does next, it would do a second time. Nothing is given back here, because that is the
worker's too.
"""

import logging
from typing import NoReturn

from cluster.shared.exit_codes import exit_code_of
from cluster.shared.standard_streams import end_at_once

__all__ = ["end_forked_off"]

logger = logging.getLogger("cluster.worker")


def end_forked_off(error: BaseException | None) -> NoReturn:
    """End this process, which was forked off a worker and has left the application's code.

    By SystemExit it has said with which code; by any other `error`, or by none, it is a mistake.
    """
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            logger.error("a process that the application forked off has ended: %s", error.code)
        end_at_once(exit_code_of(error))
    logger.error(
        "a process that the application forked off has come back to the code of its worker, and "
        "is ended: it has to end itself (os._exit), as those of multiprocessing do",
        exc_info=error,
    )
    end_at_once(1)
